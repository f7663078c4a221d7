"""Corrections to Zou et al. (2022): Theorem 1, Corollary 1, Proposition 1 and the two examples."""

import math

import numpy as np

from metastep.theory.concentration import concentration_bound, concentration_bound_as_printed
from metastep.theory.errata.entry import Erratum, Reading
from metastep.theory.intervals import rate_interval, rate_interval_as_printed
from metastep.theory.minimisers import minimiser
from metastep.theory.moments import (
    iid_gram_moments,
    iid_gram_moments_as_printed,
    many_shots_rate_as_printed,
    moment_rate,
    nonzero_mean_limit_rate,
    polynomial_gram_moments,
    polynomial_gram_moments_as_printed,
    single_shot_rate_as_printed,
    zero_mean_limit_rate,
)
from metastep.theory.raw_moments import exponential_raw_moments, normal_raw_moments
from metastep.theory.risks import risk_variance

# Two kinds of task, Phi = I (999 of 1,000) and Phi = sqrt(1000) I: d = 5, K = 10 with zero rows.
_RARE = np.zeros((1000, 10, 5))
_RARE[:, :5] = np.eye(5)
_RARE[0] *= math.sqrt(1000)

_EQUAL = 0.5 * np.eye(2)[None]  # G = I / 4, d = K = 2
_NORMAL = normal_raw_moments(6)
_EXPONENTIAL = exponential_raw_moments(6)


def _traces(phi: np.ndarray) -> tuple[float, float, float]:
    """Means over tasks of tr G, tr G^2, tr G^3, by the definition."""
    gram = np.swapaxes(phi, 1, 2) @ phi
    powers = (gram, gram @ gram, gram @ gram @ gram)
    return tuple(float(np.trace(p, axis1=1, axis2=2).mean()) for p in powers)  # type: ignore


def _rate(phi: np.ndarray) -> float:
    _, second, third = _traces(phi)
    return phi.shape[1] * second / (2 * third)


def _wrong_index() -> Reading:
    generator = np.random.default_rng(1)
    phi, optima = generator.standard_normal((4, 5, 3)), generator.standard_normal((4, 3))
    adapted = phi @ (np.eye(3) - 2 * 0.1 / 5 * np.swapaxes(phi, 1, 2) @ phi)
    labels = np.einsum("nkd,nd->nk", adapted, optima)

    def risk(w: np.ndarray) -> float:
        return float(np.mean((adapted @ w - labels) ** 2))

    best = np.linalg.lstsq(adapted.reshape(-1, 3), labels.reshape(-1), rcond=None)[0]
    # With a_i in the sum over j the factors cancel, and the minimiser would be a_i itself.
    return Reading(risk(optima[0]), risk(np.asarray(minimiser(phi, optima, 0.1))), risk(best))


def _upper_bound() -> Reading:
    printed = 2 * float(rate_interval_as_printed(_EQUAL).upper)
    return Reading(printed, float(rate_interval(_EQUAL).moment_bound), _rate(_EQUAL))


def _slides_upper_bound() -> Reading:
    second_moment = _traces(_EQUAL)[0] / 2
    return Reading(
        2 / 2 * second_moment,
        float(rate_interval(_EQUAL).moment_bound),
        _rate(_EQUAL),
        "is at least",
    )


def _lower_bound() -> Reading:
    return Reading(
        float(rate_interval_as_printed(_RARE).lower),
        float(rate_interval(_RARE).lower),
        _rate(_RARE),
        "is at most",
    )


def _reversed_jensen() -> Reading:
    first, second, _ = _traces(_RARE)
    return Reading(first**2, 1000 * first, second, "is at least")


