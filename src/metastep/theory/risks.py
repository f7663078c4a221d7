"""Risks of an initialisation: on a sample, in the limit, on average, and how much they scatter."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep.theory._inputs import (
    check_array,
    check_features,
    check_nonnegative,
    check_optima,
    check_query_features,
    check_scalar,
    check_weights,
    to_common_dtype,
)
from metastep.theory._linear import check_determined, factorise, solve_triangular
from metastep.theory._rates import at_rates, check_rates
from metastep.theory.citations import source
from metastep.theory.grams import adapted_features, contract, nonzero_features
from metastep.theory.minimisers import check_labelled


@source("zou2022", "equation 2.5", "as printed")
def empirical_risk(
    params: ArrayLike,
    phi: ArrayLike,
    optima: ArrayLike,
    alpha: ArrayLike = 0.0,
    *,
    phi_query: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Array:
    """Mean loss over tasks after one inner step from `params`.

    (1/N) sum_i (1/K) ||C_i (w - a_i)||^2,   C_i = Phi_t (I - (2 alpha / K) Phi_u^T Phi_u).

    Parameters
    ----------
    params : (dim,) parameters w
    phi : (tasks, shots, dim) features of the support examples
    optima : (tasks, dim) optimal parameters a_i of the tasks
    alpha : adaptation rate; 0 gives the risk before adaptation
    phi_query : (tasks, query shots, dim) features of separate query examples, or None
    weights : (tasks,) weights >= 0 of the mean over tasks, default all 1

    Returns
    -------
    Scalar, >= 0.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite or a weight is negative.

    References
    ----------
    Zou et al. (2022), equation 2.5; with `phi_query`, H.3.
    """
    support = check_features("phi", phi)
    start = check_array("params", params, support.shape[2])
    targets = check_optima("optima", optima, support)
    query = support
    if phi_query is not None:
        query = check_query_features("phi_query", phi_query, support)
    start, support, targets, query = to_common_dtype(start, support, targets, query)
    step = 2 * check_scalar("alpha", alpha).astype(support.dtype) / support.shape[1]
    error = start - targets
    gradient = contract("nkd,nk->nd", support, contract("nkd,nd->nk", support, error))
    residual = contract("nqd,nd->nq", query, error - step * gradient)
    losses = jnp.mean(residual**2, axis=1)
    if weights is None:
        return losses.mean()
    factors = check_weights("weights", weights, support.shape[0]).astype(losses.dtype)
    return jnp.sum(factors * losses) / jnp.sum(factors)


@source("zou2022", "equation 2.5, one task at a time and for any labels", "derived")
def adapted_losses(
    params: ArrayLike,
    phi: ArrayLike,
    labels: ArrayLike,
    alpha: ArrayLike = 0.0,
    *,
    phi_query: ArrayLike | None = None,
    labels_query: ArrayLike | None = None,
) -> Array:
    """Mean squared error of every task after one inner step from `params`: what a standard error needs.

    (1/K_t) ||Phi_t (w - (2 alpha / K) Phi_u^T (Phi_u w - y_u)) - y_t||^2 for every task.

    Parameters
    ----------
    params : (dim,) parameters w
    phi : (tasks, shots, dim) features of the support examples
    labels : (tasks, shots) their labels
    alpha : adaptation rate, any sign; 0 gives the losses before adaptation
    phi_query, labels_query : (tasks, query shots, dim) and (tasks, query shots), or both None

    Returns
    -------
    (tasks,) array, >= 0; its mean is `RiskCurve.risks_at` of `risk_curve_from_labels`.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite, or only one of `phi_query` and `labels_query` is given.

    References
    ----------
    Derived from Zou et al. (2022), equation 2.5; with `phi_query`, H.3.
    """
    support, targets, query, query_targets = check_labelled(phi, labels, phi_query, labels_query)
    start = check_array("params", params, support.shape[2]).astype(support.dtype)
    step = 2 * check_scalar("alpha", alpha).astype(support.dtype) / support.shape[1]
    residual = contract("nkd,d->nk", support, start) - targets
    moved = start - step * contract("nkd,nk->nd", support, residual)
    return jnp.mean((contract("nqd,nd->nq", query, moved) - query_targets) ** 2, axis=1)


@source("zou2022", "equation B.6 (and H.4, support and query apart)", "as printed")
def limit_risk(
    phi: ArrayLike,
    alpha: ArrayLike,
    task_var: ArrayLike = 1.0,
    *,
    phi_query: ArrayLike | None = None,
) -> Array:
    """The risk with infinitely many training tasks, as a function of alpha, L_apx.

    (sa2 / K) E tr M = (sa2 / K) (p1 - (4 alpha / K) p2 + (4 alpha^2 / K^2) p3),

    for optima of covariance sa2 I, around whose mean the minimiser settles. `limit_rate` minimises it.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the support examples
    alpha : adaptation rate
    task_var : variance sa2 of every coordinate of the optima, >= 0
    phi_query : (tasks, query shots, dim) features of separate query examples, or None

    Returns
    -------
    Scalar, >= 0.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite or `task_var` is negative.

    References
    ----------
    Zou et al. (2022), equation B.6; with `phi_query`, H.4.
    """
    support = check_features("phi", phi)
    query = support
    if phi_query is not None:
        query = check_query_features("phi_query", phi_query, support)
    support, query, rate, variance = to_common_dtype(
        support, query, check_scalar("alpha", alpha), check_variance("task_var", task_var)
    )
    adapted = adapted_features(support, 2 * rate / support.shape[1], query)
    return variance * jnp.mean(jnp.sum(adapted**2, axis=2))


def check_variance(name: str, value: ArrayLike) -> Array:
    """A single variance: finite and not negative."""
    return check_nonnegative(name, check_scalar(name, value))


@source("zou2022", "equation B.5", "as printed")
def average_risk(
    phi: ArrayLike,
    alpha: ArrayLike,
    task_var: ArrayLike = 1.0,
    *,
    phi_test: ArrayLike | None = None,
) -> Array:
    """Population risk of the MAML minimiser, averaged exactly over the optima of the training tasks.

    (sa2 / K) [tr(Mbar S^-1 (sum_i M_i^2) S^-1) + tr Mbar],   S = sum_i M_i,

    M_i = G_i (I - (2 alpha / K) G_i)^2, and Mbar its mean over the tasks that are tested on.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the training tasks; tasks * shots >= dim
    alpha : adaptation rates, in training and testing, any shape
    task_var : variance sa2 of every coordinate of the optima, >= 0
    phi_test : (test tasks, test shots, dim) features that stand for the population; default `phi`

    Returns
    -------
    Array of the shape of `alpha`, >= `limit_risk` of the test features.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite, `task_var` is negative, there are fewer examples
        than features, or S is singular to working precision (under jit, or with many rates: an equinox runtime
        error).

    References
    ----------
    Zou et al. (2022), equation B.5.
    """
    rates, train, test, variance = _checked(phi, alpha, task_var, phi_test)
    return variance * at_rates(_average_risk, rates, train, test) / test.shape[1]


def _average_risk(alpha: Array, train: Array, test: Array) -> Array:
    scatter, spread, adapted = _whitened("average_risk", train, alpha, test)
    return jnp.sum(scatter * spread) + jnp.mean(jnp.sum(adapted**2, axis=(1, 2)))


@source("zou2022", "the variance that Proposition 1 bounds, for Gaussian optima", "derived")
def risk_variance(
    phi: ArrayLike,
    alpha: ArrayLike,
    task_var: ArrayLike = 1.0,
    *,
    phi_test: ArrayLike | None = None,
) -> Array:
    """Variance of the population risk of the MAML minimiser over Gaussian optima, exactly.

    Var L_m(w_m) = 2 sa2^2 tr[(B Q)^2] / K^2,   B = S^-1 Mbar S^-1,   Q = sum_i M_i^2.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the training tasks; tasks * shots >= dim
    alpha : adaptation rates, in training and testing, any shape
    task_var : variance sa2 of every coordinate of the Gaussian optima, >= 0
    phi_test : (test tasks, test shots, dim) features that stand for the population; default `phi`

    Returns
    -------
    Array of the shape of `alpha`, >= 0; it falls as one over the number of training tasks squared.

    Raises
    ------
    InputError
        As for `average_risk`.

    References
    ----------
    Derived for the setting of Zou et al. (2022), Proposition 1.
    """
    rates, train, test, variance = _checked(phi, alpha, task_var, phi_test)
    return 2 * (variance / test.shape[1]) ** 2 * at_rates(_risk_variance, rates, train, test)


def _risk_variance(alpha: Array, train: Array, test: Array) -> Array:
    scatter, spread, _ = _whitened("risk_variance", train, alpha, test)
    product = scatter @ spread
    return jnp.sum(product * product.T)


def _checked(
    phi: ArrayLike, alpha: ArrayLike, task_var: ArrayLike, phi_test: ArrayLike | None
) -> tuple[Array, Array, Array, Array]:
    """Rates, features of training and test tasks, and sa2."""
    train = nonzero_features("phi", phi)
    test = train
    if phi_test is not None:
        test = check_array("phi_test", phi_test, "test tasks", "test shots", train.shape[2])
    train, test, variance = to_common_dtype(train, test, check_variance("task_var", task_var))
    return check_rates("alpha", alpha).astype(train.dtype), train, test, variance


def _whitened(function: str, train: Array, alpha: Array, test: Array) -> tuple[Array, Array, Array]:
    """R^-T Mbar R^-1 and R^-T (sum M^2) R^-1 with S = R^T R, and the adapted test features."""
    triangular, spread = squared_sum(function, train, alpha)
    adapted = adapted_features(test, 2 * alpha / test.shape[1])
    rows = solve_triangular(triangular, adapted.reshape(-1, test.shape[2]).T, transpose=True)
    return rows @ rows.T / test.shape[0], spread, adapted


def squared_sum(function: str, phi: Array, alpha: Array) -> tuple[Array, Array]:
    """R with S = sum M_i = R^T R, and R^-T (sum M_i^2) R^-1 = sum Q_i^T C_i C_i^T Q_i."""
    check_determined(function, phi.shape[0] * phi.shape[1], phi.shape[2])
    adapted = adapted_features(phi, 2 * alpha / phi.shape[1])
    rows, triangular = factorise(function, adapted.reshape(-1, phi.shape[2]))
    rows = rows.reshape(phi.shape)
    if phi.shape[1] <= phi.shape[2]:
        moved = contract("nkl,nld->nkd", contract("nkd,nld->nkl", adapted, adapted), rows)
    else:
        moved = contract("nkd,nde->nke", adapted, contract("nkd,nke->nde", adapted, rows))
    return triangular, contract("nkd,nke->de", rows, moved)
