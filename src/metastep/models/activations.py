"""ReLU for training through an inner step: the usual value and slope, and the second derivative that its kink has."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun
from jaxtyping import Array

from metastep._primitives import equations, is_program
from metastep._types import Params
from metastep.models.core import Model

_KINK = 0.3
"""Half the width over which the jump in the slope is spread, where arguments are of the order of 1."""


@jax.custom_jvp
def relu(x: Array) -> Array:
    """max(x, 0), whose slope jumps at 0, and whose second derivative says so: 1 / 0.6 where |x| < 0.3.

    Value and slope are those of `jax.nn.relu`, so that losses and inner steps are the same to the bit. The second
    derivative of that one is 0, though, and a meta-gradient through an inner step then misses that the inner gradient
    jumps when an example crosses a kink. One step of one task hardly ever meets a kink and can do without. The mean
    over tasks, which is what training follows, has a slope, and the jumps are part of it: without them meta-gradients
    may point elsewhere (`benchmarks/kinks.py`). Spread over an interval, the jumps are right in the mean, as in any
    estimate of a density by a window. Not in the papers.

    Parameters
    ----------
    x : of any shape and floating type

    Examples
    --------
    >>> x = jnp.float32(0.1)
    >>> float(jax.grad(jax.nn.relu)(x)), float(jax.grad(relu)(x))
    (1.0, 1.0)
    >>> float(jax.grad(jax.grad(jax.nn.relu))(x)), round(float(jax.grad(jax.grad(relu))(x)), 3)
    (0.0, 1.667)
    """
    return jnp.maximum(x, 0)


@relu.defjvp
def _relu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return relu(x), _slope(x) * tangent


@jax.custom_jvp
def _slope(x: Array) -> Array:
    return (x > 0).astype(x.dtype)


@_slope.defjvp
def _slope_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    return _slope(x), (jnp.abs(x) < _KINK).astype(x.dtype) * (0.5 / _KINK) * tangent


def has_plain_relu(function: Callable, *arguments: Any) -> bool:
    """Whether `function` calls `jax.nn.relu`, by any name, for arguments of these shapes; it is traced, not run."""
    return any(_is_plain_relu(equation) for equation in equations(function, *arguments))


def with_curved_relu(model: Model) -> Model:
    """The same model with `relu` in place of `jax.nn.relu`: the same outputs and slopes, other second derivatives.

    Parameters
    ----------
    model : of any library. Left alone is what functions with derivatives of their own (`jax.custom_jvp`,
        `jax.custom_vjp`) call: `has_plain_relu` still tells of that

    Examples
    --------
    >>> model = Model(init=lambda key: jnp.ones(()), apply=lambda scale, x: jax.nn.relu(scale * x))
    >>> has_plain_relu(model.apply, jnp.ones(()), jnp.ones(3))
    True
    >>> has_plain_relu(with_curved_relu(model).apply, jnp.ones(()), jnp.ones(3))
    False
    """

    def apply(params: Params, x: Array) -> Array:
        if not has_plain_relu(model.apply, params, x):
            return model.apply(params, x)
        program, shape = jax.make_jaxpr(model.apply, return_shape=True)(params, x)
        outputs = jaxpr_as_fun(_with_ours(program))(*jax.tree.leaves((params, x)))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return dataclasses.replace(model, apply=apply)


def _with_ours(program: Any) -> Any:
    """A program with `relu` wherever it calls `jax.nn.relu`, in loops and branches too."""
    if isinstance(program, ClosedJaxpr):
        return program.replace(jaxpr=_with_ours(program.jaxpr))
    if isinstance(program, Jaxpr):
        return program.replace(eqns=[_replaced(equation) for equation in program.eqns])
    return program


def _replaced(equation: JaxprEqn) -> JaxprEqn:
    if _is_plain_relu(equation):
        place: Any = equation.invars[0].aval
        (ours,) = jax.make_jaxpr(relu)(jax.ShapeDtypeStruct(place.shape, place.dtype)).eqns
        return equation.replace(params=ours.params)
    if equation.primitive.name.startswith("custom_"):
        return equation
    parts = {
        name: jax.tree.map(_with_ours, value, is_leaf=is_program)
        for name, value in equation.params.items()
        if any(is_program(one) for one in jax.tree.leaves(value, is_leaf=is_program))
    }
    return equation.replace(params=equation.params | parts) if parts else equation


def _is_plain_relu(equation: JaxprEqn) -> bool:
    """`jax.nn.relu` is a compiled function of that name with a derivative of its own."""
    if equation.primitive.name != "custom_jvp_call":
        return False
    inner = equation.params["call_jaxpr"].jaxpr.eqns
    return [one.params.get("name") for one in inner] == ["relu"]