def _deviations(alpha: float, tasks: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Deviations of the risk of w_MAML from its mean over N(0, I) optima, and the features."""
    generator = np.random.default_rng(3)
    phi = generator.standard_normal((tasks, 6, 2))
    gram = np.swapaxes(phi, 1, 2) @ phi
    adapted = phi @ (np.eye(2) - 2 * alpha / 6 * gram)
    curvature = np.swapaxes(adapted, 1, 2) @ adapted
    optima = generator.standard_normal((20_000, tasks, 2))
    solutions = np.einsum("nde,rne->rd", curvature, optima) @ np.linalg.inv(curvature.sum(0))
    risks = np.einsum("rd,de,re->r", solutions, curvature.mean(0), solutions) / 6
    return risks - risks.mean(), phi


def _negative_bound() -> Reading:
    delta, alpha, tasks = 0.05, 0.5, 20
    deviations, phi = _deviations(alpha, tasks)
    gram = np.swapaxes(phi, 1, 2) @ phi
    spectrum = np.linalg.eigvalsh(gram)
    low, high = float(spectrum.min()), float(spectrum.max())
    adapted = gram @ (np.eye(2) - 2 * alpha / 6 * gram) @ (np.eye(2) - 2 * alpha / 6 * gram)
    norm = math.sqrt(8 / 3 * float(np.max(np.sum(adapted**2, axis=2))))  # psi_2 norm of N(0, s^2)
    bound = float(
        concentration_bound(0.0, low, high, tasks, 6, 2, sub_gaussian_norm=norm, delta=delta)
    )
    return Reading(
        2 * norm**2 * (high / low**2) / (tasks * 6 * math.log(delta)),
        bound,
        float(np.quantile(np.abs(deviations), 1 - delta)),
        "is at least",
    )


def _tail_inverse() -> Reading:
    """Solve 2 exp(-c t^2 N^2 / (L^4 d eps^2)) = delta of (C.18) for t K, at c = 1."""
    tasks, dim, spread, norm, delta = 50, 4, 0.3, 1.2, 0.05
    low, high = 0.0, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        tail = 2 * math.exp(-((middle * tasks) ** 2) / (norm**4 * dim * spread**2))
        low, high = (middle, high) if tail > delta else (low, middle)
    # eps = 0.3 for equal eigenvalues lambda at alpha = 0 means lambda = 1 / 0.3.
    case = (0.0, 1 / 0.3, 1 / 0.3, tasks, 1, dim, norm, delta)
    printed, corrected = concentration_bound_as_printed(*case), concentration_bound(*case)
    return Reading(float(printed), float(corrected), low)


def _growth_with_alpha() -> Reading:
    """Standard deviation of the risk at alpha = 200 over that at 100."""
    (first, phi), (second, _) = _deviations(100.0), _deviations(200.0)
    ratio = math.sqrt(float(risk_variance(phi, 200.0)) / float(risk_variance(phi, 100.0)))
    return Reading((1 / 2) ** 2, ratio, float(second.std() / first.std()), tolerance=0.05)


def _dependent_coordinates() -> Reading:
    """Largest correlation between two coordinates of u = C'C a, a ~ N(0, I)."""
    phi = np.array([[1.0, 0.8], [0.2, 1.0], [0.5, -0.1]])
    gram = phi.T @ phi
    curvature = gram @ (np.eye(2) - 0.2 * gram) @ (np.eye(2) - 0.2 * gram)
    covariance = curvature @ curvature
    corrected = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    draws = np.random.default_rng(6).standard_normal((200_000, 2)) @ curvature
    return Reading(0.0, corrected, float(np.corrcoef(draws.T).min()), tolerance=0.02)


def _in_the_gap() -> Reading:
    """K = 1, d = 1, G = 1 or 2 with equal probability: the printed range ends below alpha_lim."""
    phi = np.sqrt([1.0, 2.0])[:, None, None]
    low, high = 1.0, 2.0
    printed = (high**2 - math.sqrt(high**4 - low**4)) / (2 * low**3)
    return Reading(printed, float(rate_interval(phi).upper), _rate(phi), "is at least")


def _trace_bound() -> Reading:
    """K = d = 1, G = 1 or 2, alpha = 1/4: the largest tr C'C is 1/4, at G = 1."""
    alpha, low, high = 0.25, 1.0, 2.0
    truth = max(g * (1 - 2 * alpha * g) ** 2 for g in (low, high))
    printed = high * (1 - 4 * alpha * high + 4 * alpha**2 * high**2)
    corrected = high - 4 * alpha * low**2 + 4 * alpha**2 * high**3
    return Reading(printed, corrected, truth, "is at least")


def _polynomial_cube() -> Reading:
    moments = normal_raw_moments(12, variance=0.25)
    x = 0.5 * np.random.default_rng(7).standard_normal((400_000, 4, 1))
    truth = _traces(x ** np.arange(3))[2]
    printed = float(polynomial_gram_moments_as_printed(3, 4, moments).p3)
    return Reading(printed, float(polynomial_gram_moments(3, 4, moments).p3), truth, tolerance=0.02)


def _slope(spread: float, dim: int, shots: int, step: float) -> float:
    """d log alpha / d log sigma^2 from sampled tasks with common random numbers."""
    x = np.random.default_rng(8).standard_normal((100_000, shots, 1))
    rates = [_rate((math.sqrt(v) * x) ** np.arange(dim)) for v in (spread, spread * step)]
    return math.log(rates[1] / rates[0]) / math.log(step)


def _corrected_slope(spread: float, dim: int, shots: int, step: float) -> float:
    rates = [
        float(moment_rate(polynomial_gram_moments(dim, shots, moments), shots))
        for moments in (normal_raw_moments(6 * dim, variance=v) for v in (spread, spread * step))
    ]
    return math.log(rates[1] / rates[0]) / math.log(step)


def _small_variance() -> Reading:
    return Reading(
        1e6,
        float(
            moment_rate(polynomial_gram_moments(3, 10, normal_raw_moments(12, variance=1e-6)), 10)
        ),
        _rate((1e-3 * np.random.default_rng(8).standard_normal((1000, 10, 1))) ** np.arange(3)),
        tolerance=1e-3,
    )


def _large_variance() -> Reading:
    case = (1e4, 3, 10, 10.0)
    return Reading(-1.0, _corrected_slope(*case), _slope(*case), tolerance=0.02)


def _random_cube() -> Reading:
    phi = np.random.default_rng(9).standard_normal((200_000, 7, 5))
    truth = _traces(phi)[2]
    printed = float(iid_gram_moments_as_printed(5, 7, _NORMAL).p3)
    return Reading(printed, float(iid_gram_moments(5, 7, _NORMAL).p3), truth, tolerance=0.01)


def _single_shot() -> Reading:
    phi = np.random.default_rng(10).standard_normal((1_000_000, 1, 3))
    corrected = float(moment_rate(iid_gram_moments(3, 1, _NORMAL), 1))
    printed = float(single_shot_rate_as_printed(_NORMAL))
    return Reading(printed, corrected, _rate(phi), tolerance=0.02)


def _many_zero_mean() -> Reading:
    phi = np.random.default_rng(11).standard_normal((1, 1200, 600))
    corrected = float(zero_mean_limit_rate(0.5, 1.0))
    printed = float(many_shots_rate_as_printed(_NORMAL))
    return Reading(printed, corrected, _rate(phi), tolerance=0.01)


def _many_nonzero_mean() -> Reading:
    phi = np.random.default_rng(12).exponential(size=(1, 1200, 600))
    corrected = float(nonzero_mean_limit_rate(600, 1.0))
    printed = float(many_shots_rate_as_printed(_EXPONENTIAL))
    return Reading(printed, corrected, _rate(phi), tolerance=0.02)


ERRATA = (
    Erratum(
        "Equation (3.1)",
        "w_m = (Σ CᵢᵀCᵢ)⁻¹ Σⱼ CⱼᵀCⱼ aᵢ",
        "w_m = (Σ CᵢᵀCᵢ)⁻¹ Σⱼ CⱼᵀCⱼ aⱼ",
        "An index: with aᵢ the two sums cancel.",
        "empirical MAML risk at the two points (N = 4, K = 5, d = 3); least squares on the same tasks",
        _wrong_index,
    ),
    Erratum(
        "Equation (3.5) and (D.4), lower end",
        "1/(2dσ²) ≤ α*_lim",
        "K/(2λ_S) ≤ α*_lim; 1/(2R²) ≤ α*_lim if ‖φ(x)‖ ≤ R; 1/(2σ²) ≤ α*_lim if ΦᵀΦ is the same for all "
        "tasks",
        "(D.4) uses tr E(Σᵖ) ≤ (tr E Σ)ᵖ. That holds for one fixed matrix, but Jensen's inequality over "
        "X runs the other way: rare tasks with large features make the cube large and leave the mean "
        "small. The same happens for x ~ N(0, 1) with K = d = 1 (0.1 against a bound of 0.5).",
        "tasks with ΦᵀΦ = I₅ (999 of 1,000) or 1000 I₅, K = 10, which satisfy Assumption 2; α*_lim exactly",
        _lower_bound,
    ),
    Erratum(
        "Equation (D.4), right half",
        "tr E(Σᵖ) ≤ [tr E(Σ)]ᵖ",
        "tr E(Σᵖ) ≤ λ_Sᵖ⁻¹ tr E(Σ)",
        "As above; λ_S is the bound of Assumption 2.",
        "p = 2 on the same tasks; exact",
        _reversed_jensen,
    ),
    Erratum(
        "Equation (D.6), upper end",
        "α*_lim ≤ d/σ²",
        "α*_lim ≤ d/(2σ²), as in (3.5)",
        "(3.5) is right: p₂² ≤ p₁p₃ (Cauchy-Schwarz) and p₂ ≥ p₁²/d (Jensen), with equality for "
        "ΦᵀΦ = cI. (D.6) loses a factor 2 from (D.5).",
        "the bound where it is attained, ΦᵀΦ = I₂/4, K = 2; α*_lim exactly",
        _upper_bound,
    ),
    Erratum(
        "Talk, Corollary",
        "α*_lim ∈ [2/d, d/2] σ²",
        "α*_lim ≤ d/(2σ²), with no lower end in terms of σ² alone",
        "Units: Φ → cΦ divides α*_lim by c², so σ² belongs in the denominator.",
        "upper end for ΦᵀΦ = I₂/4, K = 2; α*_lim exactly",
        _slides_upper_bound,
    ),
    Erratum(
        "Talk, Proposition",
        "2L²ε/(NK log δ)",
        "(L²/K) max{√(d log(2/δ)/c) ε/N, log(2/δ) ε/(cN)}",
        "log δ < 0 for every probability δ: the printed bound on an absolute value is negative.",
        "bound at δ = 0.05, N = 20, K = 6, d = 2 (c = 1); 95 % quantile of the deviation, 20,000 draws",
        _negative_bound,
    ),
    Erratum(
        "Equations (3.4), (C.1), (C.19)",
        "√(dε/N² · log(2/δ))",
        "√(d log(2/δ)/c) · ε/N",
        "(C.17) has ‖A‖²_HS ≤ dε²/N²; solving (C.18) for t keeps ε outside the root. The absolute "
        "constant c of the Hanson-Wright inequality is dropped on the way.",
        "KtL⁻² from (C.18) at c = 1, N = 50, d = 4, ε = 0.3, L = 1.2, δ = 0.05; solved by bisection",
        _tail_inverse,
    ),
    Erratum(
        "Text after (3.4)",
        "large α makes the bound tighter, ε = O(1/(c₀ + α)²)",
        "the deviation grows like α²",
        "L in the bound is the norm of u = CᵀCa, which grows like α². That outweighs "
        "ε: at large α, doubling α quadruples the standard deviation of the risk.",
        "standard deviation of L_m(w_m) at α = 200 over that at 100, N = 20; 20,000 draws",
        _growth_with_alpha,
    ),
    Erratum(
        "Equation (C.9)",
        "Hanson-Wright applied to u₁, ..., u_N",
        "apply it to a₁, ..., a_N with blocks Mᵢ B Mⱼ, M = CᵀC",
        "The inequality needs independent coordinates. Those of u = Ma are correlated even where those "
        "of a are not.",
        "correlation of the two coordinates of u for a K = 3, d = 2 task; 200,000 draws",
        _dependent_coordinates,
    ),
    Erratum(
        "Theorem 1, step 6, and (B.13)",
        "α*_lim lies in the range (B.13) left of or right of its gap",
        "K/(2λ_S) ≤ α*_lim ≤ K/(2λ_I), which is inside the gap whenever λ_S > λ_I",
        "The roots of (B.13) enclose [K/(2λ_S), K/(2λ_I)]. The theorem stands all the same: "
        "L_apx ≤ L̄ ≤ L_apx + O(1/N) with a strictly convex quadratic L_apx gives α*(N) → α*_lim.",
        "K = d = 1, ΦᵀΦ = 1 or 2: lower root of (B.13), K/(2λ_I), and α*_lim exactly",
        _in_the_gap,
    ),
    Erratum(
        "Equation (B.10)",
        "tr CᵀC ≤ c₂(1 − (4α/(Kd))c₂ + (4α²/K²)c₂²)",
        "tr CᵀC ≤ c₂ − (4α/(Kd))c₁² + (4α²/K²)c₂³",
        "The negative term needs the smallest tr G², which is at least c₁²/d. The same exchange of c₁ "
        "and c₂ is in (B.17).",
        "K = d = 1, ΦᵀΦ = 1 or 2, α = 1/4; largest tr CᵀC exactly",
        _trace_bound,
    ),
    Erratum(
        "Equation (E.4)",
        "K E x^{3j+m+2l−6} + 3K(K−1) E²x^{2j+2l−4} E x^{j+m−2} + (K³−3K²+2K) E³x^{j+m+l−3}",
        "K m_{2(j+l+s)} + 3K(K−1) m_{2j+l+s} m_{l+s} + K(K−1)(K−2) m_{j+l} m_{l+s} m_{s+j}, indices from 0",
        "Expand tr G³ = Σ G_{jl}G_{ls}G_{sj} and sort the three examples by which of them coincide.",
        "E tr G³ for d = 3, K = 4, x ~ N(0, 1/4); 400,000 tasks",
        _polynomial_cube,
    ),
    Erratum(
        "Equations (E.5), (E.6), σ → 0",
        "α*_lim = O(1/σ²) as σ → 0",
        "α*_lim → 1/2",
        "As σ → 0 every feature but the constant one vanishes, and ΦᵀΦ → K e₁e₁ᵀ.",
        "α*_lim at σ² = 1e-6 (printed: 1/σ²), d = 3, K = 10; 1,000 tasks",
        _small_variance,
    ),
    Erratum(
        "Talk, Example (σ → ∞)",
        "α*_lim → 1/σ²",
        "α*_lim ~ σ^{−2(d−1)}; 1/σ² only for d = 2",
        "The highest power dominates, so the largest eigenvalue grows like σ^{2(d−1)}.",
        "slope of log α*_lim against log σ² from σ² = 1e4 to 1e5, d = 3, K = 10; 100,000 tasks",
        _large_variance,
    ),
    Erratum(
        "Equation (E.11)",
        "no term d(d−1)(d−2); cross terms with E Y⁵ E Y and E²Y³",
        "d[K m₆ + 3K(K−1)m₄m₂ + K(K−1)(K−2)m₂³] + 3d(d−1)[K m₄m₂ + K(K−1)(2m₃m₁³ + m₂³) + "
        "K(K−1)(K−2)m₂m₁⁴] + d(d−1)(d−2)[K m₂³ + 3K(K−1)m₂m₁⁴ + K(K−1)(K−2)m₁⁶]",
        "The sum over three different columns is missing, and for two equal columns the printed "
        "exponents don't match the sums they come from.",
        "E tr G³ for N(0, 1) entries, d = 5, K = 7; 200,000 tasks",
        _random_cube,
    ),
    Erratum(
        "Equation (E.12)",
        "α*_lim = E Y⁴/(2 E Y⁶) for K = 1",
        "[m₄ + (d−1)m₂²] / (2[m₆ + 3(d−1)m₄m₂ + (d−1)(d−2)m₂³])",
        "The printed form is that for d = 1.",
        "N(0, 1) entries, d = 3, K = 1; a million tasks",
        _single_shot,
    ),
    Erratum(
        "Equation (E.13), mean 0",
        "α*_lim ≈ E Y⁴/E Y⁶",
        "(1 + y)/(2m₂(1 + 3y + y²)), y = d/K",
        "With mean 0 the spectrum follows the Marchenko-Pastur law, and only m₂ survives.",
        "N(0, 1) entries, K = 1200, d = 600; one task",
        _many_zero_mean,
    ),
    Erratum(
        "Equation (E.13), mean not 0",
        "α*_lim ≈ E Y⁴/E Y⁶",
        "1/(2d m₁²)",
        "One eigenvalue K d m₁² dominates; the O(1) of (E.13) hides the factor 1/d.",
        "Exp(1) entries, K = 1200, d = 600; one task",
        _many_nonzero_mean,
    ),
)
