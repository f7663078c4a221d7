"""Directional derivatives of any function that has a gradient, also where JAX has no forward mode for it.

A function with a backward pass of its own (`jax.custom_vjp`) has none: hand-written kernels, solvers of differential
equations, layers that save memory.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax.tree_utils as otu
from jaxtyping import Array, PyTree

from metastep._primitives import primitives

Function = Callable[[PyTree], Array]


def push_forward(f: Function, x: PyTree, tangent: PyTree) -> tuple[Array, Array]:
    """f(x) and J tangent, with J the Jacobian of f at x; by the ways of `linearize`."""
    if has_forward_mode(f, x):
        return jax.jvp(f, (x,), (tangent,))
    value, push = linearize(f, x)
    return value, push(tangent)


def linearize(f: Function, x: PyTree) -> tuple[Array, Function]:
    """f(x) and the function tangent -> J tangent, for many tangents.

    In forward mode, as `jax.linearize`, or else by differentiating the backward pass, which is linear and has J for
    its derivative; exact, too. Where that pass has no derivative in turn, by a central difference of f.
    """
    if has_forward_mode(f, x):
        return jax.linearize(f, x)
    by = _through_the_backward_pass if has_second_derivative(f, x) else _by_central_difference
    return by(f, x)


def has_forward_mode(f: Function, x: PyTree) -> bool:
    """Whether no part of f brings a backward pass of its own; JAX itself objects late, and only where it compiles."""
    return "custom_vjp_call" not in primitives(f, x)


def has_second_derivative(f: Function, x: PyTree) -> bool:
    """Whether the backward pass of f can be differentiated in turn."""
    try:
        jax.eval_shape(lambda tangent: _through_the_backward_pass(f, x)[1](tangent), x)
    except Exception:  # of whatever kind the author of that pass, or JAX, says "no derivative" by
        return False
    return True


def _through_the_backward_pass(f: Function, x: PyTree) -> tuple[Array, Function]:
    value, pull = jax.vjp(f, x)
    _, push = jax.vjp(lambda cotangent: pull(cotangent)[0], jnp.zeros_like(value))
    return value, lambda tangent: push(tangent)[0]


def _by_central_difference(f: Function, x: PyTree) -> tuple[Array, Function]:
    """J t = (f(x + h t) - f(x - h t)) / 2h, with roundings of f as small as its third derivative lets them be."""

    def push(tangent: PyTree) -> Array:
        length = otu.tree_norm(tangent)
        step = jnp.cbrt(jnp.finfo(length.dtype).eps) * (1 + otu.tree_norm(x))
        h = step / jnp.where(length > 0, length, 1)
        ahead, behind = (f(otu.tree_add_scale(x, sign * h, tangent)) for sign in (1, -1))
        return (ahead - behind) / (2 * h).astype(ahead.dtype)

    return f(x), push
