"""A model in bfloat16: rounded inside and nowhere else, with meta-gradients that still point the same way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._errors import InputError
from metastep._types import MetaParams
from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact, TaskGradient, mean_over_tasks
from metastep.models import Model, Objective, conv4, in_bfloat16, mlp
from metastep.tasks import Sinusoid, batch_of_episodes
from metastep.train import RunFolder, TrainConfig, evaluate_run, load_run, train

_EPSILON = 2.0**-8  # of bfloat16


def images(rng, count=10):
    return jnp.asarray(rng.normal(size=(count, 28, 28, 1)), jnp.float32)


def single(params):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)


@pytest.mark.parametrize("pooling", ["stride", "max"])
def test_outputs_are_those_of_the_model_but_for_rounding(rng, pooling):
    model = conv4((28, 28, 1), 5, filters=8, pooling=pooling)
    lower = in_bfloat16(model)
    params, x = single(model.init(jax.random.key(0))), images(rng)
    full, rounded = model.apply(params, x), lower.apply(params, x)
    assert rounded.dtype == jnp.float32
    assert lower.features(params, x).dtype == jnp.float32
    scale = float(jnp.std(full))
    error = float(jnp.sqrt(jnp.mean(jnp.square(full - rounded))))
    assert 0 < error < 16 * _EPSILON * scale
    np.testing.assert_allclose(
        lower.head(params, lower.features(params, x)), rounded, rtol=4 * _EPSILON, atol=1e-2
    )


def test_all_products_are_in_bfloat16(rng):
    lower = in_bfloat16(conv4((28, 28, 1), 5, filters=8))
    params = single(lower.init(jax.random.key(0)))

    def loss(params, x):
        return jnp.sum(jnp.square(lower.apply(params, x)))

    program = str(jax.make_jaxpr(jax.grad(loss))(params, images(rng)))
    products = [line for line in program.splitlines() if " dot_general[" in line]
    assert len(products) >= 5
    assert all("bf16[" in line.split("=")[0] for line in products)


def test_tokens_and_counts_among_the_parameters_are_left_alone():
    model = Model(
        init=lambda key: {
            "table": jnp.eye(4, dtype=jnp.float32),
            "shift": jnp.asarray(1, jnp.int32),
        },
        apply=lambda p, x: p["table"][x + p["shift"]],
    )
    lower = in_bfloat16(model)
    x = jnp.asarray([0, 2], jnp.int32)
    np.testing.assert_array_equal(lower.apply(model.init(None), x), np.eye(4)[[1, 3]])


def test_a_model_without_floating_point_parameters_is_refused():
    lower = in_bfloat16(
        Model(init=lambda key: jnp.asarray(1), apply=lambda p, x: p * x, name="counter")
    )
    with pytest.raises(InputError, match="counter has no floating-point parameters"):
        lower.apply(jnp.asarray(1), jnp.ones(3))


@pytest.mark.parametrize("steps", [1, 3])
def test_meta_gradients_point_the_same_way(steps):
    model = mlp((1,), 1, (40, 40))
    episodes = batch_of_episodes(Sinusoid(shots=10, queries=10), jax.random.key(1), 25)
    meta, found = MetaParams(model.init(jax.random.key(0)), jnp.asarray(0.0)), []
    for chosen in (model, in_bfloat16(model)):
        objective = Objective.of(chosen.apply, "regression")
        bound = TaskGradient(
            Exact(), objective, GradientAdapter(steps), lambda meta: jnp.asarray(0.01), meta
        )
        _, gradient = jax.jit(lambda e, bound=bound: mean_over_tasks(bound, e))(episodes)
        found.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient.params)]))
    exact, rounded = found
    assert rounded.dtype == exact.dtype
    cosine = exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded)
    assert 0.999 < cosine < 1 - 1e-12
    assert np.linalg.norm(rounded) == pytest.approx(np.linalg.norm(exact), rel=0.03)


def test_a_run_learns_as_much_and_is_judged_in_the_precision_it_was_trained_in(tmp_path):
    losses = {}
    for precision in ("float32", "bfloat16"):
        config = TrainConfig(tasks="sinusoid", precision=precision, iterations=1000, eval_tasks=50)
        train(config, RunFolder(tmp_path / precision))
        run = load_run(RunFolder(tmp_path / precision))
        assert run.config.precision == precision
        losses[precision] = evaluate_run(run, num_tasks=400)[0].after.loss.mean
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] < 1.25 * losses["float32"]


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(
        InputError, match="--precision is 'float16'; choose one of: bfloat16, float32"
    ):
        train(TrainConfig(tasks="sinusoid", precision="float16"), RunFolder(tmp_path / "run"))
