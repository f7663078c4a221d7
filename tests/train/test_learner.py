"""How many tasks go side by side, on the CPU that the tests run on."""

import dataclasses

import jax
import numpy as np
import pytest

from metastep.models import conv4, mlp
from metastep.rates import FactoredRate
from metastep.train import TrainConfig, build_learner, load_tasks, side_by_side
from metastep.train.config import default_rate, fill_defaults
from metastep.train.learner import mean_alpha
from metastep.train.state import initial_state
from metastep.train.step import compile_advance

DENSE = mlp((1,), 1)


@pytest.mark.parametrize(
    ("num_tasks", "width"),
    [(None, None), (4, None), (25, None), (26, 13), (32, 16), (100, 25), (101, None), (202, None)],
)
def test_dense_models_go_in_groups_that_divide_their_tasks(num_tasks, width):
    assert side_by_side(DENSE, None, num_tasks) == width


@pytest.mark.parametrize(
    ("width", "num_tasks", "expected"),
    [
        (100, 25, 5), (100, None, 8),  # in float64, as tests are: 12 of them have a megabyte
        (70, 25, None), (70, 100, 25), (70, None, None),
        (140, 25, 5), (140, 4, None), (140, 23, None), (140, 12, 6), (140, None, 4),
        (400, 25, 5), (400, 5, None), (400, 16, 4), (400, 23, 1), (400, None, 4),
    ],
)  # fmt: skip
def test_wide_models_go_in_groups_that_stay_in_the_cache(width, num_tasks, expected):
    assert side_by_side(mlp((1,), 1, (width, width)), None, num_tasks) == expected


def test_convolutions_go_one_by_one_and_a_choice_wins():
    convolutional = conv4((28, 28, 1), 5)
    assert side_by_side(convolutional, None, 100) == 1
    assert side_by_side(convolutional, 4, 100) == 4
    assert side_by_side(DENSE, 50, 100) == 50


def test_groups_change_nothing_but_rounding():
    def trained(tasks_at_once: int | None):
        config = TrainConfig(
            tasks="sinusoid", hidden=(8,), tasks_per_step=40, iterations=20, alpha=0.01,
            tasks_at_once=tasks_at_once,
        )  # fmt: skip
        task_set = load_tasks(config)
        learner = build_learner(
            fill_defaults(config, task_set.description, "mlp"), task_set.description, 0.01, 1e-2
        )
        start = initial_state(learner, jax.random.key(0), 20)
        after = compile_advance(learner)(task_set.splits.train, jax.random.key(1), start, 20)
        return learner.tasks_at_once, jax.tree.leaves(after.meta)

    (width, grouped), (_, together) = trained(None), trained(40)
    assert width == 20
    for one, other in zip(grouped, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_the_tasks_of_a_meta_step_are_drawn_once():
    config = TrainConfig(tasks="sinusoid", hidden=(8,), tasks_per_step=4, iterations=20)
    task_set = load_tasks(config)
    learner = build_learner(
        fill_defaults(config, task_set.description, "mlp"), task_set.description, 0.01, 1e-2
    )
    key, start = jax.random.key(0), initial_state(learner, jax.random.key(0), 20)
    advance = compile_advance(learner)
    program = advance.lower(task_set.splits.train, key, start, 20).compile()
    # Once for the support set and once for the query set, not in everything that sees their labels.
    assert program.as_text().count(" sine(") <= 2


def test_a_program_serves_every_start_of_a_rate_and_nothing_else():
    def program(**changes):
        config = TrainConfig(tasks="sinusoid", hidden=(8,), tasks_per_step=4, iterations=20)
        config = dataclasses.replace(config, **{"rate": "meta-sgd"} | changes)
        task_set = load_tasks(config)
        resolved = fill_defaults(config, task_set.description, "mlp")
        alpha = resolved.alpha if isinstance(resolved.alpha, float) else 0.01
        return compile_advance(build_learner(resolved, task_set.description, alpha, 1e-2))

    first = program(alpha=0.01)
    assert program(alpha=0.02) is first
    others = ({"hidden": (9,)}, {"tasks_per_step": 5}, {"algorithm": "fomaml"}, {"back_offs": 3})
    for changes in others:
        assert program(alpha=0.01, **changes) is not first
    # This one's start is in its program, not only in the state it begins with.
    watching = program(rate="label-free", alpha=0.01)
    assert program(rate="label-free", alpha=0.02) is not watching


@pytest.mark.parametrize("rate", ["shared-meta-sgd", "rising-meta-sgd"])
def test_a_shared_rate_falls_below_its_start_only_where_it_may(rate):
    config = TrainConfig(tasks="sinusoid", hidden=(8,), tasks_per_step=8, iterations=40, rate=rate)
    task_set = load_tasks(config)
    resolved = fill_defaults(config, task_set.description, "mlp")
    learner = build_learner(resolved, task_set.description, 0.05, 0.1)
    state = initial_state(learner, jax.random.key(0), 40)
    advance, shared = compile_advance(learner), []
    for until in range(1, 41):
        state = advance(task_set.splits.train, jax.random.key(1), state, until)
        shared.append(float(np.exp(state.meta.rates.shared)))
    if rate == "rising-meta-sgd":
        assert min(shared) == pytest.approx(0.05, rel=1e-12)
    else:
        assert shared[-1] < 0.05 / 2
    own = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.meta.rates.own)])
    assert own.mean() < -0.1  # factors fall each by itself


