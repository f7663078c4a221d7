"""Nothing given against the whole grid: is metastep without a learning rate as good as the best (alpha, beta) cell?

    python benchmarks/zero_tuning.py [--families sinusoid quadratic ...] [--grid coarse|fine] [--budgets short|long]
    python benchmarks/zero_tuning.py --part none      # only print the table and draw the figure again

For every family, budget and seed: all cells of a grid of fixed adaptation rates and constant meta rates, outer Adam
and outer SGD, and metastep as it is with no rate given; all from the same parameters and on the same tasks, judged on
the same held-out tasks after adaptation. A cell is judged at each budget on its way, ours is run anew for each budget
because its meta rate falls to 0 at the end of a run. Every family adds its rows to zero_tuning.json when it is done;
`--part ours` and `--part grid` renew one side of the comparison and leave the other.

A fine grid is 9 adaptation rates x 4 meta rates x 2 optimisers; a coarse one has 5 x 4 (Adam) and 5 x 2 (SGD) cells,
and on most images none of SGD, which was far behind there.
Long budgets go to 60,000 meta-steps on sinusoids and 10,000 on images; the latter take days on two cores. A part of
them takes an hour or two: `--budgets long --meta-steps 500 2000 --alphas 0.316 1 3.16 --meta-lrs 1e-3 3e-3`.
Omniglot needs METASTEP_DATA.
"""

import dataclasses
import itertools
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import tyro

from metastep._records import read_json, write_bytes
from metastep.adapt import HALVINGS
from metastep.report.style import BLUE, GREY, VERMILLION, new_figure, render
from metastep.tasks import TaskSplits
from metastep.train import TrainConfig, build_learner, choose_rates, load_tasks, sweep
from metastep.train.config import OptimizerName, RateName
from metastep.train.evaluate import compile_judge
from metastep.train.learner import Learner, mean_alpha
from metastep.train.problem import filled
from metastep.train.rehearse import rehearsal_length
from metastep.train.state import HEALTHY, TrainState, initial_state, next_window
from metastep.train.step import compile_advance
from sensors import readings, write_table
from zero_tuning_families import FAMILIES, Family

CELL: dict[str, Any] = {"rate": "fixed", "schedule": "constant", "clip_tasks": "off"}
"""What a cell of the grid is beside its two rates and its optimiser."""


@dataclasses.dataclass
class Options:
    """Compare metastep with nothing given to the best and the median cell of a grid."""

    families: tuple[str, ...] = tuple(FAMILIES)
    """Which ones."""
    grid: Literal["coarse", "fine"] = "coarse"
    """How many cells."""
    budgets: Literal["short", "long"] = "short"
    """How many meta-steps: the short or the long budgets of the family."""
    meta_steps: tuple[int, ...] = ()
    """How many in their place. They replace what the JSON keeps under the name of --budgets."""
    alphas: tuple[float, ...] = ()
    """Adaptation rates of the grid. Default: by --grid."""
    meta_lrs: tuple[float, ...] = ()
    """Meta rates of the grid, of Adam alone. Default: by --grid, of Adam and SGD."""
    seeds: tuple[int, ...] = ()
    """Default: 0 1 2; for images 0."""
    part: Literal["both", "ours", "grid", "none"] = "both"
    """Which side of the comparison to run; the other is read from the JSON that is there."""
    optimizer: OptimizerName = "auto"
    """Outer optimiser of our side; its meta rate stays auto. auto: the default."""
    start: float | None = None
    """Where alpha starts on our side. Default: where it is measured to."""
    rate: RateName = "auto"
    """What becomes of alpha on our side. auto: the default."""
    clip_tasks: float | Literal["auto", "off"] = "auto"
    """How much one task may weigh on our side. auto: the default."""
    out: Path = Path("benchmarks/results")
    """Where the JSON goes."""
    figures: Path = Path("docs/figures")
    """Where the figure goes."""


Grids = dict[str, tuple[list[float], list[float]]]
"""Adaptation rates and meta rates of each outer optimiser."""


def grids(family: Family, options: Options) -> Grids:
    """Those asked for, or else by the fineness that is."""
    is_fine = options.grid == "fine"
    alphas = list(options.alphas) or np.geomspace(*family.alphas, 9 if is_fine else 5).tolist()
    if options.meta_lrs:
        return {"adam": (alphas, list(options.meta_lrs))}
    found = {"adam": (alphas, [1e-3, 3e-3, 1e-2, 3e-2])}
    sgd = [1e-3, 1e-2, 1e-1, 1.0] if is_fine else list(family.coarse_sgd)
    return found | ({"sgd": (alphas, sgd)} if sgd else {})


