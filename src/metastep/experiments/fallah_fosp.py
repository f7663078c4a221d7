"""Fallah et al.: do MAML, FO-MAML and HF-MAML reach a stationary point of F where nothing is sampled?"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from metastep.experiments.core import Claim, Experiment, Report, log_slope, verdict_of
from metastep.experiments.logcosh import draw_problem
from metastep.experiments.logcosh_descent import METHODS, resting_places
from metastep.report.lines import Series, line_figure


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the problem, and the scan over alpha; gradients are compared with the one at `start`."""

    tasks: int = 12
    points: int = 24
    dim: int = 2
    alphas: int = 5
    steps: int = 300
    start: float = 3.0


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """|grad F| where each algorithm comes to rest, over alpha up to the largest that all three theorems allow."""
    report("resting points", 0, 1)
    problem = draw_problem(config, seed, 1 / 10)
    alphas = np.geomspace(problem.alpha / 16, problem.alpha, config.alphas)

    def at_rest(alpha: Array) -> dict[str, Array]:
        there = dataclasses.replace(problem, alpha=alpha)
        return jax.tree.map(there.gradient_norm, resting_places(there, config.steps))

    return {
        "constants": problem.constants.record(),
        "alphas": alphas,
        "rest": jax.jit(jax.vmap(at_rest))(alphas),
        "start": problem.gradient_norm(jnp.full(config.dim, config.start)),
    }


def plot(records: dict[str, Any]) -> Figure:
    """Resting points over alpha; what rounding leaves lies at the bottom."""
    alphas, smoothness = np.array(records["alphas"]), records["constants"]["smoothness"]
    lines = [
        Series(method.label, alphas * smoothness, np.maximum(records["rest"][name], 1e-17),
               color=method.color, marker="o")
        for name, method in METHODS.items()
    ]  # fmt: skip
    return line_figure(lines, "α L", "‖∇F‖ at rest", log_x=True, log_y=True)


def claims(records: dict[str, Any]) -> list[Claim]:
    """What the theorems promise of each algorithm as batches grow."""
    return [
        _reaches_any("maml", "MAML", records),
        _first_order_floor(records),
        _reaches_any("hfmaml_rule", "HF-MAML with the printed δ", records),
        _reaches_any("hfmaml", "HF-MAML with a small δ", records),
    ]


def _reaches_any(name: str, label: str, records: dict[str, Any]) -> Claim:
    worst, start = max(records["rest"][name]), records["start"]
    # Rounding and the central difference leave 1e-9 of the starting gradient at most.
    reaches = worst < 1e-8 * start
    return Claim(
        f"{label} reaches an ε-stationary point of F for every ε > 0 as batches grow",
        "Fallah et al., theorems for MAML and HF-MAML",
        "rest of the noise-free algorithm on tasks s log cosh(w - x); holds if ‖∇F‖ < 1e-8 of the start",
        verdict_of(reaches),
        f"largest ‖∇F‖ at rest over {len(records['alphas'])} rates: {worst:.2e} (start {start:.2f})",
    )


def _first_order_floor(records: dict[str, Any]) -> Claim:
    rest = records["rest"]["fomaml"]
    slope = log_slope(records["alphas"], rest)
    holds = 0.85 < slope < 1.15 and rest[0] > 1e-6  # a power of alpha near one, and no rounding
    return Claim(
        "FO-MAML stops short of a stationary point, at a distance of order α",
        "Fallah et al., theorem for FO-MAML: 20 α²L²σ² under the root",
        "log-log slope over α of ‖∇F‖ at the noise-free rest; holds if 0.85 to 1.15",
        verdict_of(holds),
        f"slope {slope:.3f}; ‖∇F‖ from {rest[0]:.2e} to {rest[-1]:.2e}",
    )


EXPERIMENT = Experiment(
    name="fallah-fosp",
    title="Which algorithms reach a stationary point of F, and how near the others come",
    paper="fallah2020",
    quick=Config(),
    paper_scale=Config(tasks=20, points=50, dim=3, alphas=9, steps=1000),
    run=run,
    plot=plot,
    claims=claims,
)
