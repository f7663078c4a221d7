"""The lean derivatives against the plain one, to the last digits that float64 has, and where they must refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._errors import InputError
from metastep._types import Batch, Episode, MetaParams
from metastep.adapt import GradientAdapter
from metastep.metagrad import DERIVATIVES, Exact
from metastep.models import Objective, conv4, mlp
from metastep.tasks import FewShot, Sinusoid, batch_of_episodes

# Little optimisation: compiling is all the time that these tests take.
UNHURRIED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LEAN = tuple(name for name in DERIVATIVES if name != "plain")


def regression(curvature=0):
    model = mlp((1,), 1, hidden=(6, 5), activation=jnp.tanh)
    return model, "regression", Sinusoid(shots=5, queries=4, curvature=curvature)


def convolution(curvature=0):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    family = FewShot(images, np.full(3, 4), ways=3, shots=1, queries=2, curvature=curvature)
    return conv4((8, 8, 1), 3, filters=2), "classification", family


def meta_gradient(problem, derivative, *, steps, head=False, learned=False, curvature=0):
    """Outcome and meta-gradient of two tasks, one mapped over the other as in training."""
    model, kind, family = problem(curvature)
    objective = Objective.of(model.apply, kind)
    adapter = GradientAdapter(steps, model.is_head if head else None)
    params = jax.jit(model.init)(jax.random.key(1))
    rates = jax.tree.map(lambda leaf: jnp.full_like(leaf, np.log(0.2)), params)
    meta = MetaParams(params, rates if learned else None)
    rate = (lambda m: jax.tree.map(jnp.exp, m.rates)) if learned else lambda m: jnp.asarray(0.2)
    rule = Exact(derivative)

    def compute(meta):
        episodes = batch_of_episodes(family, jax.random.key(2), 2)
        return jax.vmap(lambda e: rule(objective, adapter, rate, meta, e))(episodes)

    return jax.jit(compute).lower(meta).compile(UNHURRIED)(meta)


def check_equal(found, expected):
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max())


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        # a loop of steps, D_h apart from D_in, and a rate for each weight
        (regression, {"steps": 7, "curvature": 6, "learned": True}),
        (convolution, {"steps": 1}),
        # ANIL: the body has a gradient, but does not adapt
        (regression, {"steps": 2, "head": True}),
    ],
)
def test_lean_derivatives_equal_the_plain_one(problem, options):
    expected = meta_gradient(problem, "plain", **options)
    for derivative in LEAN:
        check_equal(meta_gradient(problem, derivative, **options), expected)
    # Power: what another Hessian does to the result is far outside the tolerance.
    if options.pop("curvature", 0):
        own = meta_gradient(problem, "plain", **options)[1].params
        leaves = zip(*map(jax.tree.leaves, (own, expected[1].params)), strict=True)
        assert min(float(jnp.max(jnp.abs(a - b))) for a, b in leaves) > 1e-4


def test_a_loss_that_is_used_itself_gets_its_gradient():
    # The support loss along the path is part of what comes out; its derivative is the gradient it came with.
    model, kind, family = regression()
    objective, adapter = Objective.of(model.apply, kind), GradientAdapter(2)
    params = jax.jit(model.init)(jax.random.key(1))
    episode = jax.jit(lambda key: family.sample(key))(jax.random.key(2))

    def of_path(params, derivative):
        gradient = Exact(derivative).inner_gradient(objective, episode, jnp.asarray(0.1))
        adapted, info = adapter(gradient, params, jnp.asarray(0.1))
        return jnp.sum(info.losses) + objective(adapted, episode.query)

    slope = jax.jit(jax.grad(of_path), static_argnums=1)
    expected = slope(params, "plain")
    for derivative in LEAN:
        check_equal(slope(params, derivative), expected)


def test_forward_refuses_a_gradient_to_data():
    # A zero in its place would be a wrong number without a word.
    model, kind, family = regression()
    objective = Objective.of(model.apply, kind)
    params = jax.jit(model.init)(jax.random.key(1))
    episode = jax.jit(lambda key: family.sample(key))(jax.random.key(2))

    def of_data(shift, derivative):
        support = Batch(episode.support.x + shift, episode.support.y)
        task, _ = Exact(derivative)(
            objective,
            GradientAdapter(1),
            lambda meta: jnp.asarray(0.1),
            MetaParams(params),
            Episode(support, episode.query),
        )
        return task.loss

    zero = jnp.zeros(())
    with pytest.raises(InputError, match=r"'forward' gives no gradient with respect to the data"):
        jax.grad(of_data)(zero, "forward")
    slope = jax.jit(jax.grad(of_data), static_argnums=1)
    expected = float(slope(zero, "plain"))
    assert expected != 0
    assert float(slope(zero, "checkpointed")) == pytest.approx(expected)


def test_an_unknown_derivative_is_named():
    with pytest.raises(InputError, match="derivative is 'reverse'; choose one of: checkpointed"):
        Exact("reverse")


def test_float32_stays_float32():
    model, kind, family = regression()
    objective = Objective.of(model.apply, kind)
    to32 = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)  # noqa: E731
    meta = to32(MetaParams(jax.jit(model.init)(jax.random.key(0))))
    episode = to32(jax.jit(lambda key: family.sample(key))(jax.random.key(1)))
    rate = lambda meta: jnp.float32(0.1)  # noqa: E731
    for derivative in LEAN:
        rule = Exact(derivative)
        _, shapes = jax.eval_shape(  # dtypes are decided while tracing
            lambda m, e, r=rule: r(objective, GradientAdapter(2), rate, m, e), meta, episode
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