def load(family: Family, seed: int, folder: Path, **given: Any):
    """The tasks of a family and the options metastep fills in when no rate is given, beside those of `given`."""
    options = dict(family.options)
    if options["tasks"] == "SENSORS":
        count = options.pop("sensors")
        table = folder / f"sensors{count}.csv"
        options |= {"tasks": str(table), "task_column": "sensor", "target_columns": ("reading",)}
        if not table.exists():
            rng = np.random.default_rng(7)
            write_table(table, {f"s{i:03d}": readings(rng, 20) for i in range(count)})
    config = TrainConfig(**options, seed=seed, **given)
    task_set = load_tasks(config)
    config = filled(config, task_set.description)
    return config, task_set


def nothing_given(
    family: Family, budgets, seed: int, folder: Path, start: float | None = None, **given: Any
) -> list[dict]:
    """metastep as `metastep train TASKS --iterations BUDGET` runs it, guard and all, once for each budget."""
    config, task_set = load(family, seed, folder, **given)
    if start is not None:  # what becomes of it is settled: `--alpha START` would stay
        config = dataclasses.replace(config, alpha=start)
    rows = []
    for budget in budgets:
        now = dataclasses.replace(config, iterations=budget, log_every=max(1, budget // 200))
        began = time.monotonic()
        rates = choose_rates(now, task_set)
        chosen = time.monotonic()
        alpha, meta_lr = rates["alpha_chosen"], rates["meta_lr"]
        learner = build_learner(now, task_set.description, alpha, meta_lr)
        state, test_key = trained(learner, task_set.splits, now)
        rehearsals = len(rates.get("rehearsals", []))
        rows.append(
            {
                "seed": seed,
                "budget": budget,
                "alpha_measured": rates.get("alpha"),
                "alpha_at_start": alpha,
                "alpha": float(mean_alpha(learner, state.meta, state.rate_state)),
                "incidents": int(state.incidents.count),
                "rehearsed_steps": rehearsals * rehearsal_length(now),
                "choosing_seconds": chosen - began,
                "seconds": time.monotonic() - chosen,
            }
            | judged(learner, task_set.splits, state, test_key, family.test_tasks)
        )
    return rows


def trained(learner: Learner, splits: TaskSplits, config: TrainConfig):
    """The last state of a run with the parameters and tasks of the grid's cells, and the key of the test tasks.

    Its state is anchored every `log_every` meta-steps, as the loop of `metastep train` does.
    """
    start, training, testing = jax.random.split(jax.random.key(config.seed), 3)
    state = initial_state(learner, start, config.iterations)
    advance = compile_advance(learner)
    while int(state.iteration) < config.iterations and int(state.failure) == HEALTHY:
        until = min(int(state.iteration) + config.log_every, config.iterations)
        state = next_window(advance(splits.train, training, state, jnp.asarray(until)))
    return state, testing


def judged(learner: Learner, splits: TaskSplits, state: TrainState, key, num_tasks: int) -> dict:
    """Loss and accuracy on the held-out tasks that the grid's cells are judged by."""
    if int(state.failure) != HEALTHY:
        return {"loss": None}
    alpha = learner.rate.alpha(state.meta, state.rate_state)

    def on_tasks(halvings: int):
        judge = compile_judge(learner, learner.adapter.steps, num_tasks, halvings=halvings)
        return judge(state.meta.params, alpha, splits.test, key)

    tasks, plain = on_tasks(HALVINGS), on_tasks(0)
    loss, metric = (float(jnp.mean(values[:, -1])) for values in (tasks.losses, tasks.metrics))
    unmended = _judgement(float(jnp.mean(plain.losses[:, -1])), math.nan)["loss"]
    halved = int(jnp.count_nonzero(tasks.halvings[:, -1]))
    return _judgement(loss, metric) | {"plain_loss": unmended, "halved": halved}


def whole_grid(family: Family, budgets, seeds, rates: Grids, folder: Path) -> list[dict]:
    """Every cell of every optimiser at every budget."""
    rows = []
    for optimizer, (alphas, meta_lrs) in rates.items():
        config, task_set = load(family, 0, folder)
        config = dataclasses.replace(config, optimizer=optimizer, **CELL)
        learner = build_learner(config, task_set.description, alphas[0], meta_lrs[0])
        result = sweep(
            learner, task_set.splits, alphas, meta_lrs, seeds, milestones=budgets,
            test_tasks=family.test_tasks, cells_at_once=1,
        )  # fmt: skip
        for index in np.ndindex(result.test_loss.shape):
            m, a, b, s = index
            row = {"optimizer": optimizer, "alpha": alphas[a], "meta_lr": meta_lrs[b]}
            row |= {"seed": seeds[s], "budget": budgets[m]}
            loss, metric = float(result.test_loss[index]), float(result.test_metric[index])
            halved = round(float(result.halved[index]) * family.test_tasks)
            rows.append(row | _judgement(loss, metric) | {"halved": halved})
    return rows


def _judgement(loss: float, metric: float) -> dict:
    finite = {"loss": float(f"{loss:.6g}") if np.isfinite(loss) else None}
    return finite | ({"accuracy": float(f"{metric:.6g}")} if np.isfinite(metric) else {})


def summaries(record: dict[str, Any]) -> list[dict]:
    """A row for every family and budget of which both sides are known, in the order of the families."""
    return [
        row
        for name in FAMILIES
        for found in (record.get(name, {}).get(budgets, {}) for budgets in ("short", "long"))
        for row in (summarise(name, found) if "ours" in found and "grid" in found else [])
    ]


def summarise(name: str, found: dict[str, Any]) -> list[dict]:
    """Ours against the best and the median cell at each budget; the best is that with the lowest mean over seeds."""
    rows = []
    seeds = sorted({row["seed"] for row in found["ours"]} & {row["seed"] for row in found["grid"]})
    for budget in sorted({row["budget"] for row in found["ours"]}):
        cells: dict[tuple, dict[int, float]] = {}
        for row in found["grid"]:
            if row["budget"] == budget and row["seed"] in seeds:
                cell = (row["optimizer"], row["alpha"], row["meta_lr"])
                cells.setdefault(cell, {})[row["seed"]] = _loss(row)
        means = {cell: float(np.mean(list(losses.values()))) for cell, losses in cells.items()}
        best = min(means, key=means.__getitem__)
        ours = {row["seed"]: row for row in found["ours"] if row["budget"] == budget}
        mine = np.array([_loss(ours[seed]) for seed in seeds])
        ratios = mine / np.array([cells[best][seed] for seed in seeds])
        rows.append(
            {
                "family": name, "budget": budget, "ours": float(mine.mean()), "best": means[best],
                "best_cell": list(best), "on_border": on_border(best, list(means)),
                "median": float(np.median(list(means.values()))), "cells": len(means),
                "ours_over_best": float(ratios.mean()), "ci95_over_seeds": interval(ratios),
                "seeds": len(seeds),
                "start": float(np.exp(np.mean([np.log(row["alpha_at_start"]) for row in ours.values()]))),
                "plain": float(np.mean([_loss({"loss": row.get("plain_loss")}) for row in ours.values()])),
                "halved": _share_halved(list(ours.values()), FAMILIES[name].test_tasks),
                "rehearsed": float(np.mean([row.get("rehearsed_steps", 0) for row in ours.values()])) / budget,
            }
        )  # fmt: skip
    return rows


def _share_halved(rows: list[dict], test_tasks: int) -> float | None:
    """Share of held-out tasks that adapted at lower rates; None for rows from before that was done."""
    if not all("halved" in row for row in rows):
        return None
    return float(np.mean([row["halved"] for row in rows])) / test_tasks


def _loss(row: dict) -> float:
    return np.inf if row["loss"] is None else row["loss"]


def interval(ratios: np.ndarray) -> float | None:
    """Half-width of the 95 % interval of the mean (Student's t); None for a single seed."""
    if len(ratios) < 2:
        return None
    quantile = scipy.stats.t.ppf(0.975, len(ratios) - 1)
    return float(quantile * ratios.std(ddof=1) / len(ratios) ** 0.5)


def on_border(best: tuple, cells: list[tuple]) -> bool:
    """Whether the best cell has no neighbour on one side, so that a wider grid might hold a better one."""
    mine = [cell for cell in cells if cell[0] == best[0]]
    return any(best[i] in (min(c[i] for c in mine), max(c[i] for c in mine)) for i in (1, 2))


def draw(rows: list[dict], out: Path) -> None:
    """A line per family and budget: ours and the median cell, as multiples of the best cell, 12 at most."""
    names = list(dict.fromkeys(row["family"] for row in rows))
    places, labels, y = [], [], 0.0
    figure, (axes,) = new_figure(panel=(8.4, 0.19 * len(rows) + 0.12 * len(names) + 1.4))
    for name in reversed(names):
        mine = [row for row in reversed(rows) if row["family"] == name]
        places.append(y + (len(mine) - 1) / 2)
        labels.append(name)
        for row in mine:
            median = min(row["median"] / row["best"], 12)
            axes.plot([1, median], [y, y], color="#dddddd", linewidth=1, zorder=1)
            axes.plot(median, y, "|", color=GREY, markersize=9)
            axes.plot(min(row["ours_over_best"], 12), y, "o", color=BLUE)
            axes.annotate(
                f"{row['budget']:,}", (0, y), (-6, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="center", fontsize=7,
            )  # fmt: skip
            y += 1
        y += 0.8
    axes.axvline(1, color=VERMILLION, linewidth=1.2)
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", pad=40, length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(-1, y - 0.3)
    axes.set_xscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("held-out loss after adaptation, over that of the grid's best cell")
    axes.set_title("nothing given (dots), median cell (bars), by meta-steps")
    write_bytes(out / "zero-tuning.png", render(figure, "png"))


def show(rows: list[dict]) -> None:
    """Print the table, in Markdown."""
    print(
        "| family | meta-steps | nothing given | best cell | ratio | median cell | the best cell is | our start "
        "| cells | seeds | rehearsed | halved | plain steps |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        optimizer, alpha, meta_lr = row["best_cell"]
        spread = "" if row["ci95_over_seeds"] is None else f" ± {row['ci95_over_seeds']:.2f}"
        halved = "" if row["halved"] is None else f"{row['halved']:.1%}"
        plain = f"{row['plain']:.4g}" if row["halved"] else ""
        border = ", on the border" if row["on_border"] else ""
        print(
            f"| {row['family']} | {row['budget']:,d} | {row['ours']:.4g} | {row['best']:.4g} "
            f"| **{row['ours_over_best']:.2f}**{spread} | {row['median']:.4g} "
            f"| {optimizer}, alpha {alpha:.3g}, beta {meta_lr:g}{border} | {row['start']:.3g} | {row['cells']} "
            f"| {row['seeds']} "
            f"| {row['rehearsed']:.0%} | {halved} | {plain} |"
        )


def renew(options: Options, name: str, found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The record of one family with the asked part run anew."""
    family = FAMILIES[name]
    usual = family.budgets if options.budgets == "short" else family.long_budgets
    budgets = options.meta_steps or usual
    seeds = list(options.seeds or ((0,) if "omniglot" in name else (0, 1, 2)))
    began = time.monotonic()
    if options.part in ("both", "ours"):
        given = {name: getattr(options, name) for name in ("optimizer", "clip_tasks", "rate")}
        ours = [
            row
            for seed in seeds
            for row in nothing_given(family, budgets, seed, folder, options.start, **given)
        ]
        found = found | {"ours": ours, "ours_seconds": time.monotonic() - began}
    began = time.monotonic()
    if options.part in ("both", "grid"):
        cells = whole_grid(family, budgets, seeds, grids(family, options), folder)
        found = found | {"grid": cells, "grid_seconds": time.monotonic() - began}
    jax.clear_caches()
    return found


_AXES = ("budget", "alpha", "meta_lr", "seed")
_FOUND = ("loss", "accuracy", "halved")


def read_record(path: Path) -> dict[str, Any]:
    """Family -> budgets -> both sides, each a list of rows."""
    record: dict[str, Any] = read_json(path) if path.exists() else {}
    for found in (found for family in record.values() for found in family.values()):
        if "grid" in found:
            found["grid"] = [row for grid in found["grid"] for row in _rows_of(grid)]
    return record


def write_record(path: Path, record: dict[str, Any]) -> None:
    """As JSON in one line; of the thousands of cells only what was found, in the order of the product of axes."""
    kept = {
        name: {
            budgets: found | ({"grid": _products(found["grid"])} if "grid" in found else {})
            for budgets, found in family.items()
        }
        for name, family in record.items()
    }
    write_bytes(path, json.dumps(kept, separators=(",", ":"), allow_nan=False).encode())


def _products(rows: list[dict]) -> list[dict]:
    """For each optimiser the values along the axes, and a number for each cell."""
    grids = []
    for optimizer in dict.fromkeys(row["optimizer"] for row in rows):
        cells = {
            tuple(row[name] for name in _AXES): row for row in rows if row["optimizer"] == optimizer
        }
        axes = [sorted(set(values)) for values in zip(*cells, strict=True)]
        columns = {
            name: [cells[cell].get(name) for cell in itertools.product(*axes)] for name in _FOUND
        }
        known = {
            name: column
            for name, column in columns.items()
            if name == "loss" or any(value is not None for value in column)
        }
        grids.append({"optimizer": optimizer, **dict(zip(_AXES, axes, strict=True)), **known})
    return grids


def _rows_of(grid: dict[str, Any]) -> list[dict]:
    cells = itertools.product(*(grid[name] for name in _AXES))
    names = [name for name in _FOUND if name in grid]
    numbers = zip(*(grid[name] for name in names), strict=True)
    return [
        {"optimizer": grid["optimizer"]}
        | dict(zip(_AXES, cell, strict=True))
        | dict(zip(names, row, strict=True))
        for cell, row in zip(cells, numbers, strict=True)
    ]


def main() -> None:
    """Run family after family."""
    options = tyro.cli(Options)
    path = options.out / "zero_tuning.json"
    record = read_record(path)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.families if options.part != "none" else ():
            family = record.setdefault(name, {})
            found = family.get(options.budgets, {})
            family[options.budgets] = renew(options, name, found, Path(folder))
            write_record(path, record)
            show(summaries({name: family}))
    show(summaries(record))
    draw(summaries(record), options.figures)


if __name__ == "__main__":
    main()
