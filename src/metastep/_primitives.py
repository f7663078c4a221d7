"""What a function is made of, found by tracing it: nothing is run."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def primitives(function: Callable, *arguments: Any) -> set[str]:
    """Names of the operations that `function` calls for arguments of these shapes, loops and branches included."""
    return {equation.primitive.name for equation in equations(function, *arguments)}


def equations(function: Callable, *arguments: Any) -> Iterator[JaxprEqn]:
    """All that `function` calls for arguments of these shapes, each call before what it is made of."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    return _equations(jax.make_jaxpr(function)(*shapes).jaxpr)


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(inner):
                yield from _equations(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def is_program(value: Any) -> bool:
    """Whether a parameter of an operation is code, such as the body of a loop."""
    return isinstance(value, (Jaxpr, ClosedJaxpr))
