"""Expected traces of powers of Gram matrices, from moments of the data instead of a sample."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import InputError, check_count
from metastep.theory._inputs import (
    check_covariance,
    check_nonnegative,
    check_not_all_zero,
    check_positive_values,
    check_raw_moments,
    check_scalar,
    to_common_dtype,
)
from metastep.theory.citations import source
from metastep.theory.grams import GramMoments, contract


@source("zou2022", "Theorem 1 on given moments (equation D.1)", "as printed")
def moment_rate(moments: GramMoments, shots: int) -> Array:
    """The limit rate K p2 / (2 p3) from expected traces.

    Parameters
    ----------
    moments : what a `..._gram_moments` function returns
    shots : examples per task, K

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If `shots` is not a whole number of at least 1.

    References
    ----------
    Zou et al. (2022), equation D.1.
    """
    check_count("shots", shots)
    return shots / 2 * moments.p2 / moments.p3


@source("zou2022", "equations E.3 and E.4", "corrected", "E.3 as printed, E.4 replaced")
def polynomial_gram_moments(dim: int, shots: int, raw_moments: ArrayLike) -> GramMoments:
    """Moments for polynomial features phi(x) = (1, x, ..., x^(dim - 1)), m_r = E x^r.

    E tr G   = sum_j K m_2j
    E tr G^2 = sum_jl [K m_2(j+l) + K(K-1) m_(j+l)^2]
    E tr G^3 = sum_jls [K m_2(j+l+s) + 3K(K-1) m_(2j+l+s) m_(l+s)
                        + K(K-1)(K-2) m_(j+l) m_(l+s) m_(s+j)],   indices from 0 to dim - 1.

    Parameters
    ----------
    dim : number of features
    shots : independent examples per task, K
    raw_moments : E x^0, E x^1, ..., at least to order 6 (dim - 1); one that is exactly one shorter
        starts at E x^1

    Returns
    -------
    GramMoments

    Raises
    ------
    InputError
        If a count is below 1, or the moments are too few, not finite or impossible.

    References
    ----------
    Zou et al. (2022), equations E.3, as printed, and E.4, corrected.
    """
    order, moments = _polynomial_inputs(dim, shots, raw_moments)
    pairs, triples = _falling(shots)
    hankel = moments[order[:, None] + order]  # m_(j+l)
    double = moments[2 * (order[:, None] + order)]
    mixed = moments[2 * order[:, None, None] + order[:, None] + order]  # m_(2j+l+s)
    sextic = moments[2 * (order[:, None, None] + order[:, None] + order)]
    chain = jnp.sum(contract("jl,ls->js", hankel, hankel) * hankel)
    return GramMoments(
        shots * moments[2 * order].sum(),
        shots * double.sum() + pairs * jnp.sum(hankel**2),
        shots * sextic.sum() + 3 * pairs * jnp.sum(mixed * hankel) + triples * chain,
    )


@source("zou2022", "equations E.3 and E.4", "as printed", "E.4 is wrong")
def polynomial_gram_moments_as_printed(dim: int, shots: int, raw_moments: ArrayLike) -> GramMoments:
    """Equations E.3 and E.4 as printed; the third moment is wrong.

    E tr G^3 = sum_jls [K m_(3j+l+2s) + 3K(K-1) m_2(j+s)^2 m_(j+l) + K(K-1)(K-2) m_(j+l+s)^3]

    with indices from 0 to dim - 1 in place of the paper's 1 to dim.

    Parameters
    ----------
    dim, shots, raw_moments : as for `polynomial_gram_moments`

    Returns
    -------
    GramMoments

    Raises
    ------
    InputError
        As for `polynomial_gram_moments`.

    References
    ----------
    Zou et al. (2022), equations E.3 and E.4, as printed.
    """
    order, moments = _polynomial_inputs(dim, shots, raw_moments)
    pairs, triples = _falling(shots)
    correct = polynomial_gram_moments(dim, shots, raw_moments)
    j, l, s = order[:, None, None], order[:, None], order  # noqa: E741 - the paper's indices
    first = moments[3 * j + l + 2 * s].sum()
    second = jnp.sum(moments[2 * (j + s)] ** 2 * moments[j + l])
    third = jnp.sum(moments[j + l + s] ** 3)
    return correct._replace(p3=shots * first + 3 * pairs * second + triples * third)


def _polynomial_inputs(dim: int, shots: int, raw_moments: ArrayLike) -> tuple[Array, Array]:
    check_count("dim", dim)
    check_count("shots", shots)
    return jnp.arange(dim), check_raw_moments("raw_moments", raw_moments, 6 * (dim - 1))


def _falling(count: int) -> tuple[float, float]:
    """K (K - 1) and K (K - 1) (K - 2), as floats: they outgrow 32-bit integers."""
    return float(count * (count - 1)), float(count * (count - 1) * (count - 2))


@source("zou2022", "equations E.8 and E.11", "corrected", "E.8 as printed, E.11 replaced")
def iid_gram_moments(dim: int, shots: int, raw_moments: ArrayLike) -> GramMoments:
    """Moments for features with independent, identically distributed entries, m_r = E Y^r.

    E tr G   = d K m2
    E tr G^2 = d K m4 + [d K(K-1) + d(d-1) K] m2^2 + d(d-1) K(K-1) m1^4
    E tr G^3 = d [K m6 + 3K(K-1) m4 m2 + K(K-1)(K-2) m2^3]
             + 3 d(d-1) [K m4 m2 + K(K-1)(2 m3 m1^3 + m2^3) + K(K-1)(K-2) m2 m1^4]
             + d(d-1)(d-2) [K m2^3 + 3K(K-1) m2 m1^4 + K(K-1)(K-2) m1^6]

    Parameters
    ----------
    dim : number of features, d
    shots : examples per task, K
    raw_moments : E Y^0, ..., E Y^6 (or more), or the six E Y^1, ..., E Y^6

    Returns
    -------
    GramMoments

    Raises
    ------
    InputError
        If a count is below 1, or the moments are too few, not finite or impossible.

    References
    ----------
    Zou et al. (2022), equations E.8, as printed, and E.11, corrected.
    """
    check_count("dim", dim)
    check_count("shots", shots)
    _, m1, m2, m3, m4, _, m6 = check_raw_moments("raw_moments", raw_moments, 6)
    pairs, triples = _falling(shots)
    pairs_d, triples_d = _falling(dim)
    one = shots * m6 + 3 * pairs * m4 * m2 + triples * m2**3
    two = shots * m4 * m2 + pairs * (2 * m3 * m1**3 + m2**3) + triples * m2 * m1**4
    three = shots * m2**3 + 3 * pairs * m2 * m1**4 + triples * m1**6
    return GramMoments(
        float(dim * shots) * m2,
        _iid_second(dim, shots, m1, m2, m4),
        dim * one + 3 * pairs_d * two + triples_d * three,
    )


def _iid_second(dim: int, shots: int, m1: Array, m2: Array, m4: Array) -> Array:
    """Equation E.8."""
    pairs, _ = _falling(shots)
    pairs_d, _ = _falling(dim)
    single = float(dim * shots) * m4
    return single + (dim * pairs + pairs_d * shots) * m2**2 + pairs_d * pairs * m1**4


@source("zou2022", "equations E.8 and E.11", "as printed", "E.11 is wrong")
def iid_gram_moments_as_printed(dim: int, shots: int, raw_moments: ArrayLike) -> GramMoments:
    """Equations E.8 and E.11 as printed; the third moment is wrong unless dim = 1.

    E tr G^3 = d [K m6 + 3 K(K-1) m4 m2 + K(K-1)(K-2) m2^3]
             + d(d-1) K [m5 m1 + m4 m2 + m3^2]
             + d(d-1) K(K-1) [2 (m3 m1^3 + m3 m2 m1 + m2^2 m1^2) + m4 m1^2 + m2^3 + m2^2 m1^2]
             + d(d-1) K(K-1)(K-2) [m1^6 + m2^2 m1^2 + m2 m1^4]

    Parameters
    ----------
    dim, shots, raw_moments : as for `iid_gram_moments`

    Returns
    -------
    GramMoments

    Raises
    ------
    InputError
        As for `iid_gram_moments`.

    References
    ----------
    Zou et al. (2022), equations E.8 and E.11, as printed.
    """
    correct = iid_gram_moments(dim, shots, raw_moments)
    _, m1, m2, m3, m4, m5, m6 = check_raw_moments("raw_moments", raw_moments, 6)
    pairs, triples = _falling(shots)
    pairs_d, _ = _falling(dim)
    diagonal = shots * m6 + 3 * pairs * m4 * m2 + triples * m2**3
    equal = m5 * m1 + m4 * m2 + m3**2
    two_equal = 2 * (m3 * m1**3 + m3 * m2 * m1 + m2**2 * m1**2)
    outer_equal = m4 * m1**2 + m2**3 + m2**2 * m1**2
    distinct = m1**6 + m2**2 * m1**2 + m2 * m1**4
    beside = shots * equal + pairs * (two_equal + outer_equal) + triples * distinct
    return correct._replace(p3=dim * diagonal + pairs_d * beside)


@source("zou2022", "Theorem 1 for Gaussian features", "derived")
def gaussian_gram_moments(cov: ArrayLike, shots: int) -> GramMoments:
    """Moments for features with rows drawn from N(0, cov), s_j = tr cov^j.

    E tr G   = K s1
    E tr G^2 = K(K+1) s2 + K s1^2
    E tr G^3 = K [(K^2 + 3K + 4) s3 + 3 (K+1) s1 s2 + s1^3]

    Parameters
    ----------
    cov : (dim, dim) covariance of a feature vector
    shots : examples per task, K

    Returns
    -------
    GramMoments

    Raises
    ------
    InputError
        If `cov` is not a covariance matrix or `shots` is below 1.

    References
    ----------
    Derived for the setting of Zou et al. (2022), Theorem 1.
    """
    check_count("shots", shots)
    s1, s2, s3 = _covariance_traces(cov)
    return GramMoments(
        shots * s1,
        float(shots * (shots + 1)) * s2 + shots * s1**2,
        shots * (float(shots**2 + 3 * shots + 4) * s3 + 3 * (shots + 1) * s1 * s2 + s1**3),
    )


@source("zou2022", "equation H.1 for Gaussian features", "derived")
def gaussian_split_rate(cov: ArrayLike, shots: int) -> Array:
    """The limit rate with separate query examples, for features with rows drawn from N(0, cov).

    alpha = k1 s2 / (2 [(k1 + 1) s3 + s1 s2]),   s_j = tr cov^j

    Parameters
    ----------
    cov : (dim, dim) covariance of a feature vector
    shots : support examples per task, k1; the number of query examples does not matter

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If `cov` is not a covariance matrix or `shots` is below 1.

    References
    ----------
    Derived from Zou et al. (2022), equation H.1.
    """
    check_count("shots", shots)
    s1, s2, s3 = _covariance_traces(cov)
    return shots / 2 * s2 / ((shots + 1) * s3 + s1 * s2)


def _covariance_traces(cov: ArrayLike) -> tuple[Array, Array, Array]:
    matrix = check_covariance("cov", cov)
    if matrix.ndim != 2:
        raise InputError(f"cov has shape {matrix.shape}; it must be one (dim, dim) matrix")
    square = contract("ij,jk->ik", matrix, matrix)
    return jnp.trace(matrix), jnp.trace(square), jnp.sum(square * matrix)


@source("zou2022", "equation E.13", "corrected", "zero mean: the Marchenko-Pastur moments")
def zero_mean_limit_rate(ratio: ArrayLike, second_moment: ArrayLike) -> Array:
    """The limit rate for many iid entries of mean 0, as shots and dim grow with dim / shots = ratio.

    alpha = (1 + y) / (2 m2 (1 + 3 y + y^2)),   y = ratio

    Parameters
    ----------
    ratio : dim / shots, >= 0
    second_moment : m2, mean square of an entry, > 0

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If `ratio` is negative or `second_moment` not positive.

    References
    ----------
    Zou et al. (2022), equation E.13, corrected.
    """
    y = check_nonnegative("ratio", check_scalar("ratio", ratio))
    m2 = check_positive_values("second_moment", check_scalar("second_moment", second_moment))
    y, m2 = to_common_dtype(y, m2)
    return (1 + y) / (2 * m2 * (1 + 3 * y + y**2))


@source("zou2022", "equation E.13", "corrected", "the factor 1/d that O(1) hides")
def nonzero_mean_limit_rate(dim: int, mean: ArrayLike) -> Array:
    """The limit rate for many iid entries of mean m1 other than 0: 1 / (2 dim m1^2).

    Parameters
    ----------
    dim : number of features; the form holds as shots and dim grow
    mean : m1, mean of an entry, not 0

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If `dim` is below 1 or `mean` is 0.

    References
    ----------
    Zou et al. (2022), equation E.13, corrected.
    """
    check_count("dim", dim)
    centre = check_not_all_zero("mean", check_scalar("mean", mean))
    return 0.5 / (dim * centre**2)


@source("zou2022", "equation E.12", "as printed", "right for dim = 1 only")
def single_shot_rate_as_printed(raw_moments: ArrayLike) -> Array:
    """Equation E.12 as printed, for one shot: alpha = E Y^4 / (2 E Y^6), right for one feature only.

    Parameters
    ----------
    raw_moments : as for `iid_gram_moments`, whose result with shots = 1 is the corrected form

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If the moments are too few, not finite or impossible.

    References
    ----------
    Zou et al. (2022), equation E.12, as printed.
    """
    moments = check_raw_moments("raw_moments", raw_moments, 6)
    return moments[4] / (2 * moments[6])


@source("zou2022", "equation E.13", "as printed", "hides a factor 1/d")
def many_shots_rate_as_printed(raw_moments: ArrayLike) -> Array:
    """Equation E.13 as printed, for many shots and features: alpha ~ E Y^4 / E Y^6.

    Parameters
    ----------
    raw_moments : as for `iid_gram_moments`

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If the moments are too few, not finite or impossible.

    References
    ----------
    Zou et al. (2022), equation E.13, as printed.
    """
    moments = check_raw_moments("raw_moments", raw_moments, 6)
    return moments[4] / moments[6]
