"""How close to a stationary point MAML, FO-MAML and HF-MAML come, and how soon (Fallah et al.).

The constants are named as in `metastep.theory.smoothness`. The bounds are safe rather than sharp:
the errors of runs on small problems are some hundred times smaller.
"""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from metastep._types import Scalar
from metastep.theory._inputs import check_nonnegative, check_positive_values, to_common_dtype
from metastep.theory.citations import source
from metastep.theory.smoothness import Algorithm, check_lemma_range, check_theorem_range

__all__ = ["adaptation_bias_bound", "error_floor", "iteration_bound", "sampling_gap_bound"]

Number = Float[ArrayLike, ""]

# max{ root * sqrt(c b), linear * rho alpha b / L } with c = 1 + rho alpha sigma / L.
_FLOOR_CONSTANTS = {"maml": (61**0.5, 61.0), "fomaml": (14**0.5, 14.0), "hfmaml": (6.0, 36.0)}


@source("fallah2020", "error floors of the three theorems", "corrected", "b of FO-MAML")
def error_floor(
    algorithm: Algorithm,
    *,
    alpha: Number,
    smoothness: Number,
    hessian_lipschitz: Number,
    sigma: Number,
    sigma_tilde: Number,
    num_tasks: Number,
    support_size: Number,
    query_size: Number,
) -> Scalar:
    """Gradient norm E|grad F(w)| below which the theorems promise nothing, however long one trains.

        max{ sqrt(61 c b), 61 rho alpha b / L }   (maml; 14, 14 for fomaml; 36, 36 for hfmaml)
        c = 1 + rho alpha sigma / L
        b = sigma^2 / B + sigma~^2 / (B D_o) + sigma~^2 / D_in,   + 20 sigma^2 alpha^2 L^2 for
        fomaml

    Parameters
    ----------
    algorithm : "maml", "fomaml" or "hfmaml"
    alpha : adaptation rate, at most 1/(6 L), for "fomaml" 1/(10 L)
    smoothness : L > 0
    hessian_lipschitz : rho >= 0
    sigma : spread of the task gradients, >= 0
    sigma_tilde : noise of the gradient on one example, >= 0
    num_tasks, support_size, query_size : B, D_in, D_o > 0

    Returns
    -------
    () the floor.

    Raises
    ------
    InputError
        For an unknown algorithm, constants out of range, or alpha above the theorem's range.

    References
    ----------
    Fallah et al. (2020), theorems for MAML, FO-MAML and HF-MAML; corrected: in the notes the
    FO-MAML floor has sigma^2 for sigma~^2 in two places.
    """
    check_theorem_range(algorithm, alpha, smoothness)
    rate, bound, lipschitz, spread = to_common_dtype(
        check_nonnegative("alpha", alpha),
        check_positive_values("smoothness", smoothness),
        check_nonnegative("hessian_lipschitz", hessian_lipschitz),
        check_nonnegative("sigma", sigma),
    )
    task_term, sample_term = _variances(
        algorithm, rate * bound, spread, sigma_tilde, num_tasks, support_size, query_size
    )
    root, linear = _FLOOR_CONSTANTS[algorithm]
    variance = task_term + sample_term
    ratio = lipschitz * rate / bound
    return jnp.maximum(root * jnp.sqrt((1 + ratio * spread) * variance), linear * ratio * variance)


@source("fallah2020", "iteration counts of the three theorems", "corrected", "20 alpha^2 L^2")
@source("ashtekar", "(14)", "as printed", "the constant 1600, for MAML")
def iteration_bound(
    algorithm: Algorithm,
    *,
    epsilon: Number,
    initial_gap: Number,
    alpha: Number,
    smoothness: Number,
    hessian_lipschitz: Number,
    sigma: Number,
    sigma_tilde: Number,
    num_tasks: Number,
    support_size: Number,
    query_size: Number,
    constant: Number = 1600.0,
) -> Scalar:
    """Meta-steps after which E|grad F| is at most the larger of epsilon and `error_floor`.

        T <= constant Delta min{ (L + rho alpha (sigma + epsilon)) / epsilon^2,
                                 L / (sigma^2 (1/B + bias)) + L (B D_o + D_in) / sigma~^2 }
        bias = 0 (maml, hfmaml), 20 alpha^2 L^2 (fomaml)

    Parameters
    ----------
    algorithm : "maml", "fomaml" or "hfmaml"
    epsilon : target gradient norm > 0
    initial_gap : Delta = F(w_0) - min F >= 0
    alpha, smoothness, hessian_lipschitz, sigma, sigma_tilde, num_tasks, support_size, query_size :
        as for `error_floor`
    constant : the factor the theorems leave as O(1), > 0; the default is worked out for MAML only

    Returns
    -------
    () the bound, not rounded.

    Raises
    ------
    InputError
        For an unknown algorithm, constants out of range, or alpha above the theorem's range.

    References
    ----------
    Fallah et al. (2020), the three theorems; corrected: 20 alpha^2 L^2 for FO-MAML, printed
    20 sigma^2 L^2. Ashtekar (14) for the constant. The count is in iterations: it reaches epsilon
    only with batches of the order 1 / epsilon^2, which `error_floor` shows.
    """
    check_theorem_range(algorithm, alpha, smoothness)
    target, gap, factor, rate, bound, lipschitz, spread = to_common_dtype(
        check_positive_values("epsilon", epsilon),
        check_nonnegative("initial_gap", initial_gap),
        check_positive_values("constant", constant),
        check_nonnegative("alpha", alpha),
        check_positive_values("smoothness", smoothness),
        check_nonnegative("hessian_lipschitz", hessian_lipschitz),
        check_nonnegative("sigma", sigma),
    )
    tasks, support, query, noise = to_common_dtype(
        check_positive_values("num_tasks", num_tasks),
        check_positive_values("support_size", support_size),
        check_positive_values("query_size", query_size),
        check_nonnegative("sigma_tilde", sigma_tilde),
    )
    task_term, _ = _variances(algorithm, rate * bound, spread, noise, tasks, support, query)
    to_target = (bound + lipschitz * rate * (spread + target)) / target**2
    to_floor = _ratio(bound, task_term) + _ratio(bound * (tasks * query + support), noise**2)
    return factor * gap * jnp.minimum(to_target, to_floor)


