"""The ReLU with a second derivative: its jets, and whether meta-gradients through it point where the mean goes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree

from metastep._types import Batch, Episode, MetaParams
from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact
from metastep.models import Model, Objective, has_plain_relu, mlp, relu, with_curved_relu

PLACES = np.array([-7.0, -0.31, -0.29, -1e-3, 0.0, 1e-3, 0.29, 0.31, 7.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_value_and_slope_are_those_of_jax(dtype):
    x = jnp.asarray(PLACES, dtype)
    ours, theirs = (jax.vmap(jax.value_and_grad(function))(x) for function in (relu, jax.nn.relu))
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("outer", [jax.grad, jax.jacfwd])
@pytest.mark.parametrize("inner", [jax.grad, jax.jacfwd])
def test_the_second_derivative_is_a_window_and_the_third_nothing(outer, inner):
    second = outer(inner(relu))
    found = jax.jit(jax.vmap(second))(jnp.asarray(PLACES))
    np.testing.assert_allclose(found, np.where(np.abs(PLACES) < 0.3, 1 / 0.6, 0), rtol=1e-15)
    assert not jax.vmap(jax.grad(second))(jnp.asarray(PLACES)).any()
    # Over the window it adds up to the jump of the slope.
    steps = np.linspace(-1, 1, 20_000, endpoint=False) + 5e-5
    assert np.mean(jax.vmap(second)(steps)) * 2 == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("w", [-1.0, -0.3, 0.2])
def test_the_mean_of_meta_gradients_is_the_gradient_of_the_mean(w):
    # One weight, support loss relu(w - t) with t normal, query loss the square:
    #     F(w) = E (w - alpha 1[t < w])^2 = w^2 + (alpha^2 - 2 alpha w) Phi(w)
    alpha = 1.5
    t = jnp.asarray(scipy.stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000))
    density, share = scipy.stats.norm.pdf(w), scipy.stats.norm.cdf(w)
    expected = 2 * w - 2 * alpha * share + (alpha**2 - 2 * alpha * w) * density

    def mean_slope(activation):
        adapted = lambda w, t: w - alpha * jax.grad(activation)(w - t)  # noqa: E731
        return jnp.mean(jax.vmap(jax.grad(lambda w, t: adapted(w, t) ** 2), (None, 0))(w, t))

    jumps = (alpha**2 - 2 * alpha * w) * density
    # On either side of a kink the window meets another density: the error is of the order of its width.
    assert mean_slope(relu) == pytest.approx(expected, abs=jumps / 10)
    assert mean_slope(jax.nn.relu) == pytest.approx(expected - jumps, abs=1e-4)
    assert jumps > 0.5


def test_meta_gradients_of_a_network_agree_with_differences_of_the_mean_loss():
    # 8,000 tasks of two out of 40 classes of 32 numbers, float64. Differences are paired task by task, so that 4.5
    # standard errors fail once in 10^5 seeds; jax.nn.relu is 9 of them away.
    dim, tasks, alpha, width = 32, 8_000, 3.0, 0.02
    centres = jax.random.normal(jax.random.key(5), (40, dim), float)
    models = {
        "ours": mlp((dim,), 2, (20,)),
        "theirs": mlp((dim,), 2, (20,), jax.nn.relu),
    }
    start, unravel = ravel_pytree(models["ours"].init(jax.random.key(0)))
    start = 2 * start.astype(float)

    def episode(key):
        which_key, noise_key = jax.random.split(key)
        labels = jnp.tile(jnp.arange(2), 10)
        which = jax.random.choice(which_key, 40, (2,), replace=False)
        x = centres[which[labels]] + jax.random.normal(noise_key, (20, dim), float)
        return Episode(Batch(x[:10], labels[:10]), Batch(x[10:], labels[10:]))

    def outcome(name, flat, key):
        objective = Objective.of(models[name].apply, "classification")
        rate = lambda meta: jnp.asarray(alpha)  # noqa: E731
        meta = MetaParams(unravel(flat))
        found, gradient = Exact()(objective, GradientAdapter(1), rate, meta, episode(key))
        return found.loss, ravel_pytree(gradient)[0]

    def over_tasks(name, flat, seed):
        keys = jax.random.split(jax.random.key(seed), tasks)
        return jax.jit(jax.vmap(lambda key: outcome(name, flat, key)))(keys)

    along = over_tasks("ours", start, 1)[1].mean(axis=0)
    along /= jnp.linalg.norm(along)
    ahead, behind = (over_tasks("ours", start + sign * width * along, 2)[0] for sign in (1, -1))
    for name in models:
        off = over_tasks(name, start, 2)[1] @ along - (ahead - behind) / (2 * width)
        in_errors = float(off.mean() / off.std() * tasks**0.5)
        assert in_errors < -6 if name == "theirs" else abs(in_errors) < 4.5


def test_the_plain_one_is_found_by_any_name():
    scanned = lambda x: jax.lax.scan(lambda c, _: (jax.nn.relu(c), None), x, length=2)[0]  # noqa: E731
    ones = jnp.ones(3)
    assert has_plain_relu(jax.jit(jax.vmap(scanned)), ones)
    for other in (relu, jax.nn.relu6, jax.nn.gelu, lambda x: jnp.maximum(x, 0)):
        assert not has_plain_relu(other, ones)


def _everything(params, x):
    """A network in which an interpreter meets loops, branches, constants, custom derivatives and several outputs."""
    scale = jnp.asarray(np.linspace(0.5, 1.5, 4))  # a constant of the program
    low, high = jnp.split(jax.jit(lambda h: jax.nn.relu(h) * scale)(x @ params["in"]), 2, axis=1)
    high, sums = jax.lax.scan(lambda c, _: (jnp.tanh(c), c.sum()), high, length=2)
    high = jax.lax.fori_loop(0, 2, lambda i, c: jax.nn.relu(c) - 0.3, high)
    low = jax.lax.cond(x[0, 0] > 0, lambda h: jax.nn.relu(h - 0.2), jnp.cos, low)
    both = (
        jax.checkpoint(lambda h: jax.nn.silu(h) + jax.nn.relu6(h) + jax.nn.relu(h - 0.5))(
            low + high
        )
        + sums.mean()
    )
    return both @ jax.vmap(lambda w: w + 0.0 * jax.nn.logsumexp(x))(params["out"])


def test_another_relu_changes_second_derivatives_alone(rng):
    plain = Model(lambda key: {"in": jnp.ones((3, 4)), "out": jnp.ones((2, 1))}, _everything)
    curved = with_curved_relu(plain)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), plain.init(None))
    x = jnp.asarray(rng.normal(size=(5, 3)))

    def derivatives(model):
        flat, unravel = ravel_pytree(params)
        loss = lambda flat, x: jnp.sum(model.apply(unravel(flat), x) ** 2)  # noqa: E731
        first = jax.jit(jax.value_and_grad(loss, (0, 1)))(flat, x)
        batched = jax.vmap(loss, (None, 0))(flat, jnp.stack([x, -x]))
        return (first, batched), jax.hessian(loss)(flat, x)

    (found, second), (expected, other) = derivatives(curved), derivatives(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, expected)
    np.testing.assert_allclose(second, second.T, rtol=1e-9, atol=1e-9)
    assert np.abs(second - other).max() > 0.1
    written = dataclasses.replace(plain, apply=lambda p, x: _everything_with_ours(p, x))
    np.testing.assert_allclose(second, derivatives(written)[1], rtol=1e-10, atol=1e-10)


def _everything_with_ours(params, x):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jax.nn, "relu", relu)
        return _everything(params, x)


def test_models_without_a_plain_relu_are_left_alone():
    model = mlp((2,), 1, (3,))
    params, x = model.init(jax.random.key(0)), jnp.ones((4, 2))
    found, expected = (
        jax.make_jaxpr(each.apply)(params, x) for each in (with_curved_relu(model), model)
    )
    assert str(found) == str(expected)
