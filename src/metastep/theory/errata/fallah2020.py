"""Corrections to notes on Fallah et al. (2020) and to Ashtekar's report."""

import math

import numpy as np

from metastep.theory.convergence import error_floor, iteration_bound
from metastep.theory.errata.entry import Erratum, Paper, Reading
from metastep.theory.hessian_free import (
    hessian_free_delta,
    hessian_free_step,
    hessian_vector_error_bound,
)
from metastep.theory.objective import meta_objective, sampled_meta_objective
from metastep.theory.smoothness import batch_size_conditions, meta_smoothness

_FLOOR = {
    "alpha": 0.05,
    "smoothness": 1.0,
    "hessian_lipschitz": 0.5,
    "sigma": 0.0,
    "sigma_tilde": 1.0,
    "num_tasks": 20,
    "support_size": 10**9,
    "query_size": 1,
}


def _sampled_objective() -> Reading:
    """One task f(w) = mean (w - t)^2 / 2 over t in {-1, 1, 2}; batches of one example."""
    points, weight, alpha = np.array([-1.0, 1.0, 2.0]), 0.7, 0.1

    def loss(w, data):
        return ((w - data) ** 2).mean() / 2

    def after(rate: float) -> float:
        adapted = weight - rate * (weight - points)
        return float(np.mean([np.mean((w - points) ** 2) / 2 for w in adapted]))

    tasks, supports = points[None], points[None, :, None]
    corrected = float(sampled_meta_objective(loss, np.asarray(weight), tasks, supports, alpha))
    exact = float(meta_objective(loss, np.asarray(weight), tasks, alpha))
    # F-hat exceeds F by alpha^2 var(t) / 2, so that both vanish together as alpha goes to 0.
    return Reading(after(1.0), corrected, exact + alpha**2 * points.var() / 2)


def _alpha_range() -> Reading:
    """f(w) = (10/2) w^2, so L = 10 and rho = 0; grad F = 10 (1 - 10 alpha)^2 w."""

    def steepness(alpha: float) -> float:
        return 10 * (1 - 10 * alpha) ** 2

    norms = np.array([10.0])
    bound = float(meta_smoothness(norms, alpha=0.1, smoothness=10.0, hessian_lipschitz=0.0))
    worst = max(steepness(alpha) for alpha in np.linspace(0, 0.1, 101))
    return Reading(4 * 10.0, bound, steepness(1.0), "is at least", corrected_truth=worst)


def _descent() -> Reading:
    """F for f = w^2 / 2 at alpha = 0.1, w = 0, u = 1: F(u) - F(w) - F'(w)(u - w) = 0.405."""
    gap = 0.5 * 0.9**2
    bound = (
        float(meta_smoothness(np.zeros(1), alpha=0.1, smoothness=1.0, hessian_lipschitz=0.0)) / 2
    )
    return Reading(-bound, bound, gap, "is at least")


def _difference_of_values() -> Reading:
    """f(w) = w^3 at w = 1, g = 2: f'' g = 12."""
    delta, weight, g = 1e-4, 1.0, 2.0
    high, low = weight + delta * g, weight - delta * g
    return Reading(
        (3 * high**2 - low**3) / (2 * delta), (3 * high**2 - 3 * low**2) / (2 * delta), 6.0 * g
    )


def _sample_of_the_hessian() -> Reading:
    """f(w; t) = t w^2 / 2, D_in = {1}, D_h = {3}, D_o = {2}, w = 1, alpha = 0.1."""
    outer = 2 * (1 - 0.1 * 1)
    delta = 1e-3
    truth = (3 * (1 + delta * outer) - 3 * (1 - delta * outer)) / (2 * delta)
    return Reading(1 * outer, 3 * outer, truth)


def _second_moment() -> Reading:
    """f(w) = w without noise, w = alpha: the adapted point is 0, where f = 0 and f' = 1; phi = 1."""
    return Reading((1 + 1) * 0.0**2, (1 + 1) * 1.0**2, 1.0, "is at least")


def _maml_range() -> Reading:
    """The factor of sigma~^2 / D_in in (7), 2 (1 + alpha L)^2 (alpha L)^2, which is printed as 0.08."""

    def factor(scaled: float) -> float:
        return 2 * ((1 + scaled) * scaled) ** 2

    return Reading(0.08, 0.08, factor(1.0), "is at least", corrected_truth=factor(1 / 6))


