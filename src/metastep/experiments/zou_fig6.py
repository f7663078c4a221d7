"""Zou et al., Fig. 6 and Examples 1 and 2: moment coefficients, and the third moments printed and corrected."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metastep import theory
from metastep.experiments.core import (
    Claim,
    Experiment,
    Report,
    floats,
    from_to,
    log_slope,
    verdict_of,
    verdict_of_cases,
)
from metastep.report import style
from metastep.report.lines import Series, draw

_MANY_SHOTS = 10**6  # stands for K -> infinity in E.6
_DIMS = (2, 3, 4)

Moments = Callable[..., theory.GramMoments]


@dataclasses.dataclass(frozen=True)
class Config:
    """Cases of equation E.4 are (dim, shots, variance), of E.11 (dim, shots, mean, variance)."""

    dim: int = 50
    samples: int = 200_000
    polynomial: tuple[tuple[int, int, float], ...] = ((3, 4, 0.25), (4, 5, 0.1))
    entries: tuple[tuple[int, int, float, float], ...] = (
        (5, 7, 0.0, 1.0),
        (5, 7, 0.5, 1.0),
        (1, 7, 0.5, 1.0),
    )
    variances: int = 41


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Coefficients g1 to g3, third moments three ways, and alpha_lim over the variance."""
    rng = np.random.default_rng(seed)
    report("coefficients and limits", 0, 2)
    records = {"coefficients": _coefficients(config.dim), "limits": _limits(config.variances)}
    report("third moments", 1, 2)
    cases = [_polynomial_case(rng, config.samples, *case) for case in config.polynomial]
    cases += [_entry_case(rng, config.samples, *case) for case in config.entries]
    return {**records, "moments": cases}


def _coefficients(dim: int) -> dict[str, list[float]]:
    """How many index tuples give each moment: g1 in E.3, g2 in E.4 (one shot) as printed, g3 (many shots).

    Indices run from 0 to dim - 1: j + m, 3 j + m + 2 l and j + m + l. The corrected one-shot moment
    is m_2(j+m+l), so its coefficients are those of g3 at twice the order.
    """

    def count(*factors: int) -> np.ndarray:
        total = np.ones(1)
        for factor in factors:  # product of the polynomials 1 + z^f + ... + z^(f (d-1))
            powers = np.zeros(factor * (dim - 1) + 1)
            powers[::factor] = 1
            total = np.convolve(total, powers)
        return total

    orders = 6 * (dim - 1) + 1
    doubled = np.zeros(orders)
    doubled[::2] = count(1, 1, 1)
    columns = {
        "g1": count(1, 1),
        "g2": count(3, 1, 2),
        "g3": count(1, 1, 1),
        "g2_corrected": doubled,
    }
    return {"order": floats(np.arange(orders))} | {
        name: floats(np.pad(column, (0, orders - len(column)))) for name, column in columns.items()
    }


def _limits(points: int) -> list[dict[str, Any]]:
    """alpha_lim of Example 1 over the variance of x ~ N(0, s2), for one shot and for many."""
    variances = np.geomspace(1e-4, 1e6, points)
    rows = []
    for dim in _DIMS:
        for shots in (1, _MANY_SHOTS):
            moments = [
                theory.normal_raw_moments(6 * (dim - 1), 0.0, variance) for variance in variances
            ]
            rates = floats(_polynomial_rates(dim, shots, np.array(moments)))
            rows.append(
                {"dim": dim, "shots": shots, "variance": floats(variances), "alpha_lim": rates}
            )
    return rows


@partial(jax.jit, static_argnums=(0, 1))
def _polynomial_rates(dim: int, shots: int, moments: Array) -> Array:
    """alpha_lim for each row of raw moments; compiled, as one operation at a time would compile more."""

    def rate(row: Array) -> Array:
        return theory.moment_rate(theory.polynomial_gram_moments(dim, shots, row), shots)

    return jax.vmap(rate)(moments)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _third_moment(moments_of: Moments, dim: int, shots: int, moments: Array) -> Array:
    return moments_of(dim, shots, moments).p3


def _polynomial_case(
    rng: np.random.Generator, samples: int, dim: int, shots: int, variance: float
) -> dict[str, Any]:
    x = variance**0.5 * rng.standard_normal((samples, shots))
    return _third_moments(
        f"E.4: d = {dim}, K = {shots}, s² = {variance:g}",
        (theory.polynomial_gram_moments, theory.polynomial_gram_moments_as_printed),
        theory.normal_raw_moments(6 * (dim - 1), variance=variance),
        x[..., None] ** np.arange(dim),
    )


