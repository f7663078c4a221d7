"""How far the optimal rate of finitely many tasks is from its limit, on average and in one sample."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep.theory._inputs import check_array, to_common_dtype
from metastep.theory._linear import check_determined, factorise
from metastep.theory.citations import source
from metastep.theory.estimators import limit_rate
from metastep.theory.grams import (
    adapted_features,
    contract,
    gram_power_sums,
    mean_trace_powers,
    nonzero_features,
    small_gram,
    unit_scale,
)
from metastep.theory.minimisers import covariance_from_powers

_GRID = 200  # rates among which the least risk is looked for first
_BISECTIONS = 60


@source("zou2022", "equation 3.2: minimiser of the average risk B.5", "derived")
def average_risk_rate(phi: ArrayLike, phi_test: ArrayLike | None = None) -> Array:
    """alpha*(N), the rate of least average risk with these N training tasks.

    argmin over 0 < alpha <= 2 alpha_lim of  tr[Mbar S^-1 (sum_i M_i^2) S^-1] + tr Mbar,   S = sum_i M_i,

    which is `average_risk` but for a factor, with alpha_lim the `limit_rate` of the test features. From sums of
    powers of the Gram matrices: as exact as they are well conditioned, feature by feature brought to one scale.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the training tasks; tasks * shots >= dim
    phi_test : (test tasks, test shots, dim) features that stand for the population; default `phi`

    Returns
    -------
    Scalar in the units of the rate. Not differentiable.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite, features are all zero, or there are fewer examples than
        features.

    References
    ----------
    Derived from Zou et al. (2022), equation B.5.
    """
    train = nonzero_features("phi", phi)
    check_determined("average_risk_rate", train.shape[0] * train.shape[1], train.shape[2])
    test = train
    if phi_test is not None:
        test = check_array("phi_test", phi_test, "test tasks", "test shots", train.shape[2])
    train, test = to_common_dtype(train, nonzero_features("phi_test", test))
    return _least_average_risk(train, test)


@jax.jit
def _least_average_risk(train: Array, test: Array) -> Array:
    scale = unit_scale(test)
    train, test = train / scale, test / scale
    sums, mean_powers = gram_power_sums(train), gram_power_sums(test)[:3] / test.shape[0]
    length = jnp.sqrt(jnp.diagonal(mean_powers[0]))
    length = jnp.where(length > 0, length, 1)
    sums, mean_powers = (powers / jnp.outer(length, length) for powers in (sums, mean_powers))

    def risk(alpha: Array) -> Array:
        step = 2 * alpha / test.shape[1]
        mean = mean_powers[0] - 2 * step * mean_powers[1] + step**2 * mean_powers[2]
        covariance = covariance_from_powers(sums, 2 * alpha / train.shape[1])
        return jnp.sum(mean * covariance) + jnp.diagonal(mean) @ length**2

    width = 2 * limit_rate(test) / _GRID
    rates = width * jnp.arange(1, _GRID + 1, dtype=width.dtype)
    best = rates[jnp.nanargmin(jax.vmap(risk)(rates))]

    def halve(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        falls = jax.grad(risk)(middle) < 0
        return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (best - width, best + width))
    return (low + high) / 2 / scale**2


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
