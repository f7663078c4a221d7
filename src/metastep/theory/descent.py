"""What gradient descent near a minimum does, measured by running it: a check on the limits of `stability`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from metastep._errors import InputError, check_count
from metastep.theory._inputs import check_array, check_scalar, is_concrete, to_common_dtype
from metastep.theory.citations import source

__all__ = ["largest_contracting_rate", "largest_rate", "log_contraction"]


@source("metastep", "growth of the distance from a minimum, by running the descent", "derived")
def log_contraction(
    gradient: Callable[[Float[Array, " dim"]], Float[Array, " dim"]],
    start: ArrayLike,
    rate: ArrayLike,
    steps: int,
) -> Float[Array, ""]:
    """Mean log10 of the factor by which a step changes the distance from a minimum at the origin.

    For w <- w - rate A w with symmetric A it tends to log10 max |1 - rate lambda| over the eigenvalues of A:
    below zero the descent converges, above it diverges.

    The mean is over the second half of the steps. The distance is divided out after each of them: a run that
    diverges does not overflow, and one that converges does not vanish. So the gradient has to be linear.

    Parameters
    ----------
    gradient : linear, with gradient(0) = 0
    start : (dim,) where the descent begins, with a share of every direction
    rate : step size
    steps : number of steps, at least 2

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If `start` has another rank or is not finite, `rate` is not a number or `steps` is below 2.

    References
    ----------
    Derived, to check `max_meta_rate` (Takagi et al., condition for the meta-learning rate).
    """
    check_count("steps", steps, minimum=2)
    place, rate = to_common_dtype(check_array("start", start, "dim"), check_scalar("rate", rate))
    tiny = jnp.finfo(place.dtype).tiny

    def step(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        w, total = carry
        moved = w - rate * gradient(w)
        length = jnp.maximum(jnp.linalg.norm(moved), tiny)
        counts = (index >= steps // 2).astype(w.dtype)
        return moved / length, total + counts * jnp.log10(length)

    total = jax.lax.fori_loop(0, steps, step, (place, jnp.zeros_like(rate)))[1]
    return total / (steps - steps // 2)


@source("metastep", "bisection on a log scale", "derived")
def largest_rate(
    converges: Callable[[Float[Array, ""]], Bool[Array, ""]],
    low: ArrayLike,
    high: ArrayLike,
    halvings: int = 24,
) -> Float[Array, ""]:
    """The largest rate that converges, where all below it do, by bisection of [low, high] on a log scale.

    Parameters
    ----------
    converges : rate -> whether it does, in JAX
    low, high : rates between which it changes, 0 < low < high
    halvings : the ratio of the ends is known to (high / low)^(2^-halvings) in the end

    Returns
    -------
    Scalar, 0 if `low` does not converge. It has converged; what is beyond it by the ratio above has not.

    Raises
    ------
    InputError
        If an end is not a number, not 0 < low < high, or `halvings` is below 1.

    References
    ----------
    Derived, to check `max_adaptation_rate` and `max_meta_rate` (Takagi et al.).
    """
    check_count("halvings", halvings)
    first, last = to_common_dtype(check_scalar("low", low), check_scalar("high", high))
    if is_concrete(first) and is_concrete(last) and not 0 < np.asarray(first) < np.asarray(last):
        raise InputError(f"low is {first:.6g} and high {last:.6g}; it must be 0 < low < high")

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        below, above = ends
        middle = jnp.sqrt(below * above)
        good = converges(middle)
        return jnp.where(good, middle, below), jnp.where(good, above, middle)

    found, _ = jax.lax.fori_loop(0, halvings, halve, (first, last))
    return jnp.where(converges(first), found, jnp.zeros_like(found))


@source("metastep", "where descent stops converging, by running it", "derived")
def largest_contracting_rate(
    gradient: Callable[[Float[Array, " dim"]], Float[Array, " dim"]],
    start: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    steps: int,
    halvings: int = 24,
) -> Float[Array, ""]:
    """The largest step size at which descent along a linear gradient converges, measured by running it.

    The largest rate with `log_contraction` < 0: for w <- w - rate A w it is 2 / lambda_max(A), if A is positive.

    Parameters
    ----------
    gradient : linear, with gradient(0) = 0
    start : (dim,) where the descent begins, with a share of every direction
    low, high : rates between which it stops converging, 0 < low < high
    steps : number of steps of each run, at least 2
    halvings : the ratio of the ends is known to (high / low)^(2^-halvings) in the end

    Returns
    -------
    Scalar, 0 if `low` does not converge.

    Raises
    ------
    InputError
        As for `log_contraction` and `largest_rate`.

    References
    ----------
    Derived, to check `max_meta_rate` (Takagi et al.).
    """

    def converges(rate: Array) -> Array:
        return log_contraction(gradient, start, rate, steps) < 0

    return largest_rate(converges, low, high, halvings)