@pytest.mark.parametrize("optimizer", ["relative-adam", "adam"])
def test_rates_of_a_body_that_does_not_adapt_would_change_nothing(optimizer):
    config = TrainConfig(
        tasks="sinusoid", hidden=(8,), tasks_per_step=8, iterations=30, algorithm="anil", steps=2,
        optimizer=optimizer, rate="shared-meta-sgd",
    )  # fmt: skip
    task_set = load_tasks(config)
    learner = build_learner(
        fill_defaults(config, task_set.description, "mlp"), task_set.description, 0.05, 0.1
    )
    ends = []
    for rate in (learner.rate, FactoredRate(0.05)):
        each = dataclasses.replace(learner, rate=rate)
        start = initial_state(each, jax.random.key(0), 30)
        ends.append(compile_advance(each)(task_set.splits.train, jax.random.key(1), start, 30))
    few, all_of_them = (len(jax.tree.leaves(end.meta.rates)) for end in ends)
    assert (few, all_of_them) == (3, 5)
    for one, other in zip(*(jax.tree.leaves(end.meta.params) for end in ends), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
    shown = [mean_alpha(learner, end.meta, end.rate_state) for end in ends]
    np.testing.assert_allclose(*shown, rtol=1e-9)


@pytest.mark.parametrize(
    ("kind", "given", "rate"),
    [
        ("classification", {}, "rising-meta-sgd"), ("regression", {}, "shared-meta-sgd"),
        ("classification", {"rate": "meta-sgd"}, "meta-sgd"), ("classification", {"alpha": 0.1}, "fixed"),
        ("classification", {"algorithm": "fomaml"}, "shared-meta-sgd"),
        ("classification", {"algorithm": "hfmaml"}, "rising-meta-sgd"),
        ("classification", {"algorithm": "reptile"}, "fixed"),
        ("regression", {"algorithm": "fomaml"}, "shared-meta-sgd"), ("regression", {"algorithm": "reptile"}, "fixed"),
        ("classification", {"algorithm": "erm"}, "fixed"), ("regression", {"alpha": 0.1}, "fixed"),
    ],
)  # fmt: skip
def test_what_becomes_of_alpha_depends_on_what_is_asked(kind, given, rate):
    assert default_rate(TrainConfig(tasks="sinusoid", **given), kind) == rate
