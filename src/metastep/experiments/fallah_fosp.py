"""Fallah et al.: do MAML, FO-MAML and HF-MAML reach a stationary point of F, and if not, how near do they come?"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from metastep import theory
from metastep._types import Batch, Episode, MetaParams
from metastep.adapt import GradientAdapter
from metastep.experiments.core import (
    Claim,
    Experiment,
    Report,
    log_slope,
    verdict_of,
    verdict_of_cases,
)
from metastep.experiments.logcosh import (
    OBJECTIVE,
    Constants,
    constants,
    draw_indices,
    draw_tasks,
    gradient_norm,
    take_batches,
    task_loss,
)
from metastep.metagrad import Exact, FirstOrder, HessianFree
from metastep.metagrad.through import hessian_product
from metastep.report import style
from metastep.report.lines import Series, draw

Direction = Callable[[Array, Episode], Array]

# (name in records, algorithm of the theory, label, colour)
_ALGORITHMS = (
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
    sizes: tuple[tuple[int, int, int], ...] = ((20, 10, 10), (40, 20, 20))
    steps: int = 500
    floor_steps: int = 300
    repeats: int = 8
    start: float = 3.0


def _directions(alpha: float | Array, hessian_lipschitz: float) -> dict[str, Direction]:
    """(w, episode) -> meta-gradient of one task, for each algorithm."""
    adapter = GradientAdapter(steps=1)

    def of_rule(rule: Any) -> Direction:
        def direction(params: Array, episode: Episode) -> Array:
            return rule(OBJECTIVE, adapter, lambda _: alpha, MetaParams(params), episode)[1].params

        return direction

    first_order = of_rule(FirstOrder())

    def printed(params: Array, episode: Episode) -> Array:
        outer = first_order(params, episode)
        delta = theory.hessian_free_delta(
            jnp.linalg.norm(outer), alpha=alpha, hessian_lipschitz=hessian_lipschitz
        )
        sample = episode.support if episode.curvature is None else episode.curvature
        return outer - alpha * hessian_product(OBJECTIVE, params, sample, outer, delta)

    return {
        "maml": of_rule(Exact()),
        "fomaml": first_order,
        "hfmaml_rule": printed,
        "hfmaml": of_rule(HessianFree(hessian_lipschitz)),
    }


def _rest(tasks: Batch, alpha: Array, known: Constants, steps: int) -> dict[str, Array]:
    """Where each algorithm comes to rest without sampling noise, (dim,)."""
    episodes = Episode(tasks, tasks)
    places = {}
    for name, direction in _directions(alpha, known.hessian_lipschitz).items():

        def step(_: int, w: Array, direction: Direction = direction) -> Array:
            mean = jnp.mean(jax.vmap(direction, (None, 0))(w, episodes), axis=0)
            return w - mean / known.smoothness

        places[name] = jax.lax.fori_loop(0, steps, step, jnp.zeros(tasks.x.shape[-1]))
    return places


def _sampled_run(tasks: Batch, known: Constants, alpha: float, sizes: tuple[int, int, int]):
    """(params, indices) -> params, |grad F(w_k)|: each algorithm with its own step-size rule, all on
    the same batches; params and indices have the repeats in front."""
    _, support, query = sizes
    parts = (support, query, support, support)  # D_in, D_o, D_h and the batch of the step size
    directions = _directions(alpha, known.hessian_lipschitz)
    step_size = known.within(theory.meta_step_size, alpha)

    def move(w: Array, name: str, algorithm: Any, episodes: Episode, measured: Batch) -> Array:
        gradients = jax.vmap(jax.grad(task_loss), (None, 0))(w, measured)
        beta = step_size(algorithm, jnp.linalg.norm(gradients, axis=-1))
        return w - beta * jnp.mean(jax.vmap(directions[name], (None, 0))(w, episodes), axis=0)

    def step(params: dict[str, Array], index: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        *episode, measured = take_batches(tasks, index, parts)
        norms = {name: gradient_norm(w, tasks, alpha) for name, w in params.items()}
        moved = {
            name: move(params[name], name, algorithm, Episode(*episode), measured)
            for name, algorithm, _, _ in _ALGORITHMS
        }
        return moved, norms

    run_chunk = jax.jit(jax.vmap(lambda params, index: jax.lax.scan(step, params, index)))

    def run_from(
        starts: dict[str, Array], steps: int, repeats: int, generator: np.random.Generator
    ) -> dict[str, np.ndarray]:
        params = {name: jnp.tile(start, (repeats, 1)) for name, start in starts.items()}
        means: dict[str, list[np.ndarray]] = {name: [] for name in params}
        shape = (repeats, _CHUNK, sizes[0])
        for _ in range(math.ceil(steps / _CHUNK)):
            index = draw_indices(generator, tasks, shape, sum(parts))
            params, norms = run_chunk(params, index)
            for name, values in norms.items():
                means[name].append(np.mean(values, axis=0))
        return {name: np.concatenate(values) for name, values in means.items()}

    return run_from


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Noise-free resting points over alpha; runs with sampled batches, from afar and from rest."""
    tasks = draw_tasks(
        jax.random.key(seed), tasks=config.tasks, points=config.points, dim=config.dim
    )
    known, generator = constants(tasks), np.random.default_rng(seed)
    largest = 1 / (10 * known.smoothness)  # allowed by all three theorems
    alphas = np.geomspace(largest / 16, largest, config.alphas)
    report("noise-free resting points", 0, len(config.sizes) + 1)
    rest = jax.jit(jax.vmap(lambda a: _rest(tasks, a, known, config.rest_steps)))(alphas)
    norm = jax.jit(jax.vmap(lambda w, a: gradient_norm(w, tasks, a)))
    start = jnp.full(config.dim, config.start)
    floors, paths = [], {}
    for index, sizes in enumerate(config.sizes):
        report(f"B, D_in, D_o = {sizes}", index + 1, len(config.sizes) + 1)
        run_from = _sampled_run(tasks, known, largest, sizes)
        if not paths:
            starts = dict.fromkeys(rest, start)
            paths = run_from(starts, config.steps, config.repeats, generator)
        settled = {name: places[-1] for name, places in rest.items()}
        means = run_from(settled, config.floor_steps, config.repeats, generator)
        floors.append(_floors(means, sizes, known, largest))
    every = max(1, config.steps // 200)
    return {
        "constants": known.record(),
        "alphas": alphas.tolist(),
        "rest": {name: norm(places, alphas).tolist() for name, places in rest.items()},
        "floors": floors,
        "path_steps": list(range(0, len(paths["maml"]), every)),
        "paths": {name: path[::every].tolist() for name, path in paths.items()},
        "iterations": _iterations(tasks, paths["maml"], known, largest, config),
    }


def _floors(
    means: dict, sizes: tuple[int, int, int], known: Constants, alpha: float
) -> dict[str, Any]:
    """Mean |grad F| over the last quarter of the runs, beside what the theorems promise."""
    tail = len(means["maml"]) // 4
    measured = {name: float(np.mean(path[-tail:])) for name, path in means.items()}
    floor = known.within(theory.error_floor, alpha)
    predicted = {
        name: float(floor(algorithm, **_batches(sizes))) for name, algorithm, _, _ in _ALGORITHMS
    }
    return {"sizes": list(sizes), "measured": measured, "predicted": predicted}


def _batches(sizes: tuple[int, int, int]) -> dict[str, float]:
    """B, D_in and D_o as the theory names them."""
    names = ("num_tasks", "support_size", "query_size")
    return {name: float(size) for name, size in zip(names, sizes, strict=True)}


def _iterations(
    tasks: Batch, path: np.ndarray, known: Constants, alpha: float, config: Config
) -> list[dict[str, float | None]]:
    """Meta-steps after which MAML first has E|grad F| <= epsilon, beside the bound; the bound's Delta
    is F(w_0), as F >= 0."""
    start = jnp.full(tasks.x.shape[-1], config.start)
    gap = float(theory.meta_objective(task_loss, start, tasks, alpha))
    promised = known.within(theory.iteration_bound, alpha)
    rows = []
    for halvings in range(1, 6):
        epsilon = float(path[0]) / 2**halvings
        bound = promised("maml", epsilon=epsilon, initial_gap=gap, **_batches(config.sizes[0]))
        below = np.flatnonzero(path <= epsilon)
        reached = float(below[0]) if below.size else None
        rows.append({"epsilon": epsilon, "reached": reached, "bound": float(bound)})
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
        f"the floors are {min(ratios):.0f} to {max(ratios):.0f} times what was measured",
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
    evidence = f"{len(rows)} of {len(records['iterations'])} ε reached; bound / measured from "
    return Claim(
        text, source, test, verdict_of(min(ratios) >= 1),
        f"{evidence}{min(ratios):.3g} to {max(ratios):.3g}",
    )  # fmt: skip


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
