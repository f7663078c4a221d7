"""Fallah et al.: do MAML, FO-MAML and HF-MAML reach a stationary point of F, and if not, how near do they come?"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from metastep import theory
from metastep._types import Episode, MetaParams
from metastep.adapt import GradientAdapter
from metastep.experiments.core import (
    Claim,
    Experiment,
    Report,
    from_to,
    log_slope,
    verdict_of,
    verdict_of_cases,
)
from metastep.experiments.logcosh import (
    OBJECTIVE,
    Problem,
    draw_indices,
    draw_problem,
    take_batches,
    task_gradient_norms,
    task_loss,
)
from metastep.metagrad import AbstractMetaGradient, Exact, FirstOrder, HessianFree
from metastep.report import style
from metastep.report.lines import Series, draw
from metastep.theory.smoothness import Algorithm

Direction = Callable[[Array, Episode], Array]
Sizes = tuple[int, int, int]  # B, D_in, D_o

# (name in records, algorithm of the theory, label, colour)
_ALGORITHMS: tuple[tuple[str, Algorithm, str, str], ...] = (
    ("maml", "maml", "MAML", style.BLUE),
    ("fomaml", "fomaml", "FO-MAML", style.VERMILLION),
    ("hfmaml_rule", "hfmaml", "HF-MAML, δ as printed", style.ORANGE),
    ("hfmaml", "hfmaml", "HF-MAML, small δ", style.GREEN),
)

_CHUNK = 100  # meta-steps whose random indices are in memory at once


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the problem, the noise-free scan over alpha and the runs with sampled batches."""

    tasks: int = 12
    points: int = 24
    dim: int = 2
    alphas: int = 5
    rest_steps: int = 300
    sizes: tuple[Sizes, ...] = ((20, 10, 10), (40, 20, 20))
    steps: int = 500
    floor_steps: int = 300
    repeats: int = 8
    start: float = 3.0


def _directions(problem: Problem) -> dict[str, Direction]:
    """(w, episodes) -> meta-gradient, the mean over tasks, for each algorithm."""
    rho = problem.constants.hessian_lipschitz
    rules = {
        "maml": Exact(),
        "fomaml": FirstOrder(),
        "hfmaml_rule": HessianFree(rho, as_printed=True),
        "hfmaml": HessianFree(rho),
    }

    def direction(rule: AbstractMetaGradient, params: Array, episodes: Episode) -> Array:
        def of_task(episode: Episode) -> Array:
            alpha = jnp.asarray(problem.alpha)
            task = rule(OBJECTIVE, GradientAdapter(1), lambda _: alpha, MetaParams(params), episode)
            return task[1].params

        return jnp.mean(jax.vmap(of_task)(episodes), axis=0)

    return {name: partial(direction, rule) for name, rule in rules.items()}


def _rest(problem: Problem, steps: int) -> dict[str, Array]:
    """Where each algorithm comes to rest without sampling noise, (dim,)."""
    episodes = Episode(problem.tasks, problem.tasks)

    def rest(direction: Direction) -> Array:
        def step(_: int, w: Array) -> Array:
            return w - direction(w, episodes) / problem.constants.smoothness

        return jax.lax.fori_loop(0, steps, step, jnp.zeros(problem.tasks.x.shape[-1]))

    return {name: rest(direction) for name, direction in _directions(problem).items()}


