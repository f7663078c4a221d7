"""Feature maps of the linear theory: from inputs to Phi, one row per example (Zou et al., section 5).

Every map takes inputs with the examples on the last axis but one, or on the last when an input is a
single number, and any axes in front, so that a whole sample of tasks (tasks, shots) is mapped in
one call.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from metastep._errors import InputError, check_choice, check_count
from metastep.theory._inputs import (
    as_float_array,
    check_array,
    check_finite,
    check_positive_values,
    to_common_dtype,
)
from metastep.theory.citations import source

__all__ = [
    "gaussian_features",
    "identity_features",
    "polynomial_features",
    "random_matrix_features",
]

EntryLaw = Literal["normal", "uniform", "exponential"]


@source("zou2022", "section H.3, Phi(X) = X", "as printed")
def identity_features(x: Float[ArrayLike, "... examples dim"]) -> Float[Array, "... examples dim"]:
    """The inputs themselves.

        phi(x) = x

    Parameters
    ----------
    x : (..., examples, dim) inputs

    Returns
    -------
    (..., examples, dim) the same numbers as a floating-point array.

    Raises
    ------
    InputError
        For inputs without a feature axis, empty or not finite.

    References
    ----------
    Zou et al. (2022), section H.3 (fast adaptation distance), as printed.
    """
    return _check_inputs("x", x, least_axes=2)


@source("zou2022", "section H.4.2, random matrices; Example 2", "as printed")
def random_matrix_features(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    law: EntryLaw = "uniform",
    scale: Float[ArrayLike, ""] = 5.0,
) -> Float[Array, "..."]:
    """Features with independent entries.

        uniform: U(-scale, scale);   normal: N(0, scale^2);   exponential: mean scale

    Parameters
    ----------
    key : random key
    shape : (..., examples, dim), each at least 1
    law : "uniform", "normal" or "exponential"
    scale : half-width, standard deviation or mean, > 0; its type is the type of the result

    Returns
    -------
    `shape` features.

    Raises
    ------
    InputError
        For an unknown law, a shape with fewer than two axes or an empty one, or a scale not above
        0.

    References
    ----------
    Zou et al. (2022), section H.4.2 (uniform, scale 5) and section H.3 (all three laws), as
    printed.
    """
    samplers = {
        "uniform": lambda: jax.random.uniform(key, shape, factor.dtype, -1, 1),
        "normal": lambda: jax.random.normal(key, shape, factor.dtype),
        "exponential": lambda: jax.random.exponential(key, shape, factor.dtype),
    }
    check_choice("law", law, samplers)
    if len(shape) < 2:
        raise InputError(
            f"shape is {shape}; it must end in the number of examples and the dimension"
        )
    for size in shape:
        check_count("every size in shape", size)
    factor = check_positive_values("scale", scale)
    return samplers[law]() * factor


@source("zou2022", "section 5.2, Gaussian basis function", "as printed")
def gaussian_features(
    x: Float[ArrayLike, "..."],
    centers: Float[ArrayLike, "dim ..."],
    widths: Float[ArrayLike, "..."],
) -> Float[Array, "... examples dim"]:
    """Gaussian radial basis functions.

        phi_j(x) = exp(-|x - mu_j|^2 / (2 sigma_j^2))

    Parameters
    ----------
    x : (..., examples) single numbers when `centers` is (dim,); (..., examples, inputs) points when
        `centers` is (dim, inputs)
    centers : (dim,) or (dim, inputs) mu
    widths : () or (dim,) sigma > 0

    Returns
    -------
    (..., examples, dim) features in (0, 1].

    Raises
    ------
    InputError
        For shapes that do not match, empty or non-finite arrays, or widths not above 0.

    References
    ----------
    Zou et al. (2022), section 5.2 and H.4.2, as printed.
    """
    middles = check_finite("centers", as_float_array("centers", centers))
    if middles.ndim not in (1, 2) or middles.size == 0:
        raise InputError(f"centers has shape {middles.shape}; it must be (dim,) or (dim, inputs)")
    spread = check_positive_values("widths", widths)
    if spread.shape not in ((), middles.shape[:1]):
        raise InputError(
            f"widths has shape {spread.shape}; give one width, or one for each of the "
            f"{middles.shape[0]} centers"
        )
    points, middles, spread = to_common_dtype(
        _check_inputs("x", x, least_axes=middles.ndim), middles, spread
    )
    if middles.ndim == 1:
        points, middles = points[..., None], middles[:, None]
    if points.shape[-1] != middles.shape[1]:
        raise InputError(
            f"x has shape {points.shape}; its last axis must have the {middles.shape[1]} inputs of "
            "the centers"
        )
    squares = jnp.sum((points[..., None, :] - middles) ** 2, axis=-1)
    return jnp.exp(-squares / (2 * spread**2))


@source("zou2022", "Example 1 and section H.4.2, polynomial features", "as printed")
def polynomial_features(
    x: Float[ArrayLike, "... examples"],
    dim: int,
    coefficients: Float[ArrayLike, " dim"] | None = None,
) -> Float[Array, "... examples dim"]:
    """Powers of a single number, optionally scaled as in a Taylor series.

        phi(x) = (c_0, c_1 x, ..., c_{d-1} x^{d-1})

    Parameters
    ----------
    x : (..., examples) inputs
    dim : d, at least 1
    coefficients : (dim,) c; all ones when left out

    Returns
    -------
    (..., examples, dim) features.

    Raises
    ------
    InputError
        For an empty or non-finite x, a dim below 1, or coefficients of another length.

    References
    ----------
    Zou et al. (2022), Example 1 and section H.4.2, as printed.
    """
    check_count("dim", dim)
    points = _check_inputs("x", x, least_axes=1)
    # Products rather than powers, whose derivative at x = 0 is not a number for the zeroth one.
    steps = jnp.broadcast_to(points[..., None], (*points.shape, dim - 1))
    powers = jnp.cumprod(
        jnp.concatenate([jnp.ones_like(points)[..., None], steps], axis=-1), axis=-1
    )
    if coefficients is None:
        return powers
    return powers * check_array("coefficients", coefficients, dim).astype(powers.dtype)


def _check_inputs(name: str, x: Float[ArrayLike, "..."], least_axes: int) -> Array:
    array = check_finite(name, as_float_array(name, x))
    if array.ndim < least_axes or array.size == 0:
        expected = "(..., examples)" if least_axes == 1 else "(..., examples, dim)"
        raise InputError(f"{name} has shape {array.shape}; it must be {expected} and not empty")
    return array
