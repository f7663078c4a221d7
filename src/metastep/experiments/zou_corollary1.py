"""Zou et al., Corollary 1: do the printed bounds hold alpha_lim, and which do?"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metastep import theory
from metastep.experiments.core import Claim, Experiment, Report, verdict_of
from metastep.experiments.linear_designs import (
    EXPONENTIAL,
    NORMAL,
    UNIFORM,
    ScaledLaw,
    design_features,
)
from metastep.report import style


@dataclasses.dataclass(frozen=True)
class Config:
    """Tasks sampled from each law."""

    tasks: int = 4000


Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """Features of a law, and the moments from which alpha_lim is known exactly, if it is.

    The provable bounds mean something where features are bounded.
    """

    title: str
    draw: Draw
    moments: Callable[[], theory.GramMoments] | None = None
    bounded: bool = False


def _iid(law: ScaledLaw, shots: int, dim: int, bounded: bool = False) -> Case:
    return Case(
        f"{law.title}, K = {shots}, d = {dim}",
        lambda rng, tasks: law.draw(rng, (tasks, shots, dim)),
        lambda: theory.iid_gram_moments(dim, shots, law.raw_moments(6)),
        bounded,
    )


def _rare(rng: np.random.Generator, tasks: int) -> np.ndarray:
    """G = I_5, or 1000 I_5 in one task of a thousand, K = 10: exactly, whatever the sample."""
    del rng
    phi = np.zeros((max(1000, tasks // 1000 * 1000), 10, 5))
    phi[:, :5] = np.eye(5)
    phi[::1000] *= 1000**0.5
    return phi


def _equal(rng: np.random.Generator, tasks: int) -> np.ndarray:
    """G = I_4 for every task: the case in which the upper end is attained."""
    del rng
    return np.broadcast_to(np.eye(4), (tasks, 4, 4))


def _polynomial(rng: np.random.Generator, tasks: int) -> np.ndarray:
    return np.asarray(theory.polynomial_features(rng.standard_normal((tasks, 15)), 4))


def _gaussian_basis(rng: np.random.Generator, tasks: int) -> np.ndarray:
    return np.asarray(design_features(rng, "rbf", tasks, 15, 10))


CASES = (
    _iid(UNIFORM, 50, 20, bounded=True),
    _iid(NORMAL, 50, 20),
    Case("Gaussian basis, K = 15, d = 10", _gaussian_basis, bounded=True),
    Case("G = I, d = 4", _equal, bounded=True),
    _iid(NORMAL, 1, 1),
    _iid(NORMAL, 1, 2),
    _iid(EXPONENTIAL, 1, 3),
    Case(
        "polynomials of N(0, 1), K = 15, d = 4",
        _polynomial,
        lambda: theory.polynomial_gram_moments(4, 15, theory.normal_raw_moments(18)),
    ),
    Case("G = I or, rarely, 1000 I, d = 5", _rare, bounded=True),
)


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """For every law alpha_lim, the ends of equation 3.5, and the ends that can be proved."""
    rng = np.random.default_rng(seed)
    rows = []
    for index, case in enumerate(CASES):
        report(case.title, index, len(CASES))
        rows.append(_row(case, np.asarray(case.draw(rng, config.tasks))))
    return {"cases": rows}


def _row(case: Case, phi: np.ndarray) -> dict[str, Any]:
    shots, dim = phi.shape[1:]
    moments = theory.gram_moments(phi) if case.moments is None else case.moments()
    printed = theory.moment_interval_as_printed(moments, shots, dim)
    proved = theory.rate_interval(phi)
    rates = {
        "alpha_lim": theory.moment_rate(moments, shots),
        "sampled": theory.limit_rate(phi),
        "lower_as_printed": printed.lower,
        "upper": printed.upper,
        "sample_lower": proved.lower,
        "sample_upper": proved.upper,
        "radius_lower": proved.radius_bound,
        "doubled": theory.limit_rate(2 * phi),
    }
    known = {"title": case.title, "exact": case.moments is not None, "bounded": case.bounded}
    return known | {name: float(rate) for name, rate in rates.items()}


def plot(records: dict[str, Any]) -> Figure:
    """The printed interval of every law in units of alpha_lim."""
    figure, (axes,) = style.new_figure(panel=(9.0, 4.6))
    _draw(axes, records["cases"])
    style.legend_below(figure, columns=4)
    return figure


@style.styled
def _draw(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(reversed(rows)):
        unit = row["alpha_lim"]
        holds = _lower_holds(row)
        color = style.BLUE if holds else style.VERMILLION
        label = "printed interval holds α_lim" if holds else "printed interval misses α_lim"
        axes.plot([row["lower_as_printed"] / unit, row["upper"] / unit], [place, place],
                  "-|" if holds else "--|", color=color, linewidth=4, markersize=12,
                  markeredgewidth=3, label=label)  # fmt: skip
        axes.plot(row["radius_lower"] / unit, place, "<", color=style.GREEN, markersize=8,
                  label="1 / (2 max |φ|²), of the sample")  # fmt: skip
    axes.axvline(1, color=style.BLACK, label="α_lim")
    axes.set(xscale="log", xlabel="rate / α_lim", yticks=range(len(rows)),
             yticklabels=[row["title"] for row in reversed(rows)])  # fmt: skip
    axes.grid(axis="y", visible=False)


def _lower_holds(row: dict[str, Any]) -> bool:
    return row["lower_as_printed"] <= row["alpha_lim"]


def claims(records: dict[str, Any]) -> list[Claim]:
    """Both ends of equation 3.5, what replaces the lower one, and the inverse relation to the variance."""
    rows = records["cases"]
    return [_upper(rows), _lower(rows), _provable(rows), _inverse(rows)]


def _upper(rows: list[dict[str, Any]]) -> Claim:
    ratios = [row["alpha_lim"] / row["upper"] for row in rows]
    return Claim(
        "α_lim <= d / (2 σ²)",
        "Zou et al. (2022), Corollary 1, equation 3.5",
        f"σ² = E|φ|², α_lim exactly or from a sample, {len(rows)} laws; holds if at most 1, but for rounding",
        verdict_of(max(ratios) <= 1 + 1e-12),
        f"α_lim is {min(ratios):.2g} to {max(ratios):.6g} of the bound, which G = I attains",
    )


def _lower(rows: list[dict[str, Any]]) -> Claim:
    failing = [row for row in rows if not _lower_holds(row)]
    shown = "; ".join(
        f"{row['title']}: {row['alpha_lim']:.3g} < {row['lower_as_printed']:.3g}" for row in failing
    )
    return Claim(
        "α_lim >= 1 / (2 d σ²)",
        "Zou et al. (2022), Corollary 1, equation 3.5",
        "the same laws; one counter-example is enough",
        verdict_of(not failing),
        f"fails for {len(failing)} of {len(rows)}" + (f": {shown}" if failing else ""),
    )


def _provable(rows: list[dict[str, Any]]) -> Claim:
    bounded = [row for row in rows if row["bounded"]]
    holds = all(
        max(row["sample_lower"], row["radius_lower"]) <= row["sampled"] * (1 + 1e-9)
        and row["sampled"] <= _finite(row["sample_upper"]) * (1 + 1e-9)
        for row in rows
    )
    gap = max(row["sampled"] / row["sample_lower"] for row in bounded)
    return Claim(
        "K / (2 λ_S) <= α_lim <= K / (2 λ_I) and α_lim >= 1 / (2 R²), for |φ| <= R",
        "replaces the lower end of equation 3.5",
        "extreme eigenvalues and lengths of each sample against α_lim of the same sample",
        verdict_of(holds),
        f"holds for {len(rows)} of {len(rows)} samples; for bounded features α_lim is up to {gap:.3g} times "
        "the lower end" if holds else "fails for some sample",
    )  # fmt: skip


def _finite(value: float | None) -> float:
    """Records hold None for infinity, the upper end when an eigenvalue is zero."""
    return math.inf if value is None else value


def _inverse(rows: list[dict[str, Any]]) -> Claim:
    error = max(abs(4 * row["doubled"] / row["sampled"] - 1) for row in rows)
    return Claim(
        "α_lim is inversely proportional to the second moment of the features, other things being equal",
        "Zou et al. (2022), text after Corollary 1",
        "features times 2 must give α_lim / 4",
        verdict_of(error < 1e-9),
        f"largest relative difference {error:.1e}",
    )


EXPERIMENT = Experiment(
    name="zou-corollary1",
    title="bounds on α_lim for nine laws of the features, with counter-examples",
    paper="zou2022",
    quick=Config(),
    paper_scale=Config(tasks=20_000),
    run=run,
    plot=plot,
    claims=claims,
)
