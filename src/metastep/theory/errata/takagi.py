"""Corrections to Takagi et al., the poster on the conditions of MAML convergence."""

import jax.numpy as jnp
import numpy as np

from metastep.theory.errata.entry import Erratum, Paper, Reading
from metastep.theory.stability import (
    max_adaptation_rate,
    max_meta_rate,
    meta_hessian,
    negative_gradient_penalty,
)

_SPECTRUM = np.array([0.3, 0.9, 1.7, 2.0])  # so that alpha_c = 0.5


def _log_cosh(weights: np.ndarray) -> float:
    return float(np.sum(np.log(np.cosh(weights))) + 0.3 * np.sum(weights))


def _penalty() -> Reading:
    weights, alpha = np.array([0.4, -1.1]), 1e-5
    slope = np.tanh(weights) + 0.3
    drop = (_log_cosh(weights) - _log_cosh(weights - alpha * slope)) / (alpha * slope @ slope)
    start = jnp.asarray(weights)

    def coefficient(form: str) -> float:
        def loss(w: jnp.ndarray) -> jnp.ndarray:
            return jnp.sum(jnp.log(jnp.cosh(w))) + 0.3 * jnp.sum(w)

        lower = negative_gradient_penalty(loss, start, 1.0, form)  # type: ignore[arg-type]
        return float((loss(start) - lower) / (slope @ slope))

    return Reading(coefficient("simplified"), coefficient("taylor"), float(drop), tolerance=1e-4)


def _meta_curvature() -> Reading:
    """Curvature of the loss after the step along the eigenvector with H = 2, by second differences."""
    alpha, curvature, step = 1e-3, 2.0, 1e-2

    def adapted_loss(v: float) -> float:
        return curvature / 2 * (v - alpha * curvature * v) ** 2

    second = (adapted_loss(step) - 2 * adapted_loss(0.0) + adapted_loss(-step)) / step**2

    def loss_of_curvature(form: str) -> float:
        matrix = meta_hessian([[curvature]], alpha, form)  # type: ignore[arg-type]
        return (curvature - float(matrix[0, 0])) / (alpha * curvature**2)

    truth = (curvature - second) / (alpha * curvature**2)
    return Reading(
        loss_of_curvature("simplified"), loss_of_curvature("taylor"), truth, tolerance=2e-3
    )


def _shrinks(alpha: float, beta: float, exact: bool) -> bool:
    """Run 20,000 steps on (1/2) v' H v, in the eigenbasis."""
    power = 2 if exact else 1
    factor = 1 - beta * _SPECTRUM * (1 - alpha * _SPECTRUM) ** power
    with np.errstate(over="ignore"):
        return bool(np.max(np.abs(factor) ** 20_000) < 1)


def _simulated_limit(alpha: float, exact: bool) -> float:
    """The beta at which the simulated recursion stops shrinking, by bisection."""
    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _shrinks(alpha, middle, exact) else (low, middle)
    return low


def _divergence() -> Reading:
    critical = float(max_adaptation_rate(_SPECTRUM))
    near = critical * (1 - 1e-9)
    corrected = float(max_meta_rate(_SPECTRUM, critical, "simplified"))
    return Reading(float("inf"), corrected, _simulated_limit(near, exact=False), tolerance=1e-6)


def _exact_limit() -> Reading:
    alpha = 0.95 * float(max_adaptation_rate(_SPECTRUM))
    return Reading(
        float(max_meta_rate(_SPECTRUM, alpha, "simplified")),
        float(max_meta_rate(_SPECTRUM, alpha, "exact")),
        _simulated_limit(alpha, exact=True),
        tolerance=1e-6,
    )


def _beyond() -> Reading:
    alpha = 1.3 * float(max_adaptation_rate(_SPECTRUM))
    return Reading(
        float(max_meta_rate(_SPECTRUM, alpha, "simplified")),
        float(max_meta_rate(_SPECTRUM, alpha, "exact")),
        _simulated_limit(alpha, exact=True),
        tolerance=1e-6,
    )


PAPER = Paper(
    key="takagi",
    title="Takagi, Nagano, Yoshida and Okada: On the conditions of MAML convergence (poster)",
    remark=(
        "For the simplified loss that the poster defines, its conditions on alpha and beta are right: "
        "they agree with simulated thresholds to 1e-6. The entries concern what carries over to MAML. "
        "The examples use a Hessian with eigenvalues 0.3, 0.9, 1.7 and 2.0, so alpha_c = 1/2."
    ),
    errata=(
        Erratum(
            "Negative gradient penalty",
            "L(θ') ≈ L(θ) − (α/2) g(θ)ᵀg(θ)",
            "L(θ') ≈ L(θ) − α g(θ)ᵀg(θ)",
            "Expanding L(θ − αg) to first order in α gives L − α gᵀg. The poster drops the higher "
            "orders from the gradient, g − αHg, and integrates: the dropped term α H g has the same "
            "order in α as the one that is kept.",
            "(L(θ) − L(θ')) / (α gᵀg) at α = 1e-5 for a log cosh loss, computed directly",
            _penalty,
        ),
        Erratum(
            "Hessian of the simplified loss",
            "H̃ = H − α(Tg + H²) ≈ H − αH²",
            "H̃ = H − 2αH² to first order in α; exactly H(I − αH)²",
            "At the minimum g = 0, and the loss after the step is (1/2) vᵀ(I − αH)H(I − αH)v on a "
            "quadratic. To first order alpha_c is therefore 1/(2 λ_max), half the printed value.",
            "Loss of curvature by the step, in units of αH², at α = 1e-3 and H = 2; second differences",
            _meta_curvature,
        ),
        Erratum(
            "beta_c at alpha_c",
            "β_c diverges as α approaches α_c",
            "β_c stays finite, at 1/max xᵢ(1 − xᵢ) ≥ 4 times its value at α = 0 (xᵢ = λᵢ/λ_max), unless "
            "all nonzero eigenvalues are equal",
            "Only the sharpest direction loses its curvature at α_c. The others, λᵢ − λᵢ²/λ_max > 0, "
            "still bound β.",
            "β_c at α_c; the recursion simulated just below α_c, with bisection on β",
            _divergence,
        ),
        Erratum(
            "beta_c, as a condition on MAML",
            "β < 2 / (λᵢ − αλᵢ²)",
            "β < 2 / (λᵢ(1 − αλᵢ)²)",
            "The simplified loss misses the term α²H³, which matters near α_c: exact MAML allows larger "
            "meta rates.",
            "β_c at α = 0.95 α_c; MAML on the quadratic simulated, with bisection on β",
            _exact_limit,
        ),
        Erratum(
            "alpha_c, as a condition on MAML",
            "α ≤ 1/λᵢ is necessary",
            "no bound on α: for every α there is a β that converges",
            "H(I − αH)² has no negative eigenvalue whatever α is. A large α makes β_c small, but never 0.",
            "β_c at α = 1.3 α_c (printed: no β converges); MAML simulated, with bisection on β",
            _beyond,
        ),
    ),
)
