"""Zou et al., Examples 1 and 2: the third moments of E.4 and E.11, as printed and corrected, against sampling."""

import dataclasses
from collections.abc import Callable
from functools import partial
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
    standard_error,
    verdict_of,
    verdict_of_cases,
)
from metastep.report import style

Moments = Callable[..., theory.GramMoments]


@dataclasses.dataclass(frozen=True)
class Config:
    """Cases of equation E.4 are (dim, shots, variance), of E.11 (dim, shots, mean, variance)."""

    samples: int = 200_000
    polynomial: tuple[tuple[int, int, float], ...] = ((3, 4, 0.25), (4, 5, 0.1))
    entries: tuple[tuple[int, int, float, float], ...] = (
        (5, 7, 0.0, 1.0),
        (5, 7, 0.5, 1.0),
        (1, 7, 0.5, 1.0),
    )


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """E tr G^3 three ways: as printed, corrected and sampled."""
    report("third moments", 0, 1)
    rng = np.random.default_rng(seed)
    cases = [_polynomial_case(rng, config.samples, *case) for case in config.polynomial]
    cases += [_entry_case(rng, config.samples, *case) for case in config.entries]
    return {"moments": cases}


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
    _, shots, dim = phi.shape
    corrected, printed = (float(_third_moment(form, dim, shots, raw_moments)) for form in forms)
    gram = phi.transpose(0, 2, 1) @ phi
    traces = np.sum((gram @ gram) * gram, axis=(1, 2))
    return {
        "case": case,
        "dim": dim,
        "corrected": corrected,
        "printed": printed,
        "sampled": traces.mean(),
        "standard_error": standard_error(traces),
    }


@partial(jax.jit, static_argnums=(0, 1, 2))
def _third_moment(moments_of: Moments, dim: int, shots: int, moments: Array) -> Array:
    return moments_of(dim, shots, moments).p3


@style.styled
def plot(records: dict[str, Any]) -> Figure:
    """Third moments relative to the sampled mean, one row for each case."""
    figure, (axes,) = style.new_figure(panel=(7.0, 3.7))
    cases = records["moments"]
    rows = np.arange(len(cases))
    for name, color, marker in (("printed", style.VERMILLION, "X"), ("corrected", style.BLUE, "o")):
        ratios = [case[name] / case["sampled"] for case in cases]
        axes.plot(ratios, rows, marker, color=color, label=name, markersize=8)
    errors = [2 * case["standard_error"] / case["sampled"] for case in cases]
    axes.errorbar(
        np.ones(len(cases)), rows, xerr=errors, fmt="|", color=style.BLACK, label="sampled, 2 s.e."
    )
    axes.set_yticks(rows, [case["case"] for case in cases], fontsize=9)
    axes.set(xlabel="E tr G³ relative to sampling", ylim=(-0.7, len(cases) - 0.3))
    axes.invert_yaxis()
    style.legend_below(figure, columns=3)
    return figure


def claims(records: dict[str, Any]) -> list[Claim]:
    """The two printed third moments, and what replaces them."""
    cases = records["moments"]
    polynomial = [case for case in cases if case["case"].startswith("E.4")]
    entries = [case for case in cases if case["case"].startswith("E.11")]
    return [
        _printed("E.4 gives E tr G³ for polynomial features", polynomial),
        _printed("E.11 gives E tr G³ for independent entries", entries),
        _corrected(cases),
    ]


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


EXPERIMENT = Experiment(
    name="zou-moments",
    title="third moments of Examples 1 and 2, as printed and corrected, against sampling",
    paper="zou2022",
    quick=Config(),
    paper_scale=Config(samples=1_000_000),
    run=run,
    plot=plot,
    claims=claims,
)