def _entry_case(
    rng: np.random.Generator, samples: int, dim: int, shots: int, mean: float, variance: float
) -> dict[str, Any]:
    return _third_moments(
        f"E.11: d = {dim}, K = {shots}, N({mean:g}, {variance:g})",
        (theory.iid_gram_moments, theory.iid_gram_moments_as_printed),
        theory.normal_raw_moments(6, mean, variance),
        mean + variance**0.5 * rng.standard_normal((samples, shots, dim)),
    )


def _third_moments(
    case: str, forms: tuple[Moments, Moments], raw_moments: np.ndarray, phi: np.ndarray
) -> dict[str, Any]:
    """E tr G^3 corrected and as printed, and the mean of a sample of features with its standard error."""
    samples, shots, dim = phi.shape
    corrected, printed = (float(_third_moment(form, dim, shots, raw_moments)) for form in forms)
    gram = phi.transpose(0, 2, 1) @ phi
    traces = np.sum((gram @ gram) * gram, axis=(1, 2))
    return {
        "case": case,
        "dim": dim,
        "corrected": corrected,
        "printed": printed,
        "sampled": float(traces.mean()),
        "standard_error": float(traces.std() / math.sqrt(samples)),
    }


def plot(records: dict[str, Any]) -> Figure:
    """Coefficients as in Fig. 6, third moments against sampling, and the limits E.5 and E.6."""
    figure, axes = style.new_figure(2, 2)
    one = records["coefficients"]
    g1, g2, g3 = (
        Series(f"${name[0]}_{name[1]}$", one["order"], one[name], color=color)
        for name, color in zip(("g1", "g2", "g3"), style.PALETTE, strict=False)
    )
    for panel, other, last, title in ((axes[0], g2, 6, "one shot"), (axes[1], g3, 3, "many shots")):
        draw(panel, [g1, other], "order of the moment", "coefficient", title=f"Fig. 6, {title}")
        panel.set_xlim(0, last * len(one["order"]) / 6)
        panel.legend(loc="upper right", frameon=False)
    _draw_moments(axes[2], records["moments"])
    _draw_limits(axes[3], records["limits"])
    return figure


@style.styled
def _draw_moments(axes: Axes, cases: list[dict[str, Any]]) -> None:
    rows = np.arange(len(cases))
    for name, color, marker in (("printed", style.VERMILLION, "X"), ("corrected", style.BLUE, "o")):
        ratios = [case[name] / case["sampled"] for case in cases]
        axes.plot(ratios, rows, marker, color=color, label=name, markersize=8)
    errors = [2 * case["standard_error"] / case["sampled"] for case in cases]
    axes.errorbar(
        np.ones(len(cases)), rows, xerr=errors, fmt="|", color=style.BLACK, label="sampled, 2 s.e."
    )
    axes.set_yticks(rows, [case["case"] for case in cases], fontsize=9)
    axes.set(
        xlabel="E tr G³ relative to sampling", title="third moments", ylim=(-0.7, len(cases) - 0.3)
    )
    axes.invert_yaxis()
    axes.legend(loc="best")


@style.styled
def _draw_limits(axes: Axes, limits: list[dict[str, Any]]) -> None:
    for row in limits:
        color = style.PALETTE[_DIMS.index(row["dim"])]
        few = row["shots"] == 1
        label = f"d = {row['dim']}, " + ("K = 1" if few else "K → ∞")
        one = Series(label, row["variance"], row["alpha_lim"], None, color, "-" if few else "--")
        title = "limits E.5 and E.6, x ~ N(0, s²)"
        draw(axes, [one], "variance of x", r"$\alpha_{lim}$", True, True, title)
    axes.legend(fontsize=9)


def claims(records: dict[str, Any]) -> list[Claim]:
    """The figure's point, the two printed third moments, and the two limits."""
    polynomial = [case for case in records["moments"] if case["case"].startswith("E.4")]
    entries = [case for case in records["moments"] if case["case"].startswith("E.11")]
    return [
        _dominant(records["coefficients"]),
        _printed("E.4 gives E tr G³ for polynomial features", polynomial),
        _printed("E.11 gives E tr G³ for independent entries", entries),
        _corrected(records["moments"]),
        _large(records["limits"]),
        _small(records["limits"]),
    ]


