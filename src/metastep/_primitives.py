"""What a function is made of, found by tracing it: nothing is run."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def primitives(function: Callable, *arguments: Any) -> set[str]:
    """Names of the operations that `function` calls for arguments of these shapes, loops and branches included."""
    return {equation.primitive.name for equation in _traced(function, *arguments)}


def jitted(function: Callable, *arguments: Any) -> set[str]:
    """Names of the compiled functions that `function` calls, shapes being these: "relu" of `jax.nn.relu`."""
    equations = _traced(function, *arguments)
    return {equation.params["name"] for equation in equations if equation.primitive.name == "jit"}


def _traced(function: Callable, *arguments: Any) -> Iterator[JaxprEqn]:
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    return _equations(jax.make_jaxpr(function)(*shapes).jaxpr)


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _equations(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _is_program(value: Any) -> bool:
    return isinstance(value, (Jaxpr, ClosedJaxpr))
