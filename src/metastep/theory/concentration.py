"""How far the risk of the MAML minimiser strays from its mean: Proposition 1 of Zou et al., printed and corrected."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import InputError, check_count, check_positive
from metastep.theory._inputs import (
    as_float_array,
    check_features,
    check_nonnegative,
    check_positive_values,
    check_scalar,
    to_common_dtype,
)
from metastep.theory.citations import source
from metastep.theory.grams import adapted_features, contract
from metastep.theory.risks import check_variance

__all__ = [
    "concentration_bound",
    "concentration_bound_as_printed",
    "concentration_spread",
    "gaussian_norm",
]


@source("zou2022", "Proposition 1: the norm L of the coordinates of C^T C a", "derived")
def gaussian_norm(phi: ArrayLike, alpha: ArrayLike, task_var: ArrayLike = 1.0) -> Array:
    """The sub-Gaussian norm L that the concentration bound asks for, where the optima are Gaussian.

    L = sqrt(8 sa2 / 3) max_ij ||row j of M_i||,   M_i = G_i (I - (2 alpha / K) G_i)^2.

    The coordinates of M_i a_i are N(0, s^2) with s the length of a row times sqrt(sa2), and the norm of such
    a variable, the least t with E exp(x^2 / t^2) <= 2, is s sqrt(8 / 3).

    Parameters
    ----------
    phi : (tasks, shots, dim) features
    alpha : adaptation rate, any sign
    task_var : variance sa2 of every coordinate of the optima, >= 0

    Returns
    -------
    Scalar, >= 0; it grows as alpha^2.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite or `task_var` is negative.

    References
    ----------
    Zou et al. (2022), Proposition 1 and section C.
    """
    features, rate, variance = to_common_dtype(
        check_features("phi", phi),
        check_scalar("alpha", alpha),
        check_variance("task_var", task_var),
    )
    adapted = adapted_features(features, 2 * rate / features.shape[1])
    squared = jnp.max(jnp.sum(contract("nkd,nke->nde", adapted, adapted) ** 2, axis=2))
    return jnp.sqrt(8 / 3 * variance * squared)


@source("zou2022", "Proposition 1, epsilon of equation 3.4", "as printed")
def concentration_spread(
    alpha: ArrayLike, smallest: ArrayLike, largest: ArrayLike, shots: int
) -> Array:
    """The spread epsilon of the concentration bound, through which alpha and the eigenvalues enter it.

    e = (lS - 4 a lI^2 / K + 4 a^2 lS^3 / K^2) / (lI - 4 a lS^2 / K + 4 a^2 lI^3 / K^2)^2,

    with eigenvalues of the Gram matrices in [lI, lS].

    Parameters
    ----------
    alpha : adaptation rates, any shape, >= 0
    smallest, largest : bounds lI, lS on the eigenvalues, 0 < lI <= lS; see `eigenvalue_bounds`
    shots : K

    Returns
    -------
    Array of the shape of `alpha`, infinite where the denominator is not positive.

    Raises
    ------
    InputError
        If an argument is outside the range above.

    References
    ----------
    Zou et al. (2022), Proposition 1, as printed.
    """
    check_count("shots", shots)
    low = check_positive_values("smallest", check_scalar("smallest", smallest))
    high = check_positive_values("largest", check_scalar("largest", largest))
    check_nonnegative("largest - smallest", as_float_array("largest", high - low))
    low, high, rate = to_common_dtype(low, high, check_nonnegative("alpha", alpha))
    step = 2 * rate / shots
    above = high - 2 * step * low**2 + step**2 * high**3
    below = low - 2 * step * high**2 + step**2 * low**3
    holds = below > 0
    return jnp.where(holds, above / jnp.where(holds, below, 1) ** 2, jnp.inf)


@source("zou2022", "Proposition 1 (equations 3.4 and C.19)", "corrected", "sqrt(d) epsilon / N")
def concentration_bound(
    alpha: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    num_tasks: int,
    shots: int,
    dim: int,
    sub_gaussian_norm: ArrayLike = 1.0,
    delta: float = 0.05,
    constant: float = 1.0,
) -> Array:
    """How far the risk of the MAML minimiser is from its average, with probability 1 - delta.

    (L^2 / K) max( e sqrt(d log(2 / delta) / (c N^2)),  e log(2 / delta) / (c N) ),

    with e the `concentration_spread`. L depends on alpha too: it grows as alpha^2, so a large alpha does
    not make the bound tighter.

    Parameters
    ----------
    alpha : adaptation rates, any shape, >= 0
    smallest, largest : bounds lI, lS on the eigenvalues, 0 < lI <= lS; see `eigenvalue_bounds`
    num_tasks, shots, dim : N, K, d
    sub_gaussian_norm : L, the sub-Gaussian norm of the coordinates of C^T C a, >= 0; see `gaussian_norm`
    delta : probability that the bound fails, in (0, 1)
    constant : the absolute constant c of the Hanson-Wright inequality, > 0; its value is not known

    Returns
    -------
    Array of the shape of `alpha`, infinite where the denominator of e is not positive and the bound says nothing.

    Raises
    ------
    InputError
        If an argument is outside the range above.

    References
    ----------
    Zou et al. (2022), Proposition 1, corrected: sqrt(d) e / N in place of sqrt(d e / N^2), and the
    constant that the printed form leaves out.
    """
    check_positive("constant", constant)
    scale, log_term = _scale(
        alpha, smallest, largest, num_tasks, shots, dim, sub_gaussian_norm, delta
    )
    gaussian = jnp.sqrt(dim * log_term / constant) / num_tasks
    exponential = log_term / (constant * num_tasks)
    return scale * jnp.maximum(gaussian, exponential)


@source("zou2022", "Proposition 1 (equation 3.4)", "as printed", "sqrt(d epsilon) / N")
def concentration_bound_as_printed(
    alpha: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    num_tasks: int,
    shots: int,
    dim: int,
    sub_gaussian_norm: ArrayLike = 1.0,
    delta: float = 0.05,
) -> Array:
    """Equation 3.4 as printed, for comparison; `concentration_bound` is the corrected form.

    (L^2 / K) max( sqrt(d e log(2 / delta) / N^2),  e log(2 / delta) / N )

    Parameters
    ----------
    alpha, smallest, largest, num_tasks, shots, dim, sub_gaussian_norm, delta : as for `concentration_bound`

    Returns
    -------
    Array of the shape of `alpha`, infinite where the bound says nothing.

    Raises
    ------
    InputError
        As for `concentration_bound`.

    References
    ----------
    Zou et al. (2022), equation 3.4, as printed.
    """
    scale, log_term = _scale(
        alpha, smallest, largest, num_tasks, shots, dim, sub_gaussian_norm, delta
    )
    spread = concentration_spread(alpha, smallest, largest, shots)
    root = jnp.sqrt(dim * log_term / spread) / num_tasks
    return jnp.where(jnp.isinf(spread), jnp.inf, scale * jnp.maximum(root, log_term / num_tasks))


def _scale(
    alpha: ArrayLike,
    smallest: ArrayLike,
    largest: ArrayLike,
    num_tasks: int,
    shots: int,
    dim: int,
    sub_gaussian_norm: ArrayLike,
    delta: float,
) -> tuple[Array, Array]:
    """L^2 e / K and log(2 / delta)."""
    for name, count in {"num_tasks": num_tasks, "dim": dim}.items():
        check_count(name, count)
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta!r}; it must be between 0 and 1")
    spread = concentration_spread(alpha, smallest, largest, shots)
    norm = check_variance("sub_gaussian_norm", sub_gaussian_norm).astype(spread.dtype)
    return norm**2 / shots * spread, jnp.log(2 / jnp.asarray(delta, spread.dtype))