def _first_order_floor() -> Reading:
    """f = w^2 / 2, gradients with N(0, 1) noise, no spread of tasks, beta of the theorem."""
    p = _FLOOR
    beta = 1 / (18 * 4 * p["smoothness"])
    generator = np.random.default_rng(11)
    weights, total, steps = np.zeros(2000), 0.0, 3000
    for step in range(steps):
        noise = generator.standard_normal(2000) / math.sqrt(p["num_tasks"] * p["query_size"])
        weights = weights - beta * ((1 - p["alpha"]) * weights + noise)
        if step >= steps // 2:
            total += float(np.mean(np.abs((1 - p["alpha"]) ** 2 * weights)))
    truth = total / (steps // 2)
    variance = (
        p["sigma_tilde"] ** 2 / p["support_size"]
    )  # printed: sigma^2 / (B D_o) with sigma = 0
    return Reading(
        math.sqrt(14 * variance), float(error_floor("fomaml", **p)), truth, "is at least"
    )


def _iterations_in_other_units() -> Reading:
    """The count for w in metres over the count for w in millimetres: it must be 1."""
    p = _FLOOR | {"sigma": 2.0, "sigma_tilde": 1.0}
    unit = 1e-3  # w becomes w / unit; L, rho, sigma, sigma~ and epsilon follow, alpha inversely
    other = p | {
        "alpha": p["alpha"] / unit**2,
        "smoothness": p["smoothness"] * unit**2,
        "hessian_lipschitz": p["hessian_lipschitz"] * unit**3,
        "sigma": p["sigma"] * unit,
        "sigma_tilde": p["sigma_tilde"] * unit,
    }

    def corrected(q: dict[str, float], epsilon: float) -> float:
        return float(iteration_bound("fomaml", epsilon=epsilon, initial_gap=1.0, **q))

    def printed(q: dict[str, float]) -> float:
        bias = 20 * q["sigma"] ** 2 * q["smoothness"] ** 2
        return q["smoothness"] / (q["sigma"] ** 2 * (1 / q["num_tasks"] + bias))

    epsilon = 1e-6  # small, so that the second branch of the minimum is the smaller one
    return Reading(
        printed(other) / printed(p),
        corrected(other, epsilon * unit) / corrected(p, epsilon),
        1.0,
    )


def _curvature_batch_in_other_units() -> Reading:
    p = {
        "alpha": 0.1,
        "smoothness": 1.0,
        "hessian_lipschitz": 4e3,
        "sigma": 0.0,
        "sigma_tilde": 1e2,
    }
    unit = 1e-1
    other = {
        "alpha": 0.1 / unit**2,
        "smoothness": unit**2,
        "hessian_lipschitz": 4e3 * unit**3,
        "sigma": 0.0,
        "sigma_tilde": 1e2 * unit,
    }

    def corrected(q: dict[str, float]) -> float:
        return float(batch_size_conditions("hfmaml", **q).curvature_size)

    def printed(q: dict[str, float], sigma_hessian: float) -> float:
        return math.ceil(36 * (q["alpha"] * q["hessian_lipschitz"] * sigma_hessian) ** 2)

    return Reading(
        printed(other, 50.0 * unit**2) / printed(p, 50.0), corrected(other) / corrected(p), 1.0,
        tolerance=1e-6,
    )  # fmt: skip


# Two tasks s log cosh(w - c), noise-free: L = 3, rho = 4 / (3 sqrt 3) * 3, alpha = 1 / (6 L).
_SCALES, _CENTERS = np.array([1.0, 3.0]), np.array([-1.0, 1.0])
_ALPHA, _RHO = 1 / 18, 4 / math.sqrt(3)


def _gradients(weights: np.ndarray | float) -> np.ndarray:
    return _SCALES * np.tanh(weights - _CENTERS)


def _meta_gradient(weight: float) -> float:
    curvature = _SCALES / np.cosh(weight - _CENTERS) ** 2
    outer = _gradients(weight - _ALPHA * _gradients(weight))
    return float(np.mean((1 - _ALPHA * curvature) * outer))


def _hessian_free_rest(step) -> float:
    """|grad F| where the expected HF-MAML direction vanishes, by bisection."""

    def direction(weight: float) -> float:
        outer = _gradients(weight - _ALPHA * _gradients(weight))
        delta = np.asarray(step(np.abs(outer), alpha=_ALPHA, hessian_lipschitz=_RHO))
        shift = delta * outer
        product = (_gradients(weight + shift) - _gradients(weight - shift)) / (2 * delta)
        return float(np.mean(outer - _ALPHA * product))

    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if direction(middle) < 0 else (low, middle)
    return abs(_meta_gradient((low + high) / 2))


def _hessian_free_bias() -> Reading:
    return Reading(
        0.0,
        1e-8,
        _hessian_free_rest(hessian_free_delta),
        "is at least",
        corrected_truth=_hessian_free_rest(hessian_free_step),
    )


def _hessian_vector_error() -> Reading:
    """f'(w) = |w| w / 2 has rho = 1; at its kink the central difference is as wrong as it can be."""
    delta, v = 0.01, 3.0
    error = abs((abs(delta * v) * delta * v / 2 * 2) / (2 * delta))
    return Reading(delta * v**2, float(hessian_vector_error_bound(delta, v, 1.0)), error)


def _iterations_alone() -> Reading:
    """E|grad F| after 4,000 meta-steps over that after 1,000, at batches of a fixed size."""
    generator = np.random.default_rng(5)
    alpha, beta = 1 / 6, 1 / 48
    weights = np.full(4000, 3.0)
    norms = {}
    for step in range(1, 4001):
        noise = generator.standard_normal((2, 4000)) / math.sqrt(20)
        adapted = weights - alpha * (weights + noise[0])
        weights = weights - beta * (1 - alpha) * (adapted + noise[1])
        norms[step] = float(np.mean(np.abs((1 - alpha) ** 2 * weights)))
    return Reading(1 / math.sqrt(4), 1.0, norms[4000] / norms[1000], tolerance=0.1)


PAPER = Paper(
    key="fallah2020",
    title="Notes on Fallah, Mokhtari and Ozdaglar (2020), and Ashtekar's report on MAML",
    remark=(
        "Most of these are slips of transcription in a public summary of the paper, whose own statements "
        "the corrected forms agree with as far as we know. The entry on HF-MAML concerns the theorem's "
        "rule for delta. L, rho, sigma, sigma~ and sigma_H are the paper's constants."
    ),
    errata=(
        Erratum(
            "Definition of F̂",
            "f_i(w − ∇̃f_i(w, D_test))",
            "f_i(w − α ∇̃f_i(w, D_test))",
            "F̂ estimates F, whose inner step carries α.",
            "F̂ of a quadratic task with three examples at α = 0.1; expectation worked out by hand",
            _sampled_objective,
        ),
        Erratum(
            "Smoothness lemma, range of α",
            "α ∈ [0, 1]; ‖∇F(w) − ∇F(w)‖; min{E‖∇f_i(w)‖, E‖∇f_i(w)‖}",
            "α ∈ [0, 1/L]; ‖∇F(w) − ∇F(u)‖; min{E‖∇f_i(w)‖, E‖∇f_i(u)‖}",
            "α has the unit of 1/L. For f = (L/2)w² the gradient of F changes at the rate L(1 − αL)², "
            "which is at most 4L only for αL up to 3.",
            "bound 4L against the slope of ∇F for f = 5w², L = 10: printed range at α = 1, corrected "
            "range at its worst α",
            _alpha_range,
        ),
        Erratum(
            "Corollary after the smoothness lemma, upper side",
            "F(u) − F(w) − ∇F(w)ᵀ(u − v) ≤ −(L(w)/2)‖u − w‖²",
            "F(u) − F(w) − ∇F(w)ᵀ(u − w) ≤ +(L(w)/2)‖u − w‖²",
            "This is the descent lemma; the printed upper and lower sides are the same number.",
            "right-hand side for f = w²/2, α = 0.1, w = 0, u = 1; left-hand side exact",
            _descent,
        ),
        Erratum(
            "d_i of HF-MAML",
            "[∇̃f_i(w + δg, D_h) − f_i(w − δg, D_h)] / (2δ)",
            "[∇̃f_i(w + δg, D_h) − ∇̃f_i(w − δg, D_h)] / (2δ)",
            "Both terms of a central difference are gradients.",
            "f = w³ at w = 1, g = 2, δ = 1e-4; Hessian times g by hand",
            _difference_of_values,
        ),
        Erratum(
            "What d_i approximates",
            "∇²f_i(w, D_in) ∇̃f_i(w_i, D_o)",
            "∇²f_i(w, D_h) ∇̃f_i(w_i, D_o)",
            "The difference is taken on D_h.",
            "f(w; t) = t w²/2 with D_in = {1}, D_h = {3}, D_o = {2}; the difference quotient itself",
            _sample_of_the_hessian,
        ),
        Erratum(
            "Second moment of the stochastic gradient",
            "(1 + 1/φ)‖f_i(w − α∇f_i(w))‖² + ...",
            "(1 + 1/φ)‖∇f_i(w − α∇f_i(w))‖² + ...",
            "Units: the left-hand side is a squared gradient.",
            "noise-free f(w) = w at w = α, φ = 1; squared gradient there",
            _second_moment,
        ),
        Erratum(
            "Theorem for MAML, range of α",
            "α ∈ (0, 1/L]",
            "α ∈ (0, 1/(6L)]",
            "The proof in Ashtekar's report bounds 2(1 + αL)²(αL)² by 0.08 in (7), which needs αL ≤ 1/6.",
            "0.08 against that factor: printed range at α = 1/L, corrected range at α = 1/(6L)",
            _maml_range,
        ),
        Erratum(
            "Theorem for FO-MAML, floor",
            "σ²/(B D_o) under the root; σ²/D_in in the second term",
            "σ̃²/(B D_o); σ̃²/D_in",
            "Sampling examples is noise of the stochastic gradient, as in the theorem for MAML. With "
            "equal tasks (σ = 0) the printed floor would vanish although every gradient is noisy.",
            "floor for σ = 0, σ̃ = 1, B = 20, D_o = 1, D_in = 1e9; simulated E‖∇F‖ of FO-MAML",
            _first_order_floor,
        ),
        Erratum(
            "Theorem for FO-MAML, iterations",
            "L / (σ²(1/B + 20σ²L²))",
            "L / (σ²(1/B + 20α²L²))",
            "Units: 1/B is a number, σ²L² is not.",
            "the term (corrected: the whole count) after measuring w in other units over that before",
            _iterations_in_other_units,
        ),
        Erratum(
            "Theorem for HF-MAML, D_h",
            "D_h ≥ 36(αρσ_H)²",
            "D_h ≥ 36(α²ρσ̃)²",
            "HF-MAML samples no Hessian. The noise of its difference quotient is α²σ̃²/(2δ²D_h), and with "
            "the rule for δ this is 18(α²ρσ̃)²‖g‖²/D_h. Units agree: α²ρσ̃ is a number, αρσ_H is not.",
            "the condition after measuring w in other units over that before; it cannot change",
            _curvature_batch_in_other_units,
        ),
        Erratum(
            "Theorem for HF-MAML, any accuracy",
            "δ = 1/(6ρα‖g‖) reaches any ε as the batches grow",
            "δ must shrink too, say δ = min(1/(6ρα‖g‖), eps^(1/3)/‖g‖): the rule is an upper limit",
            "With the rule the parameters move by δ‖g‖ = 1/(6ρα) in the difference quotient, however "
            "accurate the gradients are. Its bias does not vanish where single tasks still have "
            "gradients.",
            "‖∇F‖ where HF-MAML rests with exact gradients, two tasks s log cosh(w − c): promised by "
            "the rule 0; promised by the capped step at most 1e-8",
            _hessian_free_bias,
        ),
        Erratum(
            "Error of the Hessian-vector product",
            "ρδ‖v‖²",
            "ρδ‖v‖²/2",
            "Not wrong but twice too large: integrate ‖∇²f(w + sv) − ∇²f(w)‖ ≤ ρs‖v‖ over |s| ≤ δ.",
            "f' = |w|w/2 at its kink, δ = 0.01, v = 3; the error itself",
            _hessian_vector_error,
        ),
        Erratum(
            "Ashtekar's report, abstract",
            "an ε-first-order stationary point after O(1/ε²) iterations",
            "after O(1/ε²) iterations with batches of the order 1/ε²",
            "At fixed batch sizes the gradient norm stops at the floor of the theorem; four times the "
            "iterations then gain nothing.",
            "E‖∇F‖ after 4,000 meta-steps over that after 1,000 (noisy quadratic, 4,000 runs)",
            _iterations_alone,
        ),
    ),
    slips=(
        ("Lemma on the stochastic step size", "B_β ≥ ...", "D_β ≥ ... (examples per task)"),
        ("Theorem for FO-MAML", "D_h ≥ 2α²σ_H²", "no D_h: FO-MAML takes no Hessian"),
        ("Third theorem", "FO-MAML", "HF-MAML"),
    ),
)
