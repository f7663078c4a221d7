"""Jacobian-vector products of functions with and without a forward mode, and with a backward pass of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._derivatives import (
    has_forward_mode,
    has_second_derivative,
    linearize,
    push_forward,
)


def own_backward(pull):
    """tanh with a backward pass of its own."""
    function = jax.custom_vjp(jnp.tanh)
    function.defvjp(lambda x: (jnp.tanh(x),) * 2, lambda y, g: (pull(1 - y * y, g),))
    return function


def looped(slope, g):
    """The same number by a loop of unknown length, which JAX does not differentiate backwards."""
    return jax.lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, slope * s[1]), (0, g))[1]


SMOOTH = own_backward(lambda slope, g: slope * g)
LOOPED = own_backward(looped)


def network(activation, x):
    """(weights) -> outputs, with the activation within a loop, as scanned layers have it."""

    def outputs(params):
        hidden, _ = jax.lax.scan(lambda h, w: (activation(h @ w), None), x, params["layers"])
        return hidden @ params["last"]

    return outputs


@pytest.fixture
def problem(rng):
    params = {"layers": rng.normal(size=(3, 4, 4)) / 2, "last": rng.normal(size=(4, 2))}
    tangent = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
    return jnp.asarray(rng.normal(size=(5, 4))), jax.tree.map(jnp.asarray, params), tangent


@pytest.mark.parametrize(
    ("activation", "forward", "second", "tolerance"),
    [(jnp.tanh, True, True, 0), (SMOOTH, False, True, 1e-12), (LOOPED, False, False, 1e-8)],
)
@pytest.mark.parametrize("wrapped", [lambda f: f, jax.jit])
def test_products_are_those_of_the_function_itself(
    problem, activation, forward, second, tolerance, wrapped
):
    """Forward mode, the derivative of the backward pass, and differences: each where nothing before it does."""
    x, params, tangent = problem
    f = network(activation, x)
    assert has_forward_mode(f, params) is forward
    assert has_second_derivative(f, params) is second
    value, change = jax.jvp(network(jnp.tanh, x), (params,), (tangent,))
    found = wrapped(lambda p, t: push_forward(f, p, t))(params, tangent)
    np.testing.assert_allclose(found[0], value, rtol=1e-13)
    np.testing.assert_allclose(found[1], change, rtol=tolerance or 1e-13, atol=tolerance)
    pushed = wrapped(lambda p, t: linearize(f, p)[1](t))(params, tangent)
    np.testing.assert_allclose(pushed, change, rtol=tolerance or 1e-13, atol=tolerance)


@pytest.mark.parametrize("activation", [SMOOTH, LOOPED])
def test_products_of_many_tangents_at_once(problem, activation):
    x, params, tangent = problem
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, 0 * leaf]), tangent)
    found = jax.vmap(linearize(network(activation, x), params)[1])(many)
    _, change = jax.jvp(network(jnp.tanh, x), (params,), (tangent,))
    np.testing.assert_allclose(found, jnp.stack([change, 2 * change, 0 * change]), atol=1e-7)


def test_a_function_s_own_fault_stays_one(problem):
    _, params, tangent = problem
    with pytest.raises(TypeError, match="incompatible shapes"):
        push_forward(lambda p: p["last"] + jnp.zeros((3, 3)), params, tangent)
