"""Least squares on stacked task features, which refuses rather than return rounding noise.

Stacked features are factorised as Q R. Sums of Gram matrices are R^T R, but forming them would
square the condition number and leave float32 with about three digits.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from metastep._errors import InputError
from metastep.theory._inputs import is_concrete


def condition_limit(dtype: jnp.dtype) -> float:
    """Largest condition number of stacked features that is worked with: 1 / (100 eps)."""
    return 0.01 / float(jnp.finfo(dtype).eps)


def check_determined(function: str, num_rows: int, dim: int) -> None:
    """Raise unless there are at least as many examples as features."""
    if num_rows < dim:
        raise InputError(
            f"{function}: phi holds {num_rows} examples in all for {dim} features, so the "
            "minimiser is not unique; give more tasks, or use minimum_norm_coefficients"
        )


def factorise(function: str, stacked: Array) -> tuple[Array, Array]:
    """Q and R of (rows, dim) features, after checking that R can be inverted in this precision."""
    check_determined(function, *stacked.shape)
    orthogonal, triangular = jnp.linalg.qr(stacked)
    return orthogonal, check_invertible(function, triangular)


def check_invertible(function: str, triangular: Array) -> Array:
    """Pass R on if its condition number is within `condition_limit`; an error if not, jit too."""
    limit = condition_limit(triangular.dtype)
    message = (
        f"{function}: the stacked adapted features have a condition number above {limit:.1g}, "
        f"too much for {triangular.dtype}; drop dependent features, change alpha or use float64"
    )
    if is_concrete(triangular):
        values = np.linalg.svd(np.asarray(triangular), compute_uv=False)
        if not values[-1] * limit >= values[0] > 0:
            raise InputError(message)
        return triangular
    values = jnp.linalg.svd(jax.lax.stop_gradient(triangular), compute_uv=False)
    invertible = (values[-1] * limit >= values[0]) & (values[0] > 0)
    return eqx.error_if(triangular, ~invertible, message)


def solve_triangular(triangular: Array, rhs: Array, *, transpose: bool = False) -> Array:
    """R^-1 rhs, or R^-T rhs."""
    trans = 1 if transpose else 0
    return jax.scipy.linalg.solve_triangular(triangular, rhs, trans=trans)
