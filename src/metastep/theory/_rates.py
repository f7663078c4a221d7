"""One formula at one rate or at many: what lets a function of alpha give a whole curve in one call."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from metastep.theory._inputs import as_float_array, check_finite


def check_rates(name: str, value: Any) -> Array:
    """Finite rates of any shape, a single number among them."""
    return check_finite(name, as_float_array(name, value))


def at_rates(formula: Callable[..., Array], rates: Array, *arrays: Array) -> Array:
    """formula(rate, *arrays), a scalar, at every rate: an array of the shape of `rates`.

    Several rates are worked through one after the other, in the memory of one, by a program that is
    compiled once for a formula that is a function of a module.
    """
    if rates.ndim == 0:
        return formula(rates, *arrays)
    return _mapped(formula, rates.ravel(), arrays).reshape(rates.shape)


@partial(jax.jit, static_argnums=0)
def _mapped(formula: Callable[..., Array], rates: Array, arrays: tuple[Array, ...]) -> Array:
    return jax.lax.map(lambda rate: formula(rate, *arrays), rates)
