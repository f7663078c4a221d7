"""Rates from one pooled batch of features, and the rates as the papers print them, for comparison.

The functions named `..._as_printed` are here to reproduce published numbers. They are not advice:
`limit_rate`, `label_aware_rate` and `second_moment_rate` are.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import InputError, check_count
from metastep.theory._inputs import (
    as_float_array,
    check_array,
    check_not_all_zero,
    check_positive_values,
    check_scalar,
    to_common_dtype,
)
from metastep.theory.citations import source
from metastep.theory.grams import mean_trace_powers, small_gram, unit_scale


class RateRange(NamedTuple):
    """A range of adaptation rates, `lower` <= `upper`.

    Attributes
    ----------
    lower, upper : scalars
    """

    lower: Array
    upper: Array


def _pooled(psi: Any) -> Array:
    """All examples of all tasks as one (examples, dim) array of features that are not all zero."""
    array = as_float_array("psi", psi)
    if array.ndim == 3:
        array = check_array("psi", array, "tasks", "shots", "dim")
        array = array.reshape(-1, array.shape[2])
    return check_not_all_zero("psi", check_array("psi", array, "examples", "dim"))


@source("zou2022", "equation H.14", "as printed")
def batch_rate(psi: ArrayLike) -> Array:
    """The rate for an inner step taken on all tasks' examples at once.

    alpha = n tr k^2 / (2 tr k^3),   k = Psi Psi^T over all n = tasks * shots examples.

    It belongs to an inner step normalised by n, as in equation H.8; for steps on single tasks use
    `limit_rate`.

    Parameters
    ----------
    psi : (examples, dim), or (tasks, shots, dim), features of all examples

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If `psi` has another rank, is empty, not finite or all zero.

    References
    ----------
    Zou et al. (2022), equation H.14, as printed.
    """
    features = _pooled(psi)
    scale = unit_scale(features)
    moments = mean_trace_powers(small_gram(features[None] / scale))
    return features.shape[0] / 2 * moments.p2 / moments.p3 / scale**2


@source("zou2022", "what H.15 should be where one direction dominates the features", "corrected")
def second_moment_rate(psi: ArrayLike) -> Array:
    """The cheapest label-free rate, one over twice the mean squared length of a feature vector.

    alpha = 1 / (2 E ||psi||^2)

    Exact where one direction dominates all features, as it does in wide networks at initialisation;
    in general a lower estimate that `limit_rate` on the tasks' Gram matrices improves on.

    Parameters
    ----------
    psi : (examples, dim), or (tasks, shots, dim), features of all examples

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If `psi` has another rank, is empty, not finite or all zero.

    References
    ----------
    Zou et al. (2022), equation H.15, corrected: the factor dim takes the place of tasks * shots.
    """
    features = _pooled(psi)
    scale = unit_scale(features)
    return 0.5 / jnp.mean(jnp.sum((features / scale) ** 2, axis=1)) / scale**2


@source("zou2022", "equation H.15", "as printed", "not a consequence of H.14; off by dim / (N K)")
def batch_rate_as_printed(psi: ArrayLike) -> Array:
    """Equation H.15 as printed: alpha = 1 / (2 n s^2), n the number of examples.

    s^2 is the variance of all entries of Psi, as the paper computes it. The equation does not
    follow from H.14 and was 15 to 56 times the measured optimum of wide networks;
    `second_moment_rate` is the corrected form.

    Parameters
    ----------
    psi : (examples, dim), or (tasks, shots, dim), features of all examples

    Returns
    -------
    Scalar, infinite if all entries are equal.

    Raises
    ------
    InputError
        If `psi` has another rank, is empty, not finite or all zero.

    References
    ----------
    Zou et al. (2022), equation H.15, as printed, with the standard deviation of H.17.
    """
    features = _pooled(psi)
    scale = unit_scale(features)
    return 0.5 / (features.shape[0] * jnp.var(features / scale)) / scale**2


@source("zou2022", "equation H.18", "as printed", "heuristic")
def heuristic_rate_as_printed(num_examples: int, dim: int, variance: ArrayLike) -> Array:
    """Equation H.18 as printed: alpha = 1 / (2 min(num_examples, dim) variance).

    Parameters
    ----------
    num_examples : training examples of all tasks, N K
    dim : number of features or parameters
    variance : variance of the single entries of the features, > 0

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If a count is not a whole number of at least 1, or the variance is not positive.

    References
    ----------
    Zou et al. (2022), equation H.18, as printed.
    """
    check_count("num_examples", num_examples)
    check_count("dim", dim)
    spread = check_positive_values("variance", check_scalar("variance", variance))
    return 0.5 / (min(num_examples, dim) * spread)


@source(
    "zou2022",
    "equations H.18 and H.19",
    "as printed",
    "the upper end needs features whose sample attains both 0 and 1",
)
def heuristic_range_as_printed(num_examples: int, dim: int, num_observations: int) -> RateRange:
    """The range of H.18 over the variances that H.19 allows features in [0, 1].

    2 / m <= alpha <= num_observations / m,   m = min(num_examples, dim),

    from 1 / (2 num_observations) <= variance <= 1/4. The lower end holds for any features in
    [0, 1]; the upper one only if the sample attains both 0 and 1, which the paper leaves out.

    Parameters
    ----------
    num_examples : training examples of all tasks, N K
    dim : number of features or parameters
    num_observations : observations the variance would be estimated from, >= 2

    Returns
    -------
    RateRange

    Raises
    ------
    InputError
        If a count is not a whole number, or too small.

    References
    ----------
    Zou et al. (2022), equations H.18 and H.19, as printed.
    """
    check_count("num_examples", num_examples)
    check_count("dim", dim)
    check_count("num_observations", num_observations, minimum=2)
    smaller = min(num_examples, dim)
    return RateRange(jnp.asarray(2 / smaller), jnp.asarray(num_observations / smaller))


@source("zou2022", "online rate of the ANIL experiment", "as printed", "H.18 in a running mean")
def online_rate_as_printed(
    buffer: ArrayLike, ways: int, shots: int, variance: ArrayLike, decay: float = 0.9
) -> Array:
    """The running estimate of alpha in the paper's ANIL experiment.

    buffer <- decay * buffer + (1 - decay) / (2 ways shots variance)

    Parameters
    ----------
    buffer : the estimate so far, >= 0
    ways, shots : classes per task and examples per class
    variance : mean square of the entries of the L2-normalised features of this batch, > 0
    decay : weight of the past, 0 <= decay < 1

    Returns
    -------
    Scalar, the new estimate.

    Raises
    ------
    InputError
        If a count is below 1, the variance is not positive, or `decay` is outside [0, 1).

    References
    ----------
    Zou et al. (2022), ANIL experiment, as printed; the text leaves the reading of the variance
    open.
    """
    check_count("ways", ways)
    check_count("shots", shots)
    if not 0 <= decay < 1:
        raise InputError(f"decay is {decay!r}; it must be at least 0 and below 1")
    past, spread = to_common_dtype(
        check_scalar("buffer", buffer),
        check_positive_values("variance", check_scalar("variance", variance)),
    )
    return decay * past + (1 - decay) / (2 * ways * shots * spread)
