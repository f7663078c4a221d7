"""Mixed linear regression as Bernacchia (2021) has it: features N(0, I), task optima about w0, noisy labels.

Rates are for the mean squared error (1/K) ||X w - y||^2, half of those for Bernacchia's loss with 1/2.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import check_count
from metastep.theory._inputs import (
    check_nonnegative,
    check_query_features,
    check_scalar,
    to_common_dtype,
)
from metastep.theory._rates import at_rates, check_rates
from metastep.theory.citations import source
from metastep.theory.grams import adapted_features, contract, nonzero_features

__all__ = ["best_test_rate", "expected_test_loss", "minimiser_distance"]


@source(
    "bernacchia2021", "distance of the meta-trained parameters from w0, given inputs", "derived"
)
def minimiser_distance(
    phi: ArrayLike,
    phi_query: ArrayLike,
    alpha: ArrayLike,
    task_var: ArrayLike = 1.0,
    noise_var: ArrayLike = 0.0,
) -> Array:
    """Expected squared distance of the MAML minimiser from the mean w0 of the task optima.

    E ||w - w0||^2 = tr S^-1 [sum_i sa2 M_i^2 + s2 (M_i + B_i B_i^T)] S^-1,   S = sum_i M_i,

    M_i = C_i^T C_i,   C_i = Phi_t (I - step G_u),   B_i = step C_i^T Phi_t Phi_u^T,   step = 2 alpha / K,

    for given features, over optima of covariance sa2 I and label noise of variance s2.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the support examples
    phi_query : (tasks, query shots, dim) features of the query examples
    alpha : adaptation rates in training, any shape, any sign
    task_var : variance sa2 of every coordinate of the optima, >= 0
    noise_var : variance s2 of the label noise, >= 0

    Returns
    -------
    Array of the shape of `alpha`, >= 0.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite or a variance is negative.

    References
    ----------
    Derived for Bernacchia (2021), section 4.
    """
    support = nonzero_features("phi", phi)
    query = check_query_features("phi_query", phi_query, support)
    support, query, spread, noise = to_common_dtype(
        support,
        query,
        check_nonnegative("task_var", check_scalar("task_var", task_var)),
        check_nonnegative("noise_var", check_scalar("noise_var", noise_var)),
    )
    rates = check_rates("alpha", alpha).astype(support.dtype)
    return at_rates(_distance_from_mean, rates, support, query, spread, noise)


def _distance_from_mean(
    alpha: Array, support: Array, query: Array, spread: Array, noise: Array
) -> Array:
    step = 2 * alpha / support.shape[1]
    adapted = adapted_features(support, step, query)
    gram = contract("nqd,nqe->nde", adapted, adapted)
    between = contract("nqd,nkd->nqk", query, support)
    moved = step * contract("nqd,nqk->ndk", adapted, between)
    covariance = spread * contract("nde,nef->df", gram, gram)
    covariance += noise * (gram.sum(0) + contract("ndk,nek->de", moved, moved))
    total = gram.sum(0)
    return jnp.trace(jnp.linalg.solve(total, jnp.linalg.solve(total, covariance).T))


@source("bernacchia2021", "test loss of an initialisation", "derived")
def expected_test_loss(
    distance: ArrayLike, alpha: ArrayLike, shots: int, dim: int, noise_var: ArrayLike = 0.0
) -> Array:
    """Mean squared error on new examples after one step from parameters that are off the task's optimum.

    r2 [1 - 4 alpha + 4 alpha^2 (K + 1 + d) / K] + s2 (1 + 4 alpha^2 d / K)

    for features N(0, I): the first factor is E ||(I - (2 alpha / K) G) v||^2 / ||v||^2.

    Parameters
    ----------
    distance : r2, mean squared distance from the start to the optimum of a task, >= 0
    alpha : adaptation rate in testing; any shape that goes with that of `distance`
    shots, dim : K and d
    noise_var : variance s2 of the label noise, >= 0

    Returns
    -------
    The loss, >= `noise_var`.

    Raises
    ------
    InputError
        If a count is below 1, or `distance` or `noise_var` negative.

    References
    ----------
    Derived for Bernacchia (2021), section 4.
    """
    check_count("shots", shots)
    check_count("dim", dim)
    rate = jnp.asarray(alpha)
    error = 1 - 4 * rate + 4 * rate**2 * (shots + 1 + dim) / shots
    noise = check_nonnegative("noise_var", noise_var) * (1 + 4 * rate**2 * dim / shots)
    return check_nonnegative("distance", distance) * error + noise


@source("bernacchia2021", "best rate in testing", "derived")
def best_test_rate(distance: ArrayLike, shots: int, dim: int, noise_var: ArrayLike = 0.0) -> Array:
    """The rate that minimises `expected_test_loss`.

    alpha = K r2 / (2 [r2 (K + 1 + d) + s2 d])

    Parameters
    ----------
    distance, shots, dim, noise_var : as for `expected_test_loss`

    Returns
    -------
    The rate, >= 0.

    Raises
    ------
    InputError
        As for `expected_test_loss`.

    References
    ----------
    Derived for Bernacchia (2021), section 4.
    """
    check_count("shots", shots)
    check_count("dim", dim)
    square = check_nonnegative("distance", distance)
    curvature = square * (shots + 1 + dim) + check_nonnegative("noise_var", noise_var) * dim
    return shots / 2 * square / curvature
