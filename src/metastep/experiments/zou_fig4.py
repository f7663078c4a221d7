"""Zou et al., Fig. 4: alpha_lim against the variance of the data, and what the inverse law depends on."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from metastep import theory
from metastep.experiments.core import (
    Claim,
    Experiment,
    Report,
    from_to,
    log_slope,
    verdict_of,
    verdict_of_cases,
)
from metastep.experiments.linear_designs import LAWS, draw_law
from metastep.report import style
from metastep.report.lines import Series, draw

_TITLES = {
    "rbf_centred": "(a) Gaussian basis, centres on [-5, 5]",
    "rbf_far": "(a) Gaussian basis, centres on [10, 20]",
    "rbf_scaled": "(a) Gaussian basis, centres follow σ",
    "identity": "features φ(x) = x",
    "polynomial": "polynomials 1, x, x², x³",
    "tangent": "(b) tangent kernel, uniform weights",
}
_LABELS = {"normal": "N(0, σ²)", "uniform": "U(±√12 σ/2)", "exponential": "Exp(1/σ)"}
_COLORS = dict(zip(LAWS, (style.BLUE, style.VERMILLION, style.GREEN), strict=True))
_WIDTH = 5.0  # of the Gaussian basis functions, half the range of the centres


@dataclasses.dataclass(frozen=True)
class Config:
    """The paper gives the width 10,240 and the axes; tasks, shots, centres and widths are our choice."""

    tasks: int = 1000
    shots: int = 15
    dim: int = 10
    points: int = 12
    network_width: int = 10_240
    network_tasks: int = 16
    network_shots: int = 10
    network_points: int = 7


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """alpha_lim for every design, law and variance, with the same draws x / sigma at every variance."""
    rng = np.random.default_rng(seed)
    variances = np.linspace(1.0, 50.0, config.points)
    shape = (config.tasks, config.shots)
    wide = {law: draw_law(rng, law, (*shape, config.dim)) for law in LAWS}
    designs = {}
    for done, (name, features) in enumerate(_feature_maps(config.dim).items()):
        report(_TITLES[name], done, len(_TITLES))
        draws = wide if name == "identity" else {law: x[..., 0] for law, x in wide.items()}
        rates = {
            law: [float(theory.limit_rate(features(x, v**0.5))) for v in variances]
            for law, x in draws.items()
        }
        designs[name] = {"variance": variances, **rates}
    report(_TITLES["tangent"], len(_TITLES) - 1, len(_TITLES))
    designs["tangent"] = _tangent(config, seed, rng)
    return {"designs": designs}


def _feature_maps(dim: int) -> dict[str, Callable[[np.ndarray, float], Array]]:
    """(x / sigma, sigma) -> features, for the designs other than the tangent kernel."""

    def rbf(x: np.ndarray, low: float, high: float, width: float) -> Array:
        return theory.gaussian_features(x, np.linspace(low, high, dim), width)

    return {
        "rbf_centred": lambda x, sigma: rbf(x * sigma, -5.0, 5.0, _WIDTH),
        "rbf_far": lambda x, sigma: rbf(x * sigma, 10.0, 20.0, _WIDTH),
        "rbf_scaled": lambda x, sigma: rbf(x * sigma, -2 * sigma, 2 * sigma, sigma),
        "identity": lambda x, sigma: theory.identity_features(x * sigma),
        "polynomial": lambda x, sigma: theory.polynomial_features(x * sigma, 4),
    }


def _tangent(config: Config, seed: int, rng: np.random.Generator) -> dict[str, Any]:
    network = theory.two_layer_network(
        jax.random.key(seed), 1, config.network_width, "uniform", np.result_type(float)
    )

    variances = np.linspace(1.0, 30.0, config.network_points)
    rates = {}
    for law in LAWS:
        x = draw_law(rng, law, (config.network_tasks, config.network_shots, 1))
        grams = [theory.two_layer_tangent_gram(network, x * v**0.5) for v in variances]
        rates[law] = [float(theory.gram_limit_rate(gram)) for gram in grams]
    return {"variance": variances, **rates}


def plot(records: dict[str, Any]) -> Figure:
    """One panel per design, three laws each."""
    figure, axes = style.new_figure(2, 3, panel=(4.3, 3.3))
    for panel, (name, one) in zip(axes, records["designs"].items(), strict=True):
        series = [
            Series(_LABELS[law], one["variance"], one[law], None, _COLORS[law], line)
            for law, line in zip(LAWS, ("-", "--", "-."), strict=True)
        ]
        is_log = name in ("rbf_far", "identity", "polynomial", "tangent")
        draw(panel, series, "data variance σ²", r"$\alpha_{lim}$", is_log, is_log, _TITLES[name])
        if not is_log:
            panel.set_ylim(0, 1.1 * max(max(one[law]) for law in LAWS))
    style.legend_below(figure, 3)
    return figure


def inverse_fit(variance: list[float], rates: list[float]) -> float:
    """R^2 of the least-squares fit c / variance + b."""
    inverse, y = 1 / np.asarray(variance), np.asarray(rates)
    columns = np.stack([inverse, np.ones_like(inverse)], axis=1)
    fitted = columns @ np.linalg.lstsq(columns, y, rcond=None)[0]
    return float(1 - np.sum((y - fitted) ** 2) / np.sum((y - y.mean()) ** 2))


def _trend(one: dict[str, Any]) -> str:
    """What all three laws do over the range: falls, rises, constant, or mixed."""
    changes = [one[law][-1] / one[law][0] - 1 for law in LAWS]
    if max(map(abs, changes)) < 1e-6:  # rounding; the draws are the same at every variance
        return "is constant"
    if max(changes) < 0:
        return "falls"
    return "rises" if min(changes) > 0 else "rises or falls with the law"


def claims(records: dict[str, Any]) -> list[Claim]:
    """Fig. 4 (a), its fit, the case in which that is exact, and Fig. 4 (b)."""
    designs = records["designs"]
    return [_falls(designs), _fitted(designs), _exact(designs["identity"]), _tangent_falls(designs)]


def _falls(designs: dict[str, Any]) -> Claim:
    trends = {name: _trend(designs[name]) for name in designs if name != "tangent"}
    return Claim(
        "α_lim falls as the variance of the data grows (Corollary 1, Example 1)",
        "Zou et al. (2022), Fig. 4 (a) and section 3.1",
        "first against last variance for five designs and three laws; the paper names neither centres nor widths",
        verdict_of_cases(trend == "falls" for trend in trends.values()),
        "; ".join(f"{_TITLES[name]}: {trend}" for name, trend in trends.items())
        + ". Basis functions must lie away from the data, or features grow with x",
    )


def _fitted(designs: dict[str, Any]) -> Claim:
    """R^2 alone would not tell: the point of least variance is the highest and decides it."""
    names = ("rbf_centred", "rbf_far")
    factors = {name: max(_spread(designs[name], law) for law in LAWS) for name in names}
    fits = {
        name: [inverse_fit(designs[name]["variance"], designs[name][law]) for law in LAWS]
        for name in names
    }
    return Claim(
        "The curves are perfectly fitted by an inverse proportional function such as 0.35 / σ²",
        "Zou et al. (2022), Fig. 4 (a) and section 5.2",
        "α_lim σ² is constant over the range to within 5 %, for every law, for at least one choice of centres",
        verdict_of(min(factors.values()) < 1.05),
        "; ".join(
            f"{_TITLES[name]}: α_lim σ² varies by a factor of up to {factors[name]:.3g}, R² of c / σ² + b is "
            f"{from_to(fits[name], '.2f')}"
            for name in names
        ),
    )


def _spread(one: dict[str, Any], law: str) -> float:
    """Largest over smallest alpha_lim sigma^2."""
    products = np.multiply(one["variance"], one[law])
    return float(products.max() / products.min())


def _exact(one: dict[str, Any]) -> Claim:
    products = np.array(
        [[v * a for v, a in zip(one["variance"], one[law], strict=True)] for law in LAWS]
    )
    spread = float(np.max(np.ptp(products, axis=1) / products.mean(axis=1)))
    return Claim(
        "For features that scale with the data the law α_lim = c / σ² is exact",
        "beyond Zou et al. (2022), section 5.2",
        "relative range of α_lim σ² over all variances, φ(x) = x",
        verdict_of(spread < 1e-9),
        f"range {spread:.1e}; c = "
        + ", ".join(
            f"{c:.4f} for {_LABELS[law]}" for law, c in zip(LAWS, products.mean(1), strict=True)
        ),
    )


def _tangent_falls(designs: dict[str, Any]) -> Claim:
    one = designs["tangent"]
    monotone = all(np.all(np.diff(one[law]) < 0) for law in LAWS)
    slopes = {law: log_slope(one["variance"], one[law]) for law in LAWS}
    return Claim(
        "With tangent features of a wide network α_lim falls as the variance grows, from some 1e-4",
        "Zou et al. (2022), Fig. 4 (b)",
        "every step of the curve goes down, for all three laws; power of σ² fitted",
        verdict_of(monotone),
        "; ".join(
            f"{_LABELS[law]}: {one[law][0]:.2g} to {one[law][-1]:.2g}, power {slopes[law]:.2f}"
            for law in LAWS
        )
        + ". The power is not -1: the features of the biases do not grow with x",
    )


EXPERIMENT = Experiment(
    name="zou-fig4",
    title="alpha_lim against the variance of the data, three laws, six kinds of features",
    paper="zou2022",
    quick=Config(),
    paper_scale=Config(tasks=5000, points=50, network_tasks=100, network_points=30),
    run=run,
    plot=plot,
    claims=claims,
)
