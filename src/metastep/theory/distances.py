"""Distance between adapted parameters and task optima, of MAML's initialisation against ERM's."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import check_count
from metastep.theory._inputs import (
    check_array,
    check_features,
    check_nonnegative,
    check_optima,
    check_scalar,
    to_common_dtype,
)
from metastep.theory._linear import check_determined, factorise, solve_triangular
from metastep.theory._rates import at_rates, check_rates
from metastep.theory.citations import source
from metastep.theory.estimators import limit_rate
from metastep.theory.grams import contract, gram_power_sums, nonzero_features, second_features
from metastep.theory.intervals import eigenvalue_bounds
from metastep.theory.minimisers import covariance_from_powers
from metastep.theory.risks import check_variance, squared_sum

_GRID = 200  # rates at which a change of sign is looked for
_BISECTIONS = 60


@source("zou2022", "Definition 1 (equation 3.6)", "corrected", "squared, and t gradient steps")
def adapted_distance(
    params: ArrayLike, phi: ArrayLike, optima: ArrayLike, eta: ArrayLike, steps: int
) -> Array:
    """Mean squared distance to the task optima after `steps` gradient steps on each task, F_t.

    F_t(w) = (1/N) sum_i ||Q_i^t (w - a_i)||^2,   Q_i = I - (2 eta / K) G_i.

    Parameters
    ----------
    params : (dim,) initialisation w
    phi : (tasks, shots, dim) features
    optima : (tasks, dim) optimal parameters a_i of the tasks
    eta : step size of the adaptation
    steps : number of steps t, >= 0

    Returns
    -------
    Scalar, >= 0.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite or `steps` is negative.

    References
    ----------
    Zou et al. (2022), Definition 1, corrected: gradients at steps 0 to t - 1.
    """
    features = check_features("phi", phi)
    start = check_array("params", params, features.shape[2])
    targets = check_optima("optima", optima, features)
    check_count("steps", steps, minimum=0)
    features, start, targets, rate = to_common_dtype(
        features, start, targets, check_scalar("eta", eta)
    )
    step = 2 * rate / features.shape[1]

    def descend(_, error: Array) -> Array:
        gradient = contract("nkd,nk->nd", features, contract("nkd,nd->nk", features, error))
        return error - step * gradient

    error = jax.lax.fori_loop(0, steps, descend, start - targets)
    return jnp.mean(jnp.sum(error**2, axis=1))


@source(
    "zou2022", "Theorem 2 and equations G.8 to G.19", "corrected", "no diagonal features needed"
)
def distance_gap(
    phi: ArrayLike,
    alpha: ArrayLike,
    eta: ArrayLike,
    steps: int,
    task_var: ArrayLike = 1.0,
    *,
    linearised: bool = False,
    phi_test: ArrayLike | None = None,
) -> Array:
    """Expected F_t of MAML's minimiser minus that of ERM's; negative: MAML starts closer.

    Exactly, for optima of covariance sa2 I independent of the features,

        sa2 tr[W_t (S^-1 (sum M_i^2) S^-1 - V S_2 V)],   V = S_1^-1,   S_j = sum_i G_i^j,

    W_t = E Q^(2t), S = sum M_i. To first order in alpha it is never positive:

        (8 alpha sa2 / K) tr[V W_t V (S_2 V S_2 - S_3)].

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the training tasks; tasks * shots >= dim
    alpha : adaptation rates that MAML was trained with, any shape
    eta, steps : step size and number of steps of the adaptation that follows, steps >= 0
    task_var : variance sa2 of every coordinate of the optima, >= 0
    linearised : the first-order form instead of the exact one
    phi_test : (test tasks, test shots, dim) features of the tasks adapted to; default `phi`

    Returns
    -------
    Array of the shape of `alpha`.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite, `task_var` is negative, or the features are
        dependent to working precision (under jit, or with many rates: an equinox runtime error).

    References
    ----------
    Zou et al. (2022), Theorem 2, corrected: sa2 restored, and no assumption that Gram matrices
    are diagonal or commute.
    """
    train = nonzero_features("phi", phi)
    contraction = _contraction(train, eta, steps, phi_test)
    train, contraction, variance = to_common_dtype(
        train, contraction, check_variance("task_var", task_var)
    )
    rates = check_rates("alpha", alpha).astype(train.dtype)
    if linearised:
        slope = _first_order(train, contraction)
        return -8 * rates * variance / train.shape[1] * slope
    spread_erm = _spread("distance_gap", train, jnp.zeros((), train.dtype))
    return variance * at_rates(_gap_to, rates, train, contraction, spread_erm)


def _gap_to(alpha: Array, train: Array, contraction: Array, spread_erm: Array) -> Array:
    """tr W_t (spread of MAML's minimiser - that of ERM's)."""
    return jnp.sum(contraction * (_spread("distance_gap", train, alpha) - spread_erm))


def _contraction(
    train: Array, eta: ArrayLike, steps: int, phi_test: ArrayLike | None = None
) -> Array:
    """W_t = E Q^(2t) over the tasks adapted to, Q = I - (2 eta / K) G: (dim, dim)."""
    check_count("steps", steps, minimum=0)
    test = train
    if phi_test is not None:
        test = check_array("phi_test", phi_test, "test tasks", "test shots", train.shape[2])
    step = 2 * check_scalar("eta", eta).astype(test.dtype) / test.shape[1]
    identity = jnp.eye(test.shape[2], dtype=test.dtype)
    factors = identity - step * contract("nkd,nke->nde", test, test)
    return jnp.mean(jnp.linalg.matrix_power(factors, 2 * steps), axis=0)


def _spread(function: str, phi: Array, alpha: Array) -> Array:
    """S^-1 (sum M_i^2) S^-1, the covariance of the minimiser for optima of covariance I."""
    triangular, spread = squared_sum(function, phi, alpha)
    half = solve_triangular(triangular, spread)
    return solve_triangular(triangular, half.T)


def _first_order(phi: Array, contraction: Array) -> Array:
    """tr[V W V (S_3 - S_2 V S_2)], with the Schur complement as Z^T Z: it cannot come out negative.

    Z is what is left of the stacked Phi_i G_i after projection on the stacked Phi_i.
    """
    dim = phi.shape[2]
    orthogonal, triangular = factorise("distance_gap", phi.reshape(-1, dim))
    second = second_features(phi, phi).reshape(-1, dim)
    rest = second - orthogonal @ (orthogonal.T @ second)
    half = solve_triangular(triangular, solve_triangular(triangular, rest.T, transpose=True))
    return jnp.sum(contraction * (half @ half.T))


@source(
    "zou2022", "the rate up to which Theorem 2 holds, found from its exact left side", "derived"
)
def sign_change_rate(
    phi: ArrayLike, eta: ArrayLike, steps: int, *, phi_test: ArrayLike | None = None
) -> Array:
    """The rate at which `distance_gap` stops being negative: below it MAML starts closer than ERM.

    A diagnostic. The exact gap is followed from 0 to four times `limit_rate` and its first change
    of sign is bisected. Often it lies near or below `limit_rate` itself.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the training tasks; tasks * shots >= dim
    eta, steps : step size and number of steps of the adaptation, steps >= 0
    phi_test : (test tasks, test shots, dim) features of the tasks adapted to; default `phi`

    Returns
    -------
    Scalar, infinite if there is no change of sign in that range. Not differentiable.

    Raises
    ------
    InputError
        As for `distance_gap`.

    References
    ----------
    Derived for the setting of Zou et al. (2022), Theorem 2.
    """
    train = nonzero_features("phi", phi)
    check_determined("sign_change_rate", train.shape[0] * train.shape[1], train.shape[2])
    contraction = _contraction(train, eta, steps, phi_test)
    train, contraction = to_common_dtype(train, contraction)
    _, triangular = factorise("sign_change_rate", train.reshape(-1, train.shape[2]))

    def whiten(matrix: Array) -> Array:  # R^-T A R^-1, so that S_1 becomes the identity
        half = solve_triangular(triangular, matrix, transpose=True)
        return solve_triangular(triangular, half.T, transpose=True)

    powers = jnp.stack([whiten(power) for power in gram_power_sums(train)])
    highest = 2 / train.shape[1] * 4 * limit_rate(train)
    return train.shape[1] / 2 * _first_positive_step(powers, whiten(contraction), highest)


def _gap_from_powers(powers: Array, weight: Array, step: Array) -> Array:
    """The gap at step = 2 alpha / K from the whitened S_1, ..., S_6, for optima of variance 1."""
    return jnp.sum(weight * (covariance_from_powers(powers, step) - powers[1]))


@jax.jit
def _first_positive_step(powers: Array, weight: Array, highest: Array) -> Array:
    """Where on (0, highest] the gap first rises above rounding; infinite if it never does."""
    rounding = 1000 * jnp.finfo(weight.dtype).eps
    tolerance = rounding * jnp.sum(weight * powers[1])
    # With equal tasks the gap is 0 throughout, to first order too: S_3 = S_2 V S_2.
    schur = jnp.sum(weight * (powers[2] - contract("ij,jk->ik", powers[1], powers[1])))
    tasks_differ = schur > rounding * jnp.sum(weight * powers[2])

    def is_above(step: Array) -> Array:
        return _gap_from_powers(powers, weight, step) > tolerance

    grid = highest * jnp.arange(1, _GRID + 1, dtype=highest.dtype) / _GRID
    above = jax.vmap(is_above)(grid)
    upper = grid[jnp.argmax(above)]

    def halve(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        inside = is_above(middle)
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    start = (upper - highest / _GRID, upper)
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, start)
    return jnp.where(above.any() & tasks_differ, (low + high) / 2, jnp.inf)


@source("zou2022", "Theorem 2 (equation G.42)", "corrected", "sufficient, and very conservative")
def distance_rate_bound(phi: ArrayLike, spread: ArrayLike | None = None) -> Array:
    """The range (0, bound] of alpha in which Theorem 2 proves that MAML starts closer than ERM.

    bound = (K lI / P) [sqrt(4 lS^8 + 2 c (1 - 1/N) lI P / lS^3) - 2 lS^4],   P = 4 lS^6 - lI^6,

    with lI, lS the extreme eigenvalues of the tasks' Gram matrices. It needs eta <= K / (2 lS). In
    practice it is many orders of magnitude below the rates in use: `sign_change_rate` is the answer
    to the same question in numbers.

    Parameters
    ----------
    phi : (tasks, shots, dim) features; shots >= dim, or the bound is 0
    spread : c = tr[E G^3 E G - (E G^2)^2] / dim; default: measured on `phi`

    Returns
    -------
    Scalar, >= 0.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite, or `spread` is negative.

    References
    ----------
    Zou et al. (2022), equation G.42, corrected: as printed its terms differ in units.
    """
    features, low, high, gain = _theorem_inputs(phi, spread)
    tasks, shots, _ = features.shape
    # In units of lS, and sqrt(x^2 + y) - x as y / (sqrt(x^2 + y) + x): nothing overflows or cancels.
    ratio = low / high
    remainder = 4 - ratio**6
    y = 2 * gain / high**4 * (1 - 1 / tasks) * ratio * remainder
    return shots / high * ratio / remainder * y / (jnp.sqrt(4 + y) + 2)


@source("zou2022", "Theorem 2 (equation G.42)", "as printed", "its terms differ in units")
def distance_rate_bound_as_printed(phi: ArrayLike, spread: ArrayLike | None = None) -> Array:
    """Equation G.42 as printed, for comparison; `distance_rate_bound` is the corrected form.

    [-2 lS^4 K + K sqrt(4 lS^8 + 1.5 c lI^4 (4 lS^6 - lI^6) / lS^3)] / [lI^2 (4 lS^6 - lI^6)]

    Parameters
    ----------
    phi : (tasks, shots, dim) features; shots >= dim
    spread : c as in `distance_rate_bound`; default: measured on `phi`

    Returns
    -------
    Scalar, >= 0.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite, or `spread` is negative.

    References
    ----------
    Zou et al. (2022), equation G.42, as printed.
    """
    features, low, high, gain = _theorem_inputs(phi, spread)
    remainder = 4 * high**6 - low**6
    root = 1.5 * gain * low**4 * remainder / high**3
    bracket = root / (jnp.sqrt(4 * high**8 + root) + 2 * high**4)
    return features.shape[1] * bracket / (low**2 * remainder)


def _theorem_inputs(phi: ArrayLike, spread: ArrayLike | None) -> tuple[Array, Array, Array, Array]:
    """Features, lambda_I (0 if shots < dim), lambda_S and c."""
    features = nonzero_features("phi", phi)
    tasks, shots, dim = features.shape
    low, high = eigenvalue_bounds(features)
    low = low if shots >= dim else jnp.zeros_like(low)
    if spread is None:
        first, second, third, *_ = gram_power_sums(features) / tasks
        gain = jnp.maximum(jnp.sum(third * first) - jnp.sum(second * second), 0) / dim
    else:
        gain = check_nonnegative("spread", check_scalar("spread", spread))
    return features, low, high, gain.astype(features.dtype)
