"""Checks on the arrays that enter a formula: shapes always, values whenever they are known.

Each check returns what it was given as a floating-point array, so that a formula starts with one
line per argument. While `jit`, `vmap` or `grad` trace a function only the shapes are known, and
only they are checked.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from metastep._errors import InputError, check_count


def is_concrete(value: Any) -> bool:
    """Whether the numbers of `value` can be looked at, as they cannot while JAX is tracing."""
    return not isinstance(value, Tracer)


def as_float_array(name: str, value: Any) -> Array:
    """`value` as a float array; integers and half precision are widened, other types refused."""
    if value is None:
        raise InputError(f"{name} is None; it must be an array of real numbers")
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array of real numbers: {error}") from error
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(jnp.float32) if array.dtype.itemsize < 4 else array
    if jnp.issubdtype(array.dtype, jnp.integer):
        return array.astype(jnp.float64 if jax.config.read("jax_enable_x64") else jnp.float32)
    raise InputError(f"{name} has dtype {array.dtype}; it must hold real numbers")


def to_common_dtype(*arrays: Array | None) -> tuple[Any, ...]:
    """Cast to the widest float type of the arrays with a shape; scalars follow, None stays None."""
    given = [array for array in arrays if array is not None]
    shaped = [array.dtype for array in given if array.ndim > 0] or [array.dtype for array in given]
    widest = max(shaped, key=lambda dtype: dtype.itemsize)
    return tuple(None if array is None else array.astype(widest) for array in arrays)


def check_finite(name: str, array: Array) -> Array:
    """Raise if any number is NaN or infinite."""
    if is_concrete(array) and not np.isfinite(np.asarray(array)).all():
        count = int((~np.isfinite(np.asarray(array))).sum())
        raise InputError(f"{name} holds {count} NaN or infinite numbers; remove or mend them first")
    return array


def check_array(name: str, value: Any, *axes: str | int) -> Array:
    """A finite float array with one axis per entry of `axes`: a name, or the size it must have."""
    array = as_float_array(name, value)
    expected = ", ".join(str(axis) for axis in axes)
    if array.ndim != len(axes):
        raise InputError(
            f"{name} has shape {array.shape}; it must have {len(axes)} axes, ({expected})"
        )
    for size, axis in zip(array.shape, axes, strict=True):
        if isinstance(axis, int) and size != axis:
            raise InputError(f"{name} has shape {array.shape}; it must have shape ({expected})")
        if size < 1:
            raise InputError(f"{name} has shape {array.shape}; its axis {axis!r} must not be empty")
    return check_finite(name, array)


def check_features(name: str, phi: Any) -> Array:
    """Features of a sample of tasks: finite, of shape (tasks, shots, dim), none of them empty."""
    return check_array(name, phi, "tasks", "shots", "dim")


def check_query_features(name: str, phi_query: Any, phi: Array) -> Array:
    """Features of the query examples of the tasks in `phi`: (tasks, query shots, dim)."""
    query = check_array(name, phi_query, "tasks", "query shots", "dim")
    if (query.shape[0], query.shape[2]) != (phi.shape[0], phi.shape[2]):
        raise InputError(
            f"{name} has shape {query.shape}; its tasks and dim must be those of the support "
            f"features, {phi.shape[0]} and {phi.shape[2]}"
        )
    return query


def check_optima(name: str, optima: Any, phi: Array) -> Array:
    """One optimum for every task in `phi`: (tasks, dim)."""
    return check_array(name, optima, phi.shape[0], phi.shape[2])


def check_scalar(name: str, value: Any) -> Array:
    """A finite real number, traced or not."""
    array = as_float_array(name, value)
    if array.ndim != 0:
        raise InputError(f"{name} has shape {array.shape}; it must be a single number")
    return check_finite(name, array)


def check_nonnegative(name: str, value: Any) -> Array:
    """A finite number, or array of numbers, none of them below zero."""
    array = check_finite(name, as_float_array(name, value))
    if is_concrete(array) and (np.asarray(array) < 0).any():
        raise InputError(f"{name} is {_brief(array)}; it must not be negative")
    return array


def check_positive_values(name: str, value: Any) -> Array:
    """A finite number, or array of numbers, all of them above zero."""
    array = check_finite(name, as_float_array(name, value))
    if is_concrete(array) and not (np.asarray(array) > 0).all():
        raise InputError(f"{name} is {_brief(array)}; it must be above 0")
    return array


def check_eigenvalues(name: str, eigenvalues: Any) -> Array:
    """Eigenvalues of positive semi-definite matrices: one or more, none negative, not all zero."""
    array = check_nonnegative(name, eigenvalues)
    if array.ndim < 1 or array.size < 1:
        raise InputError(f"{name} has shape {array.shape}; it must hold at least one eigenvalue")
    if is_concrete(array) and not (np.asarray(array) > 0).any():
        raise InputError(f"{name} are all 0; at least one must be positive")
    return array


def check_symmetric(name: str, matrix: Any, size: int | None = None) -> Array:
    """A finite symmetric matrix, or stack of them on leading axes; `size` fixes its order."""
    array = as_float_array(name, matrix)
    square = array.ndim >= 2 and array.shape[-1] == array.shape[-2] and array.shape[-1] >= 1
    if not square or (size is not None and array.shape[-1] != size):
        wanted = "square" if size is None else f"{size} x {size}"
        raise InputError(f"{name} has shape {array.shape}; it must be a {wanted} matrix")
    check_finite(name, array)
    if is_concrete(array):
        values = np.asarray(array)
        tolerance = 100 * np.finfo(values.dtype).eps * max(np.abs(values).max(), 0.0)
        asymmetry = np.abs(values - np.swapaxes(values, -1, -2)).max()
        if asymmetry > tolerance:
            raise InputError(
                f"{name} is not symmetric: entries differ from their mirror image by up to "
                f"{asymmetry:.3g}; pass ({name} + {name}.T) / 2 if that is rounding"
            )
    return array


def check_covariance(name: str, matrix: Any, size: int | None = None) -> Array:
    """A symmetric positive semi-definite matrix, up to rounding."""
    array = check_symmetric(name, matrix, size)
    if is_concrete(array):
        eigenvalues = np.linalg.eigvalsh(np.asarray(array))
        scale = np.abs(eigenvalues).max()
        if eigenvalues.min() < -100 * array.shape[-1] * np.finfo(array.dtype).eps * scale:
            raise InputError(
                f"{name} has the negative eigenvalue {eigenvalues.min():.3g}; "
                "it must be positive semi-definite"
            )
    return array


def check_weights(name: str, weights: Any, num_tasks: int) -> Array:
    """One weight per task: not negative, not all zero."""
    array = check_nonnegative(name, check_array(name, weights, num_tasks))
    if is_concrete(array) and not (np.asarray(array) > 0).any():
        raise InputError(f"{name} are all 0; at least one task must count")
    return array


def check_not_all_zero(name: str, array: Array) -> Array:
    """Raise if every number is zero, so that a ratio of moments would be 0/0."""
    if is_concrete(array) and not np.asarray(array).any():
        raise InputError(f"{name} is zero everywhere, which leaves the answer undefined")
    return array


def check_raw_moments(name: str, raw_moments: Any, highest: int) -> Array:
    """Raw moments E x^r indexed by r = 0..highest; an array that is one shorter starts at E x^1."""
    check_count("highest moment", highest, minimum=0)
    array = check_array(name, raw_moments, "moments")
    if array.shape[0] == highest and highest > 0:
        array = jnp.concatenate([jnp.ones(1, array.dtype), array])
    if array.shape[0] < highest + 1:
        raise InputError(
            f"{name} holds {array.shape[0]} moments; E x^0, E x^1, ..., E x^{highest} are needed"
        )
    if is_concrete(array):
        values = np.asarray(array)
        if abs(values[0] - 1) > 1e-6:
            raise InputError(f"{name}[0] is {values[0]:.6g}; it is E x^0, so it must be 1")
        if (values[2::2] < 0).any():
            order = 2 + 2 * int(np.argmax(values[2::2] < 0))
            raise InputError(f"{name}[{order}] is negative; an even moment cannot be")
    return array[: highest + 1]


def _brief(array: Array) -> str:
    """A scalar as it is, an array as its smallest entry."""
    values = np.asarray(array)
    return f"{values:.6g}" if values.ndim == 0 else f"an array with the entry {values.min():.6g}"
