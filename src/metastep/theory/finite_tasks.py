"""How far the optimal rate of finitely many tasks is from its limit, on average and in one sample."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep.theory._linear import factorise
from metastep.theory.citations import source
from metastep.theory.estimators import limit_rate
from metastep.theory.grams import (
    adapted_features,
    contract,
    mean_trace_powers,
    nonzero_features,
    small_gram,
    unit_scale,
)


@source("zou2022", "Theorem 1, next order in 1/N", "derived")
def finite_task_coefficient(phi: ArrayLike) -> Array:
    """The coefficient c in alpha*(N) = alpha_lim + c / N + O(N^-2).

    c = -K^2 g'(alpha_lim) / (8 p3),  g(alpha) = tr (E M)^-1 E M^2,  M = G (I - (2 alpha / K) G)^2,

    where alpha*(N) minimises the average risk of N training tasks. The expectations are means over
    the tasks given, so they should be many more than the features.

    Parameters
    ----------
    phi : (tasks, shots, dim) features; tasks * shots >= dim

    Returns
    -------
    Scalar in the units of the rate.

    Raises
    ------
    InputError
        If `phi` is not as described, or E M is singular to working precision.

    References
    ----------
    Derived from Zou et al. (2022), equation B.5.
    """
    features = nonzero_features("phi", phi)
    scale = unit_scale(features)
    unit = features / scale
    shots = unit.shape[1]
    p3 = mean_trace_powers(small_gram(unit)).p3
    rate = limit_rate(unit)
    _, slope = jax.jvp(lambda alpha: _excess(unit, alpha), (rate,), (jnp.ones_like(rate),))
    return -(shots**2) * slope / (8 * p3) / scale**2


def _excess(phi: Array, alpha: Array) -> Array:
    """g(alpha) = sum_i ||C_i^T Q_i||_F^2, where Q_i are the rows of Q in C = Q R."""
    adapted = adapted_features(phi, 2 * alpha / phi.shape[1])
    stacked = adapted.reshape(-1, phi.shape[2])
    rows, _ = factorise("finite_task_coefficient", stacked)
    rows = rows.reshape(phi.shape)
    if phi.shape[1] <= phi.shape[2]:
        return jnp.sum(
            contract("nkd,nld->nkl", adapted, adapted) * contract("nkd,nld->nkl", rows, rows)
        )
    return jnp.sum(contract("nkd,nke->nde", adapted, rows) ** 2)


@source("zou2022", "Theorem 1, fluctuations of order 1/sqrt(N)", "derived")
def finite_task_scatter(phi: ArrayLike) -> Array:
    """The factor s in sd alpha*(N) = s / sqrt(N), the scatter of the best rate of one sample of N tasks.

    s = (K / 2) sqrt(E [(tr T)^2 + 2 ||T||_F^2]) / E tr G^3,   T = G^2 - (2 alpha_lim / K) G^3,

    by the delta method for alpha* = (K / 2) sum a^T G^2 a / sum a^T G^3 a, its leading order, with
    Gaussian optima a of covariance a multiple of I. The expectations are means over the tasks given.

    Parameters
    ----------
    phi : (tasks, shots, dim) features

    Returns
    -------
    Scalar in the units of the rate.

    Raises
    ------
    InputError
        If `phi` is not as described or zero everywhere.

    References
    ----------
    Derived from Zou et al. (2022), equation B.6.
    """
    features = nonzero_features("phi", phi)
    scale = unit_scale(features)
    unit = features / scale
    gram = small_gram(unit)
    square = contract("nij,njk->nik", gram, gram)
    cube = contract("nij,njk->nik", square, gram)
    term = square - 2 * limit_rate(unit) / unit.shape[1] * cube  # the mean of tr T is 0
    traces = jnp.trace(term, axis1=1, axis2=2)
    variance = jnp.mean(traces**2 + 2 * jnp.sum(term**2, axis=(1, 2)))
    third = jnp.trace(cube, axis1=1, axis2=2).mean()
    return unit.shape[1] / 2 * jnp.sqrt(variance) / third / scale**2