def _dominant(one: dict[str, Any]) -> Claim:
    tops = {name: max(one[name]) for name in ("g1", "g2", "g3")}
    same = one["g2"] == one["g2_corrected"]
    return Claim(
        "The denominator's coefficients are larger, more and of higher order than the numerator's",
        "Zou et al. (2022), Fig. 6",
        "counts of index tuples; one-shot coefficients also from the corrected E.4",
        verdict_of(min(tops["g2"], tops["g3"]) > tops["g1"]),
        f"largest: g1 {tops['g1']:.0f}, g2 {tops['g2']:.0f}, g3 {tops['g3']:.0f}; the printed g2 "
        + ("is right" if same else "is not that of the true moment m_2(j+m+l), whose largest is "
           f"{max(one['g2_corrected']):.0f}, on even orders alone"),
    )  # fmt: skip


def _deviation(case: dict[str, Any], name: str) -> float:
    """Distance from the sampled mean in standard errors."""
    return abs(case[name] - case["sampled"]) / case["standard_error"]


def _printed(text: str, cases: list[dict[str, Any]]) -> Claim:
    right = [_deviation(case, "printed") < 4 for case in cases]
    return Claim(
        text + ", as printed",
        "Zou et al. (2022), equation " + text.split()[0],
        "within 4 standard errors of a Monte Carlo mean",
        verdict_of_cases(right),
        "; ".join(
            f"{case['case'].split(': ')[1]}: printed {case['printed']:.5g}, sampled "
            f"{case['sampled']:.5g} ± {case['standard_error']:.1g}"
            for case in cases
        ),
    )


def _corrected(cases: list[dict[str, Any]]) -> Claim:
    worst = max(_deviation(case, "corrected") for case in cases)
    return Claim(
        "The corrected third moments are right",
        "metastep, in place of equations E.4 and E.11",
        "within 4 standard errors of a Monte Carlo mean in every case",
        verdict_of(worst < 4),
        f"largest deviation {worst:.1f} standard errors; "
        + ", ".join(f"{case['corrected']:.5g} against {case['sampled']:.5g}" for case in cases),
    )


def _powers(limits: list[dict[str, Any]]) -> dict[str, float]:
    """Power of the variance over its largest decade, for each dim and number of shots."""
    powers = {}
    for row in limits:
        kept = [i for i, v in enumerate(row["variance"]) if v >= row["variance"][-1] / 10]
        columns = ([row[name][i] for i in kept] for name in ("variance", "alpha_lim"))
        powers[f"d = {row['dim']}, K = {row['shots']:g}"] = log_slope(*columns)
    return powers


def _large(limits: list[dict[str, Any]]) -> Claim:
    powers = _powers(limits)
    inverse = [abs(power + 1) < 0.02 for power in powers.values()]
    degree = all(
        abs(power + row["dim"] - 1) < 0.02
        for power, row in zip(powers.values(), limits, strict=True)
    )
    return Claim(
        "α_lim is O(1/s²): an inverse relationship to the variance",
        "Zou et al. (2022), equations E.5, E.6 and Example 1 (the slides: s → ∞)",
        "power of s² over the last decade up to 1e6; -1 to within 0.02 for every d holds",
        verdict_of_cases(inverse),
        ", ".join(f"{name}: {power:.3f}" for name, power in powers.items())
        + ("; it is s^-2(d-1), inverse for d = 2 alone" if degree else ""),
    )


def _small(limits: list[dict[str, Any]]) -> Claim:
    ends = [row["alpha_lim"][0] for row in limits]
    bounded = max(abs(end - 0.5) for end in ends) < 0.01
    return Claim(
        "The inverse law is that of s → 0, as E.5 and E.6 are headed",
        "Zou et al. (2022), equations E.5 and E.6",
        f"α_lim at s² = {limits[0]['variance'][0]:g}: it would be large, not at its limit 1/2",
        verdict_of(not bounded),
        f"α_lim from {from_to(ends, '.4f')} over d and K",
    )


EXPERIMENT = Experiment(
    name="zou-fig6",
    title="moment coefficients, third moments as printed and corrected, limits of Example 1",
    paper="zou2022",
    quick=Config(),
    paper_scale=Config(samples=1_000_000, variances=101),
    run=run,
    plot=plot,
    claims=claims,
)
