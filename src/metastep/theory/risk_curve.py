"""The minimal empirical risk as a function of alpha, for the price of one pass over the tasks.

The adapted features and labels of all tasks are linear in step = 2 alpha / K,

    C(step) = A_0 - step A_1,   e(step) = e_0 - step e_1,

so the triangular factor of [A_0 A_1 e_0 e_1], 2 dim + 2 rows, stands for the tasks at every alpha.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep.theory._inputs import (
    as_float_array,
    check_array,
    check_finite,
    check_optima,
    check_positive_values,
    check_query_features,
    check_scalar,
    to_common_dtype,
)
from metastep.theory._linear import check_determined, condition_limit
from metastep.theory.citations import source
from metastep.theory.grams import contract, nonzero_features, second_features, unit_scale
from metastep.theory.minimisers import check_labelled, root_weights

_GRID = 201  # rates per scan; the same number every time, so that one compiled program serves all
_SCANS = 3


@jax.custom_jvp
def _triangular_factor(stacked: Array) -> Array:
    """R of the QR factorisation, from which only what R^T R determines may be computed.

    Householder's method is limited by memory on tall arrays. Cholesky's on the Gram matrix is many
    times faster and errs by eps times the square of the condition number: where that is small one
    pass is enough, where it is moderate a second pass on the result mends it.
    """
    if stacked.shape[0] < stacked.shape[1]:
        return jnp.linalg.qr(stacked, mode="r")
    norms = jnp.sqrt(jnp.sum(stacked**2, axis=0))
    size = jnp.where(norms > 0, norms, 1)
    gram = contract("ri,rj->ij", stacked, stacked) / jnp.outer(size, size)
    spectrum = jnp.linalg.eigvalsh(gram)
    share, eps = spectrum[0] / spectrum[-1], jnp.finfo(gram.dtype).eps
    passes = jnp.int32(share > eps**0.75) + jnp.int32(share > eps**0.25)

    def householder() -> Array:
        return jnp.linalg.qr(stacked, mode="r")

    def cholesky() -> Array:
        return jnp.linalg.cholesky(gram).T * size

    def cholesky_twice() -> Array:
        first = cholesky()
        inverse = jax.scipy.linalg.solve_triangular(first, jnp.eye(size.size, dtype=size.dtype))
        rows = contract("ri,ij->rj", stacked, inverse)  # orthogonal, but for rounding
        second = jnp.linalg.cholesky(contract("ri,rj->ij", rows, rows)).T
        return contract("ij,jk->ik", second, first)

    return jax.lax.switch(passes, [householder, cholesky_twice, cholesky])


@_triangular_factor.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """dR = Q^T dX: it gives d(R^T R) exactly, for dependent columns too, though R + dR is full."""
    orthogonal, triangular = jnp.linalg.qr(primals[0])
    return triangular, orthogonal.T @ tangents[0]


@source("zou2022", "equations 2.5 and 3.1, as functions of alpha", "derived")
class RiskCurve(eqx.Module):
    """Sufficient statistics of a sample of tasks; every alpha then costs O(dim^3), however many tasks.

    Made by `risk_curve` or `risk_curve_from_labels`. At an alpha at which the adapted features are
    dependent to working precision the minimiser is not determined, and both it and its risk are NaN.

    Attributes
    ----------
    factor : (min(examples, 2 dim + 2), 2 dim + 2) triangular factor of [A_0 A_1 e_0 e_1]
    scale : feature scale that was divided out
    shots : support examples per task, K
    total : query examples times mean weight, which the risk is divided by
    """

    factor: Array
    scale: Array
    total: Array
    shots: int = eqx.field(static=True)

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.factor.shape[1] // 2 - 1

    def risks(self, alphas: ArrayLike) -> Array:
        """Minimal empirical risk min_w (1/N) sum_i (1/K) ||C_i(alpha) w - e_i||^2 at every alpha.

        Parameters
        ----------
        alphas : adaptation rates, any shape

        Returns
        -------
        Array of the shape of `alphas`.
        """
        return self._map(alphas, _fitted_risk)

    def minimisers(self, alphas: ArrayLike) -> Array:
        """The minimiser w(alpha) at every alpha, as `minimiser` gives it.

        Parameters
        ----------
        alphas : adaptation rates, any shape

        Returns
        -------
        Array of the shape of `alphas` with one more axis, of size dim.
        """
        return self._map(alphas, _fitted_params)

    def risks_at(self, params: ArrayLike, alphas: ArrayLike) -> Array:
        """Empirical risk of given parameters at every alpha.

        Parameters
        ----------
        params : (dim,) parameters
        alphas : adaptation rates, any shape

        Returns
        -------
        Array of the shape of `alphas`.
        """
        weights = check_array("params", params, self.dim).astype(self.factor.dtype)
        return self._map(alphas, _risk_at, weights)

    def best_rate(self, highest: ArrayLike) -> float:
        """The rate in [0, highest] at which the minimal empirical risk is least.

        A scan of the whole range, then of what surrounds its minimum: the risk over alpha may have several.

        Parameters
        ----------
        highest : end of the range, > 0; a few times `limit_rate` holds the minimum of most samples

        Returns
        -------
        The rate, to 10^-6 of `highest`. A number, not to be traced or differentiated.

        Raises
        ------
        InputError
            If `highest` is not a finite number above 0.
        """
        width = float(check_positive_values("highest", check_scalar("highest", highest)))
        low = best = 0.0
        for _ in range(_SCANS):
            alphas = np.linspace(low, low + width, _GRID)
            best = float(alphas[int(np.nanargmin(self.risks(alphas)))])
            width = 2 * width / (_GRID - 1)
            low = max(0.0, best - width / 2)
        return best

    def _map(self, alphas: ArrayLike, function: Any, *arguments: Array) -> Array:
        rates = check_finite("alphas", as_float_array("alphas", alphas)).astype(self.factor.dtype)
        steps = 2 * rates.ravel() / self.shots * self.scale**2
        values = _over_steps(function, self, steps, arguments)
        return values.reshape(rates.shape + values.shape[1:])

    def _adapted(self, step: Array) -> tuple[Array, Array]:
        """C and e at this step, in the coordinates of the factor."""
        dim = self.dim
        features = self.factor[:, :dim] - step * self.factor[:, dim : 2 * dim]
        return features, self.factor[:, -2] - step * self.factor[:, -1]

    def _fit(self, step: Array) -> tuple[Array, Array]:
        features, labels = self._adapted(step)
        orthogonal, triangular = jnp.linalg.qr(features)
        pivots = jnp.abs(jnp.diagonal(triangular))
        determined = pivots.min() * condition_limit(pivots.dtype) > pivots.max()
        triangular = jnp.where(determined, triangular, jnp.eye(self.dim, dtype=pivots.dtype))
        projected = orthogonal.T @ labels
        params = jax.scipy.linalg.solve_triangular(triangular, projected)
        risk = self._risk(labels - orthogonal @ projected)
        return jnp.where(determined, params, jnp.nan), jnp.where(determined, risk, jnp.nan)

    def _risk(self, residual: Array) -> Array:
        return jnp.sum(residual**2) / self.total * self.scale**2


def _fitted_risk(curve: RiskCurve, step: Array) -> Array:
    return curve._fit(step)[1]


def _fitted_params(curve: RiskCurve, step: Array) -> Array:
    return curve._fit(step)[0]


def _risk_at(curve: RiskCurve, step: Array, params: Array) -> Array:
    features, labels = curve._adapted(step)
    return curve._risk(features @ params - labels)


@partial(jax.jit, static_argnums=0)
def _over_steps(
    function: Callable[..., Array], curve: RiskCurve, steps: Array, arguments: tuple[Array, ...]
) -> Array:
    """One function of the curve at every step; compiled once per number of steps."""
    return jax.vmap(lambda step: function(curve, step, *arguments))(steps)


@source("zou2022", "equations 2.5 and 3.1, as functions of alpha", "derived")
def risk_curve(
    phi: ArrayLike,
    optima: ArrayLike,
    *,
    phi_query: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> RiskCurve:
    """Gather what the minimal empirical risk needs to be known at any number of alphas.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the support examples; tasks * shots >= dim
    optima : (tasks, dim) optimal parameters a_i of the tasks
    phi_query : (tasks, query shots, dim) features of separate query examples, or None
    weights : (tasks,) weights >= 0, default all 1; the risk is the weighted mean over tasks

    Returns
    -------
    RiskCurve
        `risks(alphas)` is the curve, `minimisers(alphas)` the path of the initialisation. It can be
        differentiated by its arguments once, and by alpha at will.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite or there are fewer examples than features.

    References
    ----------
    Zou et al. (2022), equations 2.5 and 3.1.
    """
    support = nonzero_features("phi", phi)
    targets = check_optima("optima", optima, support)
    query = support
    if phi_query is not None:
        query = check_query_features("phi_query", phi_query, support)
    support, targets, query = to_common_dtype(support, targets, query)
    labels = contract("nkd,nd->nk", support, targets)
    labels_query = contract("nkd,nd->nk", query, targets)
    return _gather("risk_curve", support, labels, query, labels_query, weights)


@source("zou2022", "equations 2.5 and 3.1 for any labels, as functions of alpha", "derived")
def risk_curve_from_labels(
    phi: ArrayLike,
    labels: ArrayLike,
    *,
    phi_query: ArrayLike | None = None,
    labels_query: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> RiskCurve:
    """`risk_curve` for labels that need not be realisable, noisy ones for example.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the support examples; tasks * shots >= dim
    labels : (tasks, shots) their labels
    phi_query, labels_query : (tasks, query shots, dim) and (tasks, query shots), or both None
    weights : (tasks,) weights >= 0, default all 1

    Returns
    -------
    RiskCurve

    Raises
    ------
    InputError
        As for `risk_curve`, and if only one of `phi_query` and `labels_query` is given.

    References
    ----------
    Derived from Zou et al. (2022), equations 2.5 and 3.1.
    """
    arrays = check_labelled(phi, labels, phi_query, labels_query)
    return _gather("risk_curve_from_labels", *arrays, weights)


def _gather(
    function: str,
    phi: Array,
    labels: Array,
    query: Array,
    labels_query: Array,
    weights: ArrayLike | None,
) -> RiskCurve:
    tasks, query_shots, dim = query.shape
    check_determined(function, tasks * query_shots, dim)
    root, weight = root_weights(weights, phi)
    factor, scale = _reduce(phi, labels, query, labels_query, root)
    return RiskCurve(factor, scale, weight * query_shots, phi.shape[1])


@jax.jit
def _reduce(
    phi: Array, labels: Array, query: Array, labels_query: Array, root: Array
) -> tuple[Array, Array]:
    """The triangular factor of [A_0 A_1 e_0 e_1] over all examples, and the feature scale."""
    scale = unit_scale(phi, query)
    phi, query = phi / scale, query / scale
    moved = contract("nqd,nd->nq", query, contract("nkd,nk->nd", phi, labels))
    columns = [query, second_features(phi, query)]
    columns += [labels_query[..., None] / scale, moved[..., None] / scale]
    stacked = root[..., None] * jnp.concatenate(columns, axis=2)
    return _triangular_factor(stacked.reshape(-1, stacked.shape[2])), scale
