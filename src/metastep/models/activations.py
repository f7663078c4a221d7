"""ReLU for training through an inner step: the usual value and slope, and the second derivative that its kink has."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from metastep._primitives import jitted

_KINK = 0.3
"""Half the width over which the jump in the slope is spread; from 0.1 to 1 models train alike."""


@jax.custom_jvp
def relu(x: Array) -> Array:
    """max(x, 0), whose slope jumps at 0, and whose second derivative says so: 1 / 0.6 where |x| < 0.3.

    Value and slope are those of `jax.nn.relu`, so that losses and inner steps are the same to the bit. The second
    derivative of that one is 0, though, and a meta-gradient through an inner step then misses that the inner gradient
    jumps when an example crosses a kink. One step of one task hardly ever meets a kink and can do without. The mean
    over tasks, which is what training follows, has a slope, and the jumps are part of it: without them meta-gradients
    with large adaptation rates or many inputs point elsewhere, even uphill. Spread over an interval, the jumps are
    right in the mean, as in any estimate of a density by a window. Not in the papers.

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
    return "relu" in jitted(function, *arguments)