def _sampled_run(problem: Problem, sizes: Sizes) -> Callable[..., dict[str, np.ndarray]]:
    """(starts, steps, repeats, generator) -> mean |grad F(w_k)| over repeats, of each algorithm by its own
    step-size rule, all on the same batches."""
    num_tasks, support, query = sizes
    parts = (support, query, support, support)  # D_in, D_o, D_h and the batch of the step size
    directions, step_size = _directions(problem), problem.known(theory.meta_step_size)

    def step(params: dict[str, Array], index: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        *parts_of_episode, measured = take_batches(problem.tasks, index, parts)
        moved = {}
        for name, algorithm, _, _ in _ALGORITHMS:
            beta = step_size(algorithm, task_gradient_norms(params[name], measured))
            direction = directions[name](params[name], Episode(*parts_of_episode))
            moved[name] = params[name] - beta * direction
        return moved, jax.tree.map(problem.gradient_norm, params)

    run_chunk = jax.jit(jax.vmap(lambda params, index: jax.lax.scan(step, params, index)))

    def run_from(
        starts: dict[str, Array], steps: int, repeats: int, generator: np.random.Generator
    ) -> dict[str, np.ndarray]:
        params = {name: jnp.tile(start, (repeats, 1)) for name, start in starts.items()}
        chunks = []
        for _ in range(math.ceil(steps / _CHUNK)):
            shape = (repeats, _CHUNK, num_tasks)
            index = draw_indices(generator, problem.tasks, shape, sum(parts))
            params, norms = run_chunk(params, index)
            chunks.append({name: np.mean(values, axis=0) for name, values in norms.items()})
        return {name: np.concatenate([one[name] for one in chunks]) for name in starts}

    return run_from


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Noise-free resting points over alpha; runs with sampled batches, from afar and from rest."""
    problem = draw_problem(config, seed, 1 / 10)  # the largest alpha that all three theorems allow
    alphas = np.geomspace(problem.alpha / 16, problem.alpha, config.alphas)
    generator = np.random.default_rng(seed)

    def at_rest(alpha: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        there = dataclasses.replace(problem, alpha=alpha)
        places = _rest(there, config.rest_steps)
        return places, jax.tree.map(there.gradient_norm, places)

    report("noise-free resting points", 0, len(config.sizes) + 1)
    places, rest = jax.jit(jax.vmap(at_rest))(alphas)
    settled = {name: found[-1] for name, found in places.items()}
    floors, paths = [], {}
    for index, sizes in enumerate(config.sizes):
        report(f"B, D_in, D_o = {sizes}", index + 1, len(config.sizes) + 1)
        run_from = _sampled_run(problem, sizes)
        if not paths:
            starts = dict.fromkeys(rest, jnp.full(config.dim, config.start))
            paths = run_from(starts, config.steps, config.repeats, generator)
        means = run_from(settled, config.floor_steps, config.repeats, generator)
        floors.append(_floors(problem, means, sizes))
    every = max(1, config.steps // 200)
    return {
        "constants": problem.constants.record(),
        "alphas": alphas.tolist(),
        "rest": {name: norms.tolist() for name, norms in rest.items()},
        "floors": floors,
        "path_steps": list(range(0, len(paths["maml"]), every)),
        "paths": {name: path[::every].tolist() for name, path in paths.items()},
        "iterations": _iterations(problem, paths["maml"], config),
    }


def _floors(problem: Problem, means: dict[str, np.ndarray], sizes: Sizes) -> dict[str, Any]:
    """Mean |grad F| over the last quarter of the runs, beside what the theorems promise."""
    tail = len(means["maml"]) // 4
    measured = {name: float(np.mean(path[-tail:])) for name, path in means.items()}
    floor = partial(problem.known(theory.error_floor), **_batches(sizes))
    predicted = {name: float(floor(algorithm)) for name, algorithm, _, _ in _ALGORITHMS}
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


@style.styled
def plot(records: dict[str, Any]) -> Figure:
    """Resting points over alpha, paths of the sampled runs, floors against what is predicted."""
    figure, (rest, path, floor) = style.new_figure(1, 3)
    alphas, smoothness = np.array(records["alphas"]), records["constants"]["smoothness"]
    lines = [
        Series(label, alphas * smoothness, np.maximum(records["rest"][name], 1e-17), color=color,
               marker="o")
        for name, _, label, color in _ALGORITHMS
    ]  # fmt: skip
    draw(rest, lines, "α L", "‖∇F‖ at rest", log_x=True, log_y=True, title="no sampling noise")
    paths = [
        Series(label, records["path_steps"], records["paths"][name], color=color, line=line)
        for (name, _, label, color), line in zip(_ALGORITHMS, ("-", "-", "-", "--"), strict=True)
    ]
    base = records["floors"][0]["sizes"]
    title = "B, D_in, D_o = " + ", ".join(map(str, base))
    draw(path, paths, "meta-step", "E‖∇F‖", log_y=True, title=title)
    _draw_floors(floor, records)
    style.legend_below(figure, columns=4)
    return figure


def _draw_floors(axes: Any, records: dict[str, Any]) -> None:
    """Measured floors (filled) and predicted ones (hollow), one group for each batch size."""
    for place, (name, _, _, color) in enumerate(_ALGORITHMS):
        x = np.arange(len(records["floors"])) + 0.12 * (place - 1.5)
        measured = [row["measured"][name] for row in records["floors"]]
        predicted = [row["predicted"][name] for row in records["floors"]]
        axes.plot(x, measured, "o", color=color, markersize=6)
        axes.plot(x, predicted, "s", color=color, markerfacecolor="white", markersize=6)
    axes.plot([], [], "ks", markerfacecolor="white", label="predicted floor")
    axes.plot([], [], "ko", label="measured floor")
    labels = [", ".join(map(str, row["sizes"])) for row in records["floors"]]
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axes.set(yscale="log", xlabel="B, D_in, D_o", ylabel="E‖∇F‖", title="floors")
    axes.set_xlim(-0.5, len(labels) - 0.5)


def claims(records: dict[str, Any]) -> list[Claim]:
    """What the theorems promise of each algorithm, against the runs."""
    return [
        _reaches_any("maml", "MAML", records),
        _first_order_floor(records),
        _reaches_any("hfmaml_rule", "HF-MAML with the printed δ", records),
        _reaches_any("hfmaml", "HF-MAML with a small δ", records),
        _floors_are_bounds(records),
        _floors_shrink(records),
        _iteration_counts(records),
    ]


def _reaches_any(name: str, label: str, records: dict[str, Any]) -> Claim:
    worst, start = max(records["rest"][name]), records["paths"]["maml"][0]
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


def _floors_are_bounds(records: dict[str, Any]) -> Claim:
    ratios = [
        row["predicted"][name] / row["measured"][name]
        for row in records["floors"]
        for name, _, _, _ in _ALGORITHMS
    ]
    return Claim(
        "E‖∇F‖ comes below the floors of the theorems",
        "Fallah et al., the three theorems",
        "mean ‖∇F‖ over the last quarter of runs with the printed step size; holds if below every floor",
        verdict_of(min(ratios) >= 1),
        f"the floors are {from_to(ratios, '.0f')} times what was measured",
    )


def _floors_shrink(records: dict[str, Any]) -> Claim:
    """Compare settings whose batches are at least as large with those they enlarge."""
    rows = [(row["sizes"], row["measured"]["maml"]) for row in records["floors"]]
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


def _iteration_counts(records: dict[str, Any]) -> Claim:
    rows = [row for row in records["iterations"] if row["reached"] is not None]
    ratios = [row["bound"] / max(row["reached"], 1) for row in rows]
    text = "E‖∇F‖ <= ε within a constant times Δ (L + ρα(σ + ε)) / ε² meta-steps"
    test = (
        "first meta-step at which the base run of MAML is below ε, at ε = 1/2 ... 1/32 of the start"
    )
    source = "Fallah et al., theorem for MAML; Ashtekar (14) for the constant 1600"
    if not rows or math.isinf(min(ratios)):
        return Claim(
            text, source, test, "not tested", "no ε was reached in the steps of this scale"
        )
    reached = f"{len(rows)} of {len(records['iterations'])} ε reached"
    evidence = f"{reached}; bound / measured from {from_to(ratios)}"
    return Claim(text, source, test, verdict_of(min(ratios) >= 1), evidence)


EXPERIMENT = Experiment(
    name="fallah-fosp",
    title="Which algorithms reach a stationary point of F, and the floors of those that do not",
    paper="fallah2020",
    quick=Config(),
    paper_scale=Config(
        tasks=20,
        points=50,
        dim=3,
        alphas=9,
        rest_steps=1000,
        sizes=(
            (20, 20, 20),
            (80, 20, 20),
            (20, 5, 20),
            (20, 80, 20),
            (20, 20, 5),
            (20, 20, 80),
        ),
        steps=1500,
        floor_steps=1500,
    ),
    run=run,
    plot=plot,
    claims=claims,
)
