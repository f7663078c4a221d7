"""Zou et al., Fig. 6 and Example 1: coefficients of the moments in alpha_lim, and its limits over the variance."""

import dataclasses
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
    from_to,
    log_slope,
    verdict_of,
    verdict_of_cases,
)
from metastep.report import style
from metastep.report.lines import Series, draw

_MANY_SHOTS = 10**6  # stands for K -> infinity in E.6
_DIMS = (2, 3, 4)


@dataclasses.dataclass(frozen=True)
class Config:
    """Features of the coefficients, and variances at which the limits are looked at."""

    dim: int = 50
    variances: int = 41


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Coefficients g1 to g3, and alpha_lim over the variance."""
    del seed  # nothing is drawn
    report("coefficients and limits", 0, 1)
    counts = theory.polynomial_moment_counts(config.dim)
    coefficients = {
        "order": counts.order,
        "g1": counts.numerator,
        "g2": counts.one_shot_as_printed,
        "g3": counts.many_shots,
        "g2_corrected": counts.one_shot,
    }
    return {"coefficients": coefficients, "limits": _limits(config.variances)}


def _limits(points: int) -> list[dict[str, Any]]:
    """alpha_lim of Example 1 over the variance of x ~ N(0, s2), for one shot and for many."""
    variances = np.geomspace(1e-4, 1e6, points)
    rows = []
    for dim in _DIMS:
        for shots in (1, _MANY_SHOTS):
            moments = [
                theory.normal_raw_moments(6 * (dim - 1), 0.0, variance) for variance in variances
            ]
            rates = _polynomial_rates(dim, shots, np.array(moments))
            rows.append({"dim": dim, "shots": shots, "variance": variances, "alpha_lim": rates})
    return rows


@partial(jax.jit, static_argnums=(0, 1))
def _polynomial_rates(dim: int, shots: int, moments: Array) -> Array:
    """alpha_lim for each row of raw moments; compiled, as one operation at a time would compile more."""

    def rate(row: Array) -> Array:
        return theory.moment_rate(theory.polynomial_gram_moments(dim, shots, row), shots)

    return jax.vmap(rate)(moments)


def plot(records: dict[str, Any]) -> Figure:
    """Coefficients as in Fig. 6, and the limits E.5 and E.6."""
    figure, axes = style.new_figure(1, 3)
    one = records["coefficients"]
    g1, g2, g3 = (
        Series(f"${name[0]}_{name[1]}$", one["order"], one[name], color=color)
        for name, color in zip(("g1", "g2", "g3"), style.PALETTE, strict=False)
    )
    for panel, other, last, title in ((axes[0], g2, 6, "one shot"), (axes[1], g3, 3, "many shots")):
        draw(panel, [g1, other], "order of the moment", "coefficient", title=f"Fig. 6, {title}")
        panel.set_xlim(0, last * len(one["order"]) / 6)
        panel.legend(loc="upper right", frameon=False)
    _draw_limits(axes[2], records["limits"])
    return figure


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
    """The figure's point, and the two limits."""
    limits = records["limits"]
    return [_dominant(records["coefficients"]), _large(limits), _small(limits)]


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
    title="coefficients of the moments in α_lim, and its limits over the variance",
    paper="zou2022",
    quick=Config(),
    paper_scale=Config(variances=101),
    run=run,
    plot=plot,
    claims=claims,
)
