"""The initialisations that ERM and MAML converge to, in closed form.

ERM is MAML with alpha = 0. The adapted features of task i are C_i = Phi_t (I - (2 alpha / K) G_u), and the
minimiser is the least-squares solution of the stacked equations C_i w = C_i a_i.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import InputError
from metastep.theory._inputs import (
    check_array,
    check_optima,
    check_query_features,
    check_scalar,
    check_weights,
    to_common_dtype,
)
from metastep.theory._linear import check_determined, factorise, solve_triangular
from metastep.theory.citations import source
from metastep.theory.grams import adapted_features, contract, nonzero_features, unit_scale


@source("zou2022", "equation 3.1", "corrected", "a_j, not a_i, in the second sum")
@source("zou2022", "equation H.2 (support and query apart)", "as printed")
def minimiser(
    phi: ArrayLike,
    optima: ArrayLike,
    alpha: ArrayLike = 0.0,
    *,
    phi_query: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Array:
    """The minimiser of the empirical MAML risk; with alpha = 0 that of ERM.

    w(alpha) = (sum_i v_i M_i)^-1 sum_j v_j M_j a_j,   M_i = C_i^T C_i,

    C_i = Phi_t (I - (2 alpha / K) Phi_u^T Phi_u), with weights v_i.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the support examples
    optima : (tasks, dim) optimal parameters a_i of the tasks
    alpha : adaptation rate, any sign
    phi_query : (tasks, query shots, dim) features of separate query examples, or None
    weights : (tasks,) weights >= 0, default all 1

    Returns
    -------
    (dim,) array.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite, there are fewer examples than features, or the
        adapted features are dependent to working precision (under jit: an equinox runtime error).

    References
    ----------
    Zou et al. (2022), equation 3.1, corrected in an index; with `phi_query`, H.2.
    """
    support = nonzero_features("phi", phi)
    targets = check_optima("optima", optima, support)
    query = support
    if phi_query is not None:
        query = check_query_features("phi_query", phi_query, support)
    support, targets, query = to_common_dtype(support, targets, query)
    labels = contract("nkd,nd->nk", support, targets)
    labels_query = contract("nkd,nd->nk", query, targets)
    return _solve("minimiser", support, labels, query, labels_query, alpha, weights)


@source("zou2022", "equation 3.1 as a linear map of the optima", "derived")
def minimiser_shares(
    phi: ArrayLike, alpha: ArrayLike = 0.0, *, weights: ArrayLike | None = None
) -> Array:
    """How much of every task's optimum the minimiser takes over: w(alpha) = sum_i shares_i a_i.

    shares_i = (sum_j v_j M_j)^-1 v_i M_i,   with weights v_i; they add up to the identity.

    One factorisation for any number of draws of the optima.

    Parameters
    ----------
    phi : (tasks, shots, dim) features; tasks * shots >= dim
    alpha : adaptation rate, any sign
    weights : (tasks,) weights >= 0, default all 1

    Returns
    -------
    (tasks, dim, dim) array.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite, a weight is negative, there are fewer examples than
        features, or the adapted features are dependent to working precision (under jit: an equinox runtime error).

    References
    ----------
    Zou et al. (2022), equation 3.1.
    """
    features = nonzero_features("phi", phi)
    check_determined("minimiser_shares", features.shape[0] * features.shape[1], features.shape[2])
    step = 2 * check_scalar("alpha", alpha).astype(features.dtype) / features.shape[1]
    root, _ = root_weights(weights, features)
    adapted = root[..., None] * adapted_features(features, step)
    rows, triangular = factorise("minimiser_shares", adapted.reshape(-1, features.shape[2]))
    rows = rows.reshape(features.shape)  # S = R^T R and C_i = Q_i R, so S^-1 M_i = R^-1 Q_i^T C_i
    products = contract("nkd,nke->dne", rows, adapted)
    solved = solve_triangular(triangular, products.reshape(features.shape[2], -1))
    return jnp.swapaxes(solved.reshape(products.shape), 0, 1)


def covariance_from_powers(powers: Array, step: ArrayLike) -> Array:
    """S^-1 (sum M_i^2) S^-1, the covariance of the minimiser for optima of covariance I; step = 2 alpha / K.

    From the sums S_1, ..., S_6 of `gram_power_sums`: cheap at many rates, for well conditioned sums.
    """
    one = jnp.asarray(step, powers.dtype)
    total = powers[0] - 2 * one * powers[1] + one**2 * powers[2]
    binomial = jnp.stack([jnp.ones_like(one), -4 * one, 6 * one**2, -4 * one**3, one**4])
    squared = contract("j,jde->de", binomial, powers[1:])  # G^2 (I - step G)^4
    return jnp.linalg.solve(total, jnp.linalg.solve(total, squared).T)


@source("zou2022", "equation 3.1 for any labels", "derived")
def label_minimiser(
    phi: ArrayLike,
    labels: ArrayLike,
    alpha: ArrayLike = 0.0,
    *,
    phi_query: ArrayLike | None = None,
    labels_query: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Array:
    """The minimiser of the empirical MAML risk for labels that need not be realisable.

    The least-squares solution of   C_i w = y_t - (2 alpha / K) Phi_t Phi_u^T y_u   over all tasks.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the support examples
    labels : (tasks, shots) labels of the support examples
    alpha : adaptation rate, any sign
    phi_query, labels_query : (tasks, query shots, dim) and (tasks, query shots), or both None
    weights : (tasks,) weights >= 0, default all 1

    Returns
    -------
    (dim,) array.

    Raises
    ------
    InputError
        As for `minimiser`, and if only one of `phi_query` and `labels_query` is given.

    References
    ----------
    Derived from Zou et al. (2022), equations 3.1 and H.2.
    """
    arrays = check_labelled(phi, labels, phi_query, labels_query)
    return _solve("label_minimiser", *arrays, alpha, weights)


def check_labelled(
    phi: ArrayLike,
    labels: ArrayLike,
    phi_query: ArrayLike | None,
    labels_query: ArrayLike | None,
) -> tuple[Array, Array, Array, Array]:
    """Support features and labels, query features and labels; the query defaults to the support."""
    support = nonzero_features("phi", phi)
    targets = check_array("labels", labels, *support.shape[:2])
    if (phi_query is None) != (labels_query is None):
        missing = "phi_query" if phi_query is None else "labels_query"
        raise InputError(f"{missing} is None; give phi_query and labels_query together, or neither")
    query, query_targets = support, targets
    if phi_query is not None:
        query = check_query_features("phi_query", phi_query, support)
        query_targets = check_array("labels_query", labels_query, *query.shape[:2])
    support, targets, query, query_targets = to_common_dtype(support, targets, query, query_targets)
    return support, targets, query, query_targets


def root_weights(weights: ArrayLike | None, phi: Array) -> tuple[Array, Array]:
    """Square roots of the tasks' weights as a factor on their rows, (tasks, 1), and the sum of weights."""
    if weights is None:
        ones = jnp.ones((phi.shape[0], 1), phi.dtype)
        return ones, ones.sum()
    checked = check_weights("weights", weights, phi.shape[0]).astype(phi.dtype)
    positive = checked > 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, checked, 1)), 0)
    return root[:, None], checked.sum()


def _solve(
    function: str,
    phi: Array,
    labels: Array,
    query: Array,
    labels_query: Array,
    alpha: ArrayLike,
    weights: ArrayLike | None,
) -> Array:
    """Stack the adapted features and labels of all tasks and solve for the parameters."""
    check_determined(function, query.shape[0] * query.shape[1], phi.shape[2])
    root, _ = root_weights(weights, phi)
    scale = unit_scale(phi)
    step = 2 * check_scalar("alpha", alpha).astype(phi.dtype) / phi.shape[1] * scale**2
    unit = phi / scale
    adapted = root[..., None] * adapted_features(unit, step, query / scale)
    gradient = contract("nkd,nk->nd", unit, labels)
    moved = contract("nqd,nd->nq", query / scale, gradient)
    targets = root * (labels_query - step * moved) / scale
    orthogonal, triangular = factorise(function, adapted.reshape(-1, phi.shape[2]))
    return solve_triangular(triangular, contract("rd,r->d", orthogonal, targets.ravel()))
