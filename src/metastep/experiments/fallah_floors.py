"""Fallah et al.: how near sampled MAML, FO-MAML and HF-MAML come to a stationary point of F, and how soon."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metastep import theory
from metastep.experiments.core import (
    Claim,
    Experiment,
    Report,
    from_to,
    verdict_of,
    verdict_of_cases,
)
from metastep.experiments.logcosh import Problem, draw_problem, task_loss
from metastep.experiments.logcosh_descent import METHODS, Sizes, resting_places, sampled_run
from metastep.report import style
from metastep.report.lines import Series, draw


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the problem, of the batches, and of the runs: one from afar, and one from rest for each batch."""

    tasks: int = 12
    points: int = 24
    dim: int = 2
    rest_steps: int = 300
    sizes: tuple[Sizes, ...] = ((20, 10, 10), (40, 20, 20))
    steps: int = 500
    floor_steps: int = 300
    repeats: int = 8
    start: float = 3.0


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Runs with sampled batches: from afar with the first sizes, and from the noise-free rest with all."""
    problem = draw_problem(config, seed, 1 / 10)  # the largest alpha that all three theorems allow
    generator = np.random.default_rng(seed)
    settled = jax.jit(lambda: resting_places(problem, config.rest_steps))()
    floors, paths = [], {}
    for index, sizes in enumerate(config.sizes):
        report(f"B, D_in, D_o = {sizes}", index, len(config.sizes))
        run_from = sampled_run(problem, sizes)
        if not paths:
            starts = dict.fromkeys(METHODS, jnp.full(config.dim, config.start))
            paths = run_from(starts, config.steps, config.repeats, generator)
        means = run_from(settled, config.floor_steps, config.repeats, generator)
        floors.append(_floors(problem, means, sizes))
    every = max(1, config.steps // 200)
    return {
        "constants": problem.constants.record(),
        "alpha": problem.alpha,
        "floors": floors,
        "path_steps": list(range(0, len(paths["maml"]), every)),
        "paths": {name: path[::every] for name, path in paths.items()},
        "iterations": _iterations(problem, paths["maml"], config),
    }


def _floors(problem: Problem, means: dict[str, np.ndarray], sizes: Sizes) -> dict[str, Any]:
    """Mean |grad F| over the last quarter of the runs, beside what the theorems promise."""
    tail = len(means["maml"]) // 4
    measured = {name: float(np.mean(path[-tail:])) for name, path in means.items()}
    floor = partial(problem.known(theory.error_floor), **_batches(sizes))
    predicted = {name: float(floor(method.theory)) for name, method in METHODS.items()}
    return {"sizes": list(sizes), "measured": measured, "predicted": predicted}


def _batches(sizes: Sizes) -> dict[str, float]:
    """B, D_in and D_o as the theory names them."""
    names = ("num_tasks", "support_size", "query_size")
    return {name: float(size) for name, size in zip(names, sizes, strict=True)}


def _iterations(
    problem: Problem, path: np.ndarray, config: Config
) -> list[dict[str, float | None]]:
    """Meta-steps after which MAML first has E|grad F| <= epsilon, beside the bound; the bound's Delta
    is F(w_0), as F >= 0."""
    start = jnp.full(config.dim, config.start)
    gap = float(theory.meta_objective(task_loss, start, problem.tasks, problem.alpha))
    promised = partial(problem.known(theory.iteration_bound), "maml", initial_gap=gap)
    rows = []
    for halvings in range(1, 6):
        epsilon = float(path[0]) / 2**halvings
        bound = float(promised(epsilon=epsilon, **_batches(config.sizes[0])))
        below = np.flatnonzero(path <= epsilon)
        reached = float(below[0]) if below.size else None
        rows.append({"epsilon": epsilon, "reached": reached, "bound": bound})
    return rows


def plot(records: dict[str, Any]) -> Figure:
    """Paths of the sampled runs, and floors against what is predicted."""
    figure, (path, floor) = style.new_figure(1, 2)
    paths = [
        Series(
            method.label,
            records["path_steps"],
            records["paths"][name],
            color=method.color,
            line=line,
        )
        for (name, method), line in zip(METHODS.items(), ("-", "-", "-", "--"), strict=True)
    ]
    title = "B, D_in, D_o = " + ", ".join(map(str, records["floors"][0]["sizes"]))
    draw(path, paths, "meta-step", "E‖∇F‖", log_y=True, title=title)
    _draw_floors(floor, records["floors"])
    style.legend_below(figure, columns=3)
    return figure


@style.styled
def _draw_floors(axes: Axes, floors: list[dict[str, Any]]) -> None:
    """Measured floors (filled) and predicted ones (hollow), one group for each batch size."""
    for place, (name, method) in enumerate(METHODS.items()):
        x = np.arange(len(floors)) + 0.12 * (place - 1.5)
        for kind, marker, face in (("measured", "o", method.color), ("predicted", "s", "white")):
            values = [row[kind][name] for row in floors]
            axes.plot(x, values, marker, color=method.color, markerfacecolor=face, markersize=6)
    axes.plot([], [], "ks", markerfacecolor="white", label="predicted floor")
    axes.plot([], [], "ko", label="measured floor")
    labels = [", ".join(map(str, row["sizes"])) for row in floors]
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set(yscale="log", xlabel="B, D_in, D_o", ylabel="E‖∇F‖", title="floors")
    axes.set_xlim(-0.5, len(labels) - 0.5)


def claims(records: dict[str, Any]) -> list[Claim]:
    """What the theorems promise of runs with batches of a given size."""
    return [
        _floors_are_bounds(records["floors"]),
        _floors_shrink(records["floors"]),
        _iteration_counts(records["iterations"]),
    ]


def _floors_are_bounds(floors: list[dict[str, Any]]) -> Claim:
    ratios = [row["predicted"][name] / row["measured"][name] for row in floors for name in METHODS]
    return Claim(
        "E‖∇F‖ comes below the floors of the theorems",
        "Fallah et al., the three theorems",
        "mean ‖∇F‖ over the last quarter of runs with the printed step size; holds if below every floor",
        verdict_of(min(ratios) >= 1),
        f"the floors are {from_to(ratios, '.0f')} times what was measured",
    )


def _floors_shrink(floors: list[dict[str, Any]]) -> Claim:
    """Compare settings whose batches are at least as large with those they enlarge."""
    rows = [(row["sizes"], row["measured"]["maml"]) for row in floors]
    changes = {
        f"{_names(small, large)} up: x {after / before:.2f}": after / before
        for small, before in rows
        for large, after in rows
        if small != large and all(a <= b for a, b in zip(small, large, strict=True))
    }
    return Claim(
        "MAML's floor shrinks with B, D_in and D_o",
        "Fallah et al., theorem for MAML",
        "measured floor with larger batches over that with smaller ones; holds if always below 1, with a "
        "condition if for some of the three",
        verdict_of_cases(change < 1 for change in changes.values()),
        ", ".join(changes),
    )


def _names(small: list[int], large: list[int]) -> str:
    changed = zip(("B", "D_in", "D_o"), small, large, strict=True)
    return " and ".join(f"{name} {a} to {b}" for name, a, b in changed if a != b)


def _iteration_counts(iterations: list[dict[str, Any]]) -> Claim:
    claim = partial(
        Claim,
        "E‖∇F‖ <= ε within a constant times Δ (L + ρα(σ + ε)) / ε² meta-steps",
        "Fallah et al., theorem for MAML; Ashtekar (14) for the constant 1600",
        "first meta-step at which the base run of MAML is below ε, at ε = 1/2 ... 1/32 of the start",
    )
    rows = [row for row in iterations if row["reached"] is not None]
    ratios = [row["bound"] / max(row["reached"], 1) for row in rows]
    if not rows or math.isinf(min(ratios)):
        return claim("not tested", "no ε was reached in the steps of this scale")
    reached = f"{len(rows)} of {len(iterations)} ε reached"
    evidence = f"{reached}; bound / measured from {from_to(ratios)}"
    return claim(verdict_of(min(ratios) >= 1), evidence)


EXPERIMENT = Experiment(
    name="fallah-floors",
    title="Floors of the sampled algorithms and meta-steps to reach them, against the theorems",
    paper="fallah2020",
    quick=Config(),
    paper_scale=Config(
        tasks=20,
        points=50,
        dim=3,
        rest_steps=1000,
        sizes=((20, 20, 20), (80, 20, 20), (20, 5, 20), (20, 80, 20), (20, 20, 5), (20, 20, 80)),
        steps=1500,
        floor_steps=1500,
    ),
    run=run,
    plot=plot,
    claims=claims,
)
