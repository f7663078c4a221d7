"""What `auto` stands for: the meta rate, and where alpha starts if it is not to fall."""

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from metastep import Batch, Episode
from metastep.rates import default_meta_lr, learned_start
from metastep.tasks import AbstractTaskFamily, batch_of_episodes
from metastep.train import TrainConfig, choose_meta_lr, choose_rates, load_tasks
from metastep.train.choose import measure_rates
from metastep.train.problem import build_inner_loop, build_model, filled, split_keys

CONFIG = {"tasks": "sinusoid", "hidden": (6,), "shots": 4, "steps": 1}


@pytest.mark.parametrize(("optimizer", "factor"), [("sgd", 1.0), ("momentum", 0.1)])
def test_plain_gradients_get_the_step_of_sgd_at_half_its_edge(optimizer, factor):
    config = TrainConfig(**CONFIG, optimizer=optimizer)
    tasks = load_tasks(config)
    value, reason = choose_meta_lr(config, tasks, 0.01)
    # The dense Hessian of the meta-objective on the same tasks.
    keys, model = split_keys(0), build_model(config, tasks.description)
    objective, _ = build_inner_loop(config, model, tasks.description)
    draw = jax.jit(lambda key: batch_of_episodes(tasks.splits.train, key, 32))
    episodes = draw(keys["rates"])
    flat, unravel = jax.flatten_util.ravel_pytree(jax.jit(model.init)(keys["parameters"]))

    def meta_loss(w):
        def of_task(e):
            loss = lambda v: objective(unravel(v), e.support)  # noqa: E731
            return objective(unravel(w - 0.01 * jax.grad(loss)(w)), e.query)

        return jnp.mean(jax.vmap(of_task)(episodes))

    largest = np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(meta_loss))(flat))).max()
    assert value == pytest.approx(factor / largest, rel=1e-3)
    assert optimizer in reason


def test_adaptive_optimisers_keep_their_default_and_a_given_rate_is_kept():
    config = TrainConfig(**CONFIG, optimizer="normalised-adam")
    assert choose_meta_lr(config, load_tasks(config), 0.01) == default_meta_lr("normalised-adam")
    relative = TrainConfig(**CONFIG, optimizer="relative-adam", iterations=50, tasks_per_step=3)
    expected = default_meta_lr("relative-adam", 50, 3)
    assert choose_meta_lr(relative, load_tasks(relative), 0.01) == expected
    given = TrainConfig(**CONFIG, optimizer="sgd", meta_lr=0.3)
    assert choose_meta_lr(given, load_tasks(given), 0.01) == (0.3, "given by the user")


@pytest.mark.parametrize(
    ("algorithm", "rate", "steps", "starts_lower"),
    [
        ("maml", "rising-meta-sgd", 3, True),
        ("maml", "rising-meta-sgd", 1, False),
        ("maml", "shared-meta-sgd", 3, False),
        ("maml", "meta-sgd", 3, False),
        ("maml", "fixed", 3, True),
        ("maml", "fixed", 1, False),
        # Its models learn to bear the rate of one step, and end lower with it.
        ("reptile", "fixed", 3, False),
    ],
)
def test_alpha_starts_at_the_best_rate_tried_where_it_stays_and_there_are_several_steps(
    algorithm, rate, steps, starts_lower
):
    options = CONFIG | {"algorithm": algorithm, "steps": steps, "rate": rate}
    config = TrainConfig(**options, rehearse=False)
    config = dataclasses.replace(config, optimizer="adam", meta_lr=0.01, iterations=1)
    tasks = load_tasks(config)
    measured = measure_rates(config, tasks, num_tasks=32)
    rates = measured.curve.alpha
    # As if three steps overstepped from the second rate on.
    curve = dataclasses.replace(measured.curve, measured=[1.0, 0.7, *[0.9] * (len(rates) - 2)])
    advice = dataclasses.replace(measured, curve=curve)
    start = choose_rates(config, tasks, advice=advice)["alpha_chosen"]
    of_one = (
        advice.alpha_chosen if rate == "fixed" else max(advice.alpha_chosen, advice.support_alpha)
    )
    assert start == (rates[1] if starts_lower else of_one)


class Sides(AbstractTaskFamily):
    """Two classes on either side of a line through 0."""

    kind = "classification"
    input_shape = (2,)
    output_size = 2

    def sample(self, key):
        line_key, input_key = jax.random.split(key)
        x = jax.random.normal(input_key, (20, 2))
        y = (x @ jax.random.normal(line_key, (2,)) > 0).astype(int)
        return Episode(Batch(x[:10], y[:10]), Batch(x[10:], y[10:]))


@pytest.mark.parametrize(
    ("tasks", "algorithm", "rate", "share"),
    [
        (Sides, "reptile", "auto", 1 / 3),
        (Sides, "reptile", "meta-sgd", 1),
        (Sides, "fomaml", "fixed", 1),
        ("sinusoid", "reptile", "auto", 1),
    ],
)
def test_reptile_takes_a_third_of_what_is_measured_on_class_labels(tasks, algorithm, rate, share):
    config = TrainConfig(
        tasks=tasks,
        algorithm=algorithm,
        rate=rate,
        hidden=(6,),
        steps=1,
        iterations=1,
        meta_lr=0.01,
    )
    task_set = load_tasks(config)
    config = filled(config, task_set.description)
    advice = measure_rates(config, task_set, num_tasks=8)
    record = choose_rates(config, task_set, advice=advice)
    expected = learned_start(advice)[0] if rate == "meta-sgd" else advice.alpha_chosen
    assert record["alpha_chosen"] == pytest.approx(share * expected)
    assert record["alpha_reason"].startswith("a third") == (share < 1)