@source("fallah2020", "distance of grad F-hat from grad F", "as printed")
def sampling_gap_bound(
    *,
    alpha: Number,
    smoothness: Number,
    sigma_tilde: Number,
    sigma_hessian: Number,
    support_size: Number,
) -> Scalar:
    """Bound on the distance between the gradients of the sampled and the exact meta-objective.

        |grad F-hat(w) - grad F(w)| <= 2 alpha L sigma~ / sqrt(D) + alpha^2 L sigma_H sigma~ / D

    Parameters
    ----------
    alpha : adaptation rate in [0, 1/L]
    smoothness : L > 0
    sigma_tilde, sigma_hessian : noise of gradient and Hessian on one example, >= 0
    support_size : D, examples of the inner step, > 0

    Returns
    -------
    () the bound.

    Raises
    ------
    InputError
        For constants out of range or alpha above 1/L.

    References
    ----------
    Fallah et al. (2020), theorem on F and F-hat, as printed.
    """
    bias = adaptation_bias_bound(
        alpha=alpha, smoothness=smoothness, sigma_tilde=sigma_tilde, support_size=support_size
    )
    rate, hessian_noise, size, first = to_common_dtype(
        check_nonnegative("alpha", alpha),
        check_nonnegative("sigma_hessian", sigma_hessian),
        check_positive_values("support_size", support_size),
        bias,
    )
    return 2 * first + rate * hessian_noise / jnp.sqrt(size) * first


@source("fallah2020", "bias of the stochastic adapted gradient", "as printed")
def adaptation_bias_bound(
    *, alpha: Number, smoothness: Number, sigma_tilde: Number, support_size: Number
) -> Scalar:
    """Bound on the bias of the outer gradient that a stochastic inner step brings.

        |E grad f(w - alpha grad f(w; D)) - grad f(w - alpha grad f(w))| <= alpha L sigma~ / sqrt(D)

    Parameters
    ----------
    alpha : adaptation rate in [0, 1/L]
    smoothness : L > 0
    sigma_tilde : noise of the gradient on one example, >= 0
    support_size : D, examples of the inner step, > 0

    Returns
    -------
    () the bound.

    Raises
    ------
    InputError
        For constants out of range or alpha above 1/L.

    References
    ----------
    Fallah et al. (2020), lemma on the biased estimator, as printed.
    """
    rate, bound, noise, size = to_common_dtype(
        check_nonnegative("alpha", alpha),
        check_positive_values("smoothness", smoothness),
        check_nonnegative("sigma_tilde", sigma_tilde),
        check_positive_values("support_size", support_size),
    )
    check_lemma_range(rate, bound)
    return rate * bound * noise / jnp.sqrt(size)


def _variances(
    algorithm: Algorithm,
    step: Array,
    sigma: Array,
    sigma_tilde: Number,
    num_tasks: Number,
    support_size: Number,
    query_size: Number,
) -> tuple[Scalar, Scalar]:
    """The parts of b from the spread of the tasks and from sampling; step = alpha L."""
    tasks, support, query, noise, spread, scaled = to_common_dtype(
        check_positive_values("num_tasks", num_tasks),
        check_positive_values("support_size", support_size),
        check_positive_values("query_size", query_size),
        check_nonnegative("sigma_tilde", sigma_tilde),
        sigma,
        step,
    )
    bias = 20 * scaled**2 if algorithm == "fomaml" else 0.0
    return spread**2 * (1 / tasks + bias), noise**2 * (1 / (tasks * query) + 1 / support)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, infinite with a zero gradient where the denominator is 0."""
    is_zero = denominator == 0
    return jnp.where(is_zero, jnp.inf, numerator / jnp.where(is_zero, 1, denominator))
