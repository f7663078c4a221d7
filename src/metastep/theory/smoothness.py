"""Step sizes and batch sizes of the convergence theory of MAML, FO-MAML and HF-MAML (Fallah et
al.).

The constants of the theory, each the worst over tasks and parameters:

smoothness          L, Lipschitz constant of the gradients of the task losses
hessian_lipschitz   rho, Lipschitz constant of their Hessians
sigma               root mean squared distance of a task's gradient from the mean over tasks
sigma_tilde         standard deviation of the gradient on one example, sigma~
sigma_hessian       standard deviation of the Hessian on one example, sigma_H

While JAX traces a function the values are unknown and only shapes are checked; the range of alpha
is then the caller's to keep.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from metastep._errors import InputError, check_choice
from metastep._types import Scalar
from metastep.theory._inputs import (
    check_array,
    check_nonnegative,
    check_positive_values,
    is_concrete,
    to_common_dtype,
)
from metastep.theory.citations import source

__all__ = [
    "BatchSizes",
    "batch_size_conditions",
    "meta_smoothness",
    "meta_step_size",
]

Algorithm = Literal["maml", "fomaml", "hfmaml"]
Number = Float[ArrayLike, ""]

# The theorems ask for alpha <= 1 / (limit L) and use beta = 1 / (divisor L(w)).
_ALPHA_LIMITS = {"maml": 6, "fomaml": 10, "hfmaml": 6}
_STEP_DIVISORS = {"maml": 12, "fomaml": 18, "hfmaml": 25}
_LEAST_TASKS = 20


@source("fallah2020", "batch-size conditions", "corrected")
class BatchSizes(NamedTuple):
    """Smallest batches the theorems allow, as whole-numbered floats.

    Attributes
    ----------
    num_tasks : B, tasks per meta-step
    step_tasks : B', tasks the step size is measured on
    step_size : D_beta, examples per task the step size is measured on
    curvature_size : D_h, examples per task for the Hessian; 0 for FO-MAML, which takes none
    """

    num_tasks: Scalar
    step_tasks: Scalar
    step_size: Scalar
    curvature_size: Scalar


@source("fallah2020", "smoothness lemma, L(w)", "corrected", "L(w) and L(u), alpha in [0, 1/L]")
def meta_smoothness(
    gradient_norms: Float[ArrayLike, " tasks"],
    *,
    alpha: Number,
    smoothness: Number,
    hessian_lipschitz: Number,
) -> Scalar:
    """Local smoothness of the meta-objective F.

        L(w) = 4 L + 2 rho alpha mean_i |grad f_i(w)|
        |grad F(w) - grad F(u)| <= min(L(w), L(u)) |w - u|

    Parameters
    ----------
    gradient_norms : (tasks,) norms of the task gradients at w; exact ones give L(w), stochastic
        ones the estimate L~(w) that the step size uses
    alpha : adaptation rate in [0, 1/L]
    smoothness : L > 0
    hessian_lipschitz : rho >= 0

    Returns
    -------
    () L(w).

    Raises
    ------
    InputError
        For an empty or negative `gradient_norms`, constants out of range, or alpha above 1/L.

    References
    ----------
    Fallah et al. (2020), smoothness lemma; corrected: the notes print w twice where w and u are
    meant, and alpha in [0, 1].
    """
    norms = check_nonnegative(
        "gradient_norms", check_array("gradient_norms", gradient_norms, "tasks")
    )
    norms, rate, bound, lipschitz = to_common_dtype(
        norms,
        check_nonnegative("alpha", alpha),
        check_positive_values("smoothness", smoothness),
        check_nonnegative("hessian_lipschitz", hessian_lipschitz),
    )
    check_lemma_range(rate, bound)
    return 4 * bound + 2 * lipschitz * rate * jnp.mean(norms)


@source("fallah2020", "step sizes beta_k of the three theorems", "as printed")
def meta_step_size(
    algorithm: Algorithm,
    gradient_norms: Float[ArrayLike, " tasks"],
    *,
    alpha: Number,
    smoothness: Number,
    hessian_lipschitz: Number,
) -> Scalar:
    """Meta step size for which the theorems prove convergence.

        beta = 1 / (c L(w)),   c = 12 (maml), 18 (fomaml), 25 (hfmaml)

    Parameters
    ----------
    algorithm : "maml", "fomaml" or "hfmaml"
    gradient_norms : (tasks,) norms of stochastic task gradients at w, on a batch of their own whose
        sizes follow `batch_size_conditions`
    alpha : adaptation rate, at most 1/(6 L), for "fomaml" 1/(10 L)
    smoothness : L > 0
    hessian_lipschitz : rho >= 0

    Returns
    -------
    () beta.

    Raises
    ------
    InputError
        For an unknown algorithm, an empty or negative `gradient_norms`, constants out of range, or
        alpha above the range of the algorithm's theorem.

    References
    ----------
    Fallah et al. (2020), theorems for MAML, FO-MAML and HF-MAML; the range of alpha for MAML is
    corrected to (0, 1/(6 L)].
    """
    check_theorem_range(algorithm, alpha, smoothness)
    local = meta_smoothness(
        gradient_norms, alpha=alpha, smoothness=smoothness, hessian_lipschitz=hessian_lipschitz
    )
    return 1 / (_STEP_DIVISORS[algorithm] * local)


@source("fallah2020", "batch-size conditions", "corrected", "D_beta, D_h")
def batch_size_conditions(
    algorithm: Algorithm,
    *,
    alpha: Number,
    smoothness: Number,
    hessian_lipschitz: Number,
    sigma: Number,
    sigma_tilde: Number,
    sigma_hessian: Number = 0.0,
) -> BatchSizes:
    """Smallest batches under which the theorems hold.

        B >= 20,   B' >= (rho alpha sigma / L)^2 / 2,   D_beta >= (2 rho alpha sigma~ / L)^2
        D_h >= 2 alpha^2 sigma_H^2 (maml),   36 (alpha^2 rho sigma~)^2 (hfmaml)

    Parameters
    ----------
    algorithm : "maml", "fomaml" or "hfmaml"
    alpha : adaptation rate, at most 1/(6 L), for "fomaml" 1/(10 L)
    smoothness : L > 0
    hessian_lipschitz, sigma, sigma_tilde : rho, sigma, sigma~ >= 0; see the module's head
    sigma_hessian : sigma_H >= 0, only used by "maml"

    Returns
    -------
    `BatchSizes`, each rounded up and at least 1.

    Raises
    ------
    InputError
        For an unknown algorithm, constants out of range, or alpha above the theorem's range.

    References
    ----------
    Fallah et al. (2020), lemma on the stochastic step size and the three theorems; corrected:
    D_beta (printed B_beta), D_h of HF-MAML (printed 36 (alpha rho sigma_H)^2, which has a unit),
    and no D_h for FO-MAML.
    """
    check_theorem_range(algorithm, alpha, smoothness)
    rate, bound, lipschitz, spread, noise, hessian_noise = to_common_dtype(
        check_nonnegative("alpha", alpha),
        check_positive_values("smoothness", smoothness),
        check_nonnegative("hessian_lipschitz", hessian_lipschitz),
        check_nonnegative("sigma", sigma),
        check_nonnegative("sigma_tilde", sigma_tilde),
        check_nonnegative("sigma_hessian", sigma_hessian),
    )
    curvature_sizes = {
        "maml": _whole(2 * (rate * hessian_noise) ** 2),
        "fomaml": jnp.zeros_like(rate),
        "hfmaml": _whole(36 * (rate**2 * lipschitz * noise) ** 2),
    }
    return BatchSizes(
        num_tasks=jnp.full_like(rate, _LEAST_TASKS),
        step_tasks=_whole((lipschitz * rate * spread / bound) ** 2 / 2),
        step_size=_whole((2 * lipschitz * rate * noise / bound) ** 2),
        curvature_size=curvature_sizes[algorithm],
    )


def check_theorem_range(algorithm: Algorithm, alpha: Number, smoothness: Number) -> None:
    """Raise `InputError` where alpha is known to be above the theorem's 1/(6 L) or 1/(10 L)."""
    check_choice("algorithm", algorithm, _ALPHA_LIMITS)
    rate = check_nonnegative("alpha", alpha)
    bound = check_positive_values("smoothness", smoothness)
    _check_alpha(rate, bound, _ALPHA_LIMITS[algorithm], f"the theorem for {algorithm}")


def check_lemma_range(alpha: Array, smoothness: Array) -> None:
    """Raise `InputError` where alpha is known to be above 1/L, the range of the lemmas."""
    _check_alpha(alpha, smoothness, 1, "the lemma")


def _check_alpha(alpha: Array, smoothness: Array, limit: int, where: str) -> None:
    """Raise if alpha > 1 / (limit L) by more than rounding, where the numbers are known."""
    if not (is_concrete(alpha) and is_concrete(smoothness)):
        return
    largest = 1 / (limit * np.asarray(smoothness, np.float64))
    rounding = 8 * float(jnp.finfo(alpha.dtype).eps)
    if np.any(np.asarray(alpha, np.float64) > largest * (1 + rounding)):
        factor = "" if limit == 1 else f"{limit} "
        raise InputError(
            f"alpha is {float(np.max(alpha)):.6g}; {where} holds up to 1/({factor}smoothness) = "
            f"{float(np.min(largest)):.6g}: lower alpha, or give a smaller smoothness if you can"
        )


def _whole(size: Array) -> Array:
    """The next whole number, at least 1."""
    return jnp.maximum(jnp.ceil(size), 1)
