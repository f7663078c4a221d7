"""Where the optimal adaptation rate must lie, and where the papers say it does."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import check_count
from metastep.theory._inputs import check_positive_values, check_scalar
from metastep.theory.citations import source
from metastep.theory.grams import GramMoments, nonzero_features, small_gram, unit_scale
from metastep.theory.printed import RateRange


class RateInterval(NamedTuple):
    """Proved bounds on `limit_rate`.

    Attributes
    ----------
    lower : K / (2 lambda_S), from the largest eigenvalue of any task
    upper : K / (2 lambda_I), from the smallest; infinite if that is zero
    moment_bound : dim / (2 E ||phi||^2), a second upper bound; the smaller of the two holds
    radius_bound : 1 / (2 max ||phi||^2), a second lower bound, never above the first
    """

    lower: Array
    upper: Array
    moment_bound: Array
    radius_bound: Array


class EigenvalueBounds(NamedTuple):
    """The smallest and largest eigenvalue of any task's Gram matrix (Assumption 2 on a sample).

    Attributes
    ----------
    smallest, largest : scalars, lambda_I and lambda_S
    """

    smallest: Array
    largest: Array


@source("zou2022", "Assumption 2", "as printed")
def eigenvalue_bounds(phi: ArrayLike) -> EigenvalueBounds:
    """The extreme eigenvalues lambda_I and lambda_S of Phi^T Phi over all tasks.

    With fewer shots than features, the zeros that every Phi^T Phi then has are left out.

    Parameters
    ----------
    phi : (tasks, shots, dim) features

    Returns
    -------
    EigenvalueBounds
        A smallest eigenvalue below the rounding error of the largest is returned as 0.

    Raises
    ------
    InputError
        If `phi` has another rank, is empty, not finite or all zero.

    References
    ----------
    Zou et al. (2022), Assumption 2, with the sample in place of "with probability 1".
    """
    features = nonzero_features("phi", phi)
    scale = unit_scale(features)
    spectra = jnp.linalg.eigvalsh(small_gram(features / scale))
    largest, smallest = spectra.max(), spectra.min()
    rounding = 10 * spectra.shape[-1] * jnp.finfo(spectra.dtype).eps * largest
    smallest = jnp.where(smallest > rounding, smallest, 0)
    return EigenvalueBounds(smallest * scale**2, largest * scale**2)


@source("zou2022", "Corollary 1 (equation 3.5)", "corrected", "lower end as printed is false")
def rate_interval(phi: ArrayLike) -> RateInterval:
    """The interval that provably holds `limit_rate(phi)`.

    K / (2 lambda_S) <= alpha_lim <= K / (2 lambda_I)   and   1 / (2 R^2) <= alpha_lim <= dim / (2 S2),

    with the extreme eigenvalues over the tasks given, S2 = E ||phi(x)||^2, not centred, and R the largest
    ||phi(x)||. As lambda_S <= K R^2, `radius_bound` is never above `lower`; but where features are bounded R is
    known before any are seen.

    Parameters
    ----------
    phi : (tasks, shots, dim) features

    Returns
    -------
    RateInterval

    Raises
    ------
    InputError
        If `phi` has another rank, is empty, not finite or all zero.

    References
    ----------
    Zou et al. (2022), Corollary 1, corrected: the upper bound holds, by Cauchy-Schwarz and Jensen's
    inequality; the lower one is replaced, by lambda_max(G) <= lambda_S <= K R^2 in tr G^3 <= lambda_S tr G^2.
    """
    features = nonzero_features("phi", phi)
    shots, dim = features.shape[1:]
    smallest, largest = eigenvalue_bounds(features)
    scale = unit_scale(features)
    radius = jnp.max(jnp.sum((features / scale) ** 2, axis=-1)) * scale**2
    return RateInterval(
        lower=shots / (2 * largest),
        upper=shots / (2 * smallest),
        moment_bound=dim / 2 / _second_moment(features),
        radius_bound=0.5 / radius,
    )


@source("zou2022", "Corollary 1 (equation 3.5)", "as printed", "the lower end is false in general")
def rate_interval_as_printed(phi: ArrayLike) -> RateRange:
    """Corollary 1 as printed: 1 / (2 dim S2) <= alpha_lim <= dim / (2 S2).

    The lower end fails for many distributions, standard normal features with one shot and one
    dimension among them: 0.1 < 0.5. `rate_interval` gives what is true.

    Parameters
    ----------
    phi : (tasks, shots, dim) features

    Returns
    -------
    RateRange

    Raises
    ------
    InputError
        If `phi` has another rank, is empty, not finite or all zero.

    References
    ----------
    Zou et al. (2022), equation 3.5, as printed, with the uncentred second moment of D.3.
    """
    features = nonzero_features("phi", phi)
    return _printed_range(_second_moment(features), features.shape[2])


@source("zou2022", "Corollary 1 (equation 3.5)", "as printed", "the lower end is false in general")
def moment_interval_as_printed(moments: GramMoments, shots: int, dim: int) -> RateRange:
    """Corollary 1 as printed, from the moments of a law: 1 / (2 dim S2) <= alpha_lim <= dim / (2 S2), S2 = p1 / K.

    `moment_rate` gives the alpha_lim of the same moments. The upper end is true, the lower one is not.

    Parameters
    ----------
    moments : p1 of a task's Gram matrix is used, > 0
    shots, dim : K and the number of features

    Returns
    -------
    RateRange

    Raises
    ------
    InputError
        If a count is below 1 or p1 is not a number above 0.

    References
    ----------
    Zou et al. (2022), equation 3.5, as printed, with the uncentred second moment of D.3.
    """
    check_count("shots", shots)
    check_count("dim", dim)
    first = check_positive_values("moments.p1", check_scalar("moments.p1", moments.p1))
    return _printed_range(first / shots, dim)


def _printed_range(moment: Array, dim: int) -> RateRange:
    return RateRange(0.5 / dim / moment, dim / 2 / moment)


def _second_moment(phi: Array) -> Array:
    """S2 = E ||phi(x)||^2 over all examples of all tasks."""
    scale = unit_scale(phi)
    return jnp.mean(jnp.sum((phi / scale) ** 2, axis=-1)) * scale**2
