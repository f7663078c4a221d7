"""Nothing given against the whole grid: is metastep without a learning rate as good as the best (alpha, beta) cell?

    python benchmarks/zero_tuning.py [--scale reduced|full] [--families sinusoid quadratic ...]
    python benchmarks/zero_tuning.py --draw-only

For every family, budget and seed: all cells of a grid of fixed adaptation rates and constant meta rates, outer Adam
and outer SGD, and metastep as it is with no rate given; all from the same parameters and on the same tasks, judged on
the same held-out tasks after adaptation. A cell is judged at each budget on its way, ours is run anew for each budget
because its meta rate falls to 0 at the end of a run. Every family adds its rows to zero_tuning.json when it is done.

`full` is 9 adaptation rates x 4 meta rates x 2 optimisers x 3 seeds, up to 60,000 meta-steps on sinusoids: days on
two cores. `reduced` has 5 x 4 (Adam) and 5 x 2 (SGD) cells, 2 seeds (1 for images) and budgets that end sooner.
Omniglot needs METASTEP_DATA.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from metastep._records import read_json, write_json
from metastep.rates import default_meta_lr
from metastep.report.style import BLUE, GREY, VERMILLION, new_figure, save_figure
from metastep.tasks import MixedLinear, Quadratic, Sinusoid, TaskSplits
from metastep.train import TrainConfig, build_learner, load_tasks, measure_rates, sweep
from metastep.train.config import fill_defaults
from metastep.train.problem import model_name
from sensors import readings, write_table

_DIM = 20


def ill_conditioned(x):
    """Features whose variances span three orders of magnitude."""
    return x * jnp.logspace(0, -1.5, _DIM)


@dataclasses.dataclass(frozen=True)
class Family:
    """Tasks, options, the grid that brackets their best cell, and three budgets."""

    options: dict[str, Any]
    alphas: tuple[float, float]
    budgets: tuple[int, int, int]
    full_budgets: tuple[int, int, int]
    replace: Any = None
    test_tasks: int = 1_000


_SINE = (1e-3, 1e-1)
_LONG = (6_000, 20_000, 60_000)
FAMILIES: dict[str, Family] = {
    "sinusoid": Family({"tasks": "sinusoid"}, _SINE, (300, 1_000, 3_000), _LONG),
    "sinusoid, 5 inner steps": Family(
        {"tasks": "sinusoid", "steps": 5}, _SINE, (200, 600, 2_000), _LONG
    ),
    "noisy sinusoid": Family(
        {"tasks": "sinusoid"}, _SINE, (300, 1_000, 3_000), _LONG, Sinusoid(noise=1.0)
    ),
    "quadratic": Family(
        {"tasks": "quadratic"}, _SINE, (300, 1_000, 3_000), _LONG, Quadratic(shots=10, queries=10)
    ),
    "ill-conditioned linear": Family(
        {"tasks": "linear", "model": "linear"}, (1e-2, 1), (300, 1_000, 3_000), (1_000, 5_000, 20_000),
        MixedLinear(centre=jnp.ones(_DIM), features=ill_conditioned, shots=10, queries=25),
    ),
    "sensors": Family({"tasks": "SENSORS"}, (1e-2, 1), (200, 600, 2_000), (2_000, 6_000, 20_000)),
    "omniglot 5-way ANIL": Family(
        {"tasks": "omniglot", "ways": 5, "algorithm": "anil"}, (0.1, 10), (30, 100, 300),
        (500, 2_000, 10_000), test_tasks=300,
    ),
    "omniglot 5-way MAML": Family(
        {"tasks": "omniglot", "ways": 5}, (0.1, 10), (15, 50, 150), (500, 2_000, 10_000), test_tasks=300
    ),
    "omniglot 20-way ANIL": Family(
        {"tasks": "omniglot", "ways": 20, "algorithm": "anil"}, (0.1, 10), (15, 50, 150),
        (500, 2_000, 10_000), test_tasks=100,
    ),
    "omniglot 20-way MAML": Family(
        {"tasks": "omniglot", "ways": 20}, (0.1, 10), (10, 30, 100), (500, 2_000, 10_000), test_tasks=100
    ),
}  # fmt: skip


@dataclasses.dataclass
class Options:
    """Compare metastep with nothing given to the best and the median cell of a grid."""

    scale: Literal["reduced", "full"] = "reduced"
    """How large the grid, how many seeds, how long the budgets."""
    families: tuple[str, ...] = tuple(FAMILIES)
    """Which ones."""
    seeds: tuple[int, ...] = ()
    """Default: 0 1 2 for full, 0 1 for reduced (0 for images)."""
    draw_only: bool = False
    """Only draw the figure and print the table from the JSON that is there."""
    out: Path = Path("benchmarks/results")
    """Where JSON and figure go."""


def grids(family: Family, scale: str) -> dict[str, tuple[list[float], list[float]]]:
    """Adaptation rates and meta rates of each outer optimiser."""
    count = 9 if scale == "full" else 5
    alphas = np.geomspace(*family.alphas, count).tolist()
    sgd = [1e-3, 1e-2, 1e-1, 1.0] if scale == "full" else [1e-2, 1e-1]
    return {"adam": (alphas, [1e-3, 3e-3, 1e-2, 3e-2]), "sgd": (alphas, sgd)}


def load(family: Family, seed: int, folder: Path):
    """The tasks of a family and the options metastep fills in when no rate is given."""
    options = dict(family.options)
    if options["tasks"] == "SENSORS":
        options |= {
            "tasks": str(folder / "sensors.csv"),
            "task_column": "sensor",
            "target_columns": ("reading",),
        }
        if not (folder / "sensors.csv").exists():
            rng = np.random.default_rng(7)
            write_table(
                folder / "sensors.csv", {f"s{i:03d}": readings(rng, 20) for i in range(200)}
            )
    config = TrainConfig(**options, seed=seed)
    task_set = load_tasks(config)
    config = fill_defaults(config, task_set.description, model_name(config, task_set.description))
    if family.replace is not None:
        splits = TaskSplits.same(family.replace, family.options["tasks"])
        shape = {"input_shape": list(family.replace.input_shape)}
        description = task_set.description | shape
        task_set = dataclasses.replace(task_set, splits=splits, description=description)
    return config, task_set


def nothing_given(family: Family, budgets, seed: int, folder: Path) -> list[dict]:
    """metastep as `metastep train TASKS --iterations BUDGET` runs it, once for each budget."""
    config, task_set = load(family, seed, folder)
    began = time.monotonic()
    alpha = measure_rates(config, task_set).alpha_chosen
    measuring = time.monotonic() - began
    meta_lr, _ = default_meta_lr(config.optimizer)
    learner = build_learner(config, task_set.description, alpha, meta_lr)
    rows = []
    for budget in budgets:
        result = sweep(
            learner, task_set.splits, None, [meta_lr], [seed], milestones=[budget],
            test_tasks=family.test_tasks,
        )  # fmt: skip
        row = {
            "seed": seed,
            "budget": budget,
            "alpha_at_start": alpha,
            "measuring_seconds": measuring,
        }
        row |= {"alpha": float(result.alpha[0, 0, 0, 0]), "seconds": result.seconds}
        rows.append(row | _judged(result, (0, 0, 0, 0)))
    return rows


def whole_grid(family: Family, budgets, seeds, scale: str, folder: Path) -> list[dict]:
    """Every cell of every optimiser at every budget."""
    rows = []
    for optimizer, (alphas, meta_lrs) in grids(family, scale).items():
        config, task_set = load(family, 0, folder)
        config = dataclasses.replace(config, rate="fixed", optimizer=optimizer, schedule="constant")
        learner = build_learner(config, task_set.description, alphas[0], meta_lrs[0])
        result = sweep(
            learner, task_set.splits, alphas, meta_lrs, seeds, milestones=budgets,
            test_tasks=family.test_tasks, cells_at_once=1,
        )  # fmt: skip
        for index in np.ndindex(result.test_loss.shape):
            m, a, b, s = index
            row = {"optimizer": optimizer, "alpha": alphas[a], "meta_lr": meta_lrs[b]}
            row |= {"seed": seeds[s], "budget": budgets[m]}
            rows.append(row | _judged(result, index))
    return rows


def _judged(result, index) -> dict:
    loss, metric = float(result.test_loss[index]), float(result.test_metric[index])
    finite = {"loss": loss if np.isfinite(loss) else None}
    return finite | ({"accuracy": metric} if np.isfinite(metric) else {})


def summarise(name: str, ours: list[dict], grid: list[dict]) -> list[dict]:
    """Ours against the best and the median cell at each budget; the best is that with the lowest mean over seeds."""
    summary = []
    for budget in sorted({row["budget"] for row in ours}):
        cells: dict[tuple, list[float]] = {}
        for row in grid:
            if row["budget"] == budget:
                loss = np.inf if row["loss"] is None else row["loss"]
                cells.setdefault((row["optimizer"], row["alpha"], row["meta_lr"]), []).append(loss)
        means = {cell: float(np.mean(losses)) for cell, losses in cells.items()}
        best = min(means, key=means.__getitem__)
        mine = np.array([row["loss"] or np.inf for row in ours if row["budget"] == budget])
        ratios = mine / np.array(cells[best])
        spread = 1.96 * ratios.std(ddof=1) / len(ratios) ** 0.5 if len(ratios) > 1 else None
        summary.append(
            {
                "family": name, "budget": budget, "ours": float(mine.mean()), "best": means[best],
                "best_cell": list(best), "median": float(np.median(list(means.values()))),
                "ours_over_best": float(ratios.mean()), "ci95_over_seeds": spread, "seeds": len(ratios),
                "cells": len(means),
            }
        )  # fmt: skip
    return summary


def draw(summaries: list[dict], out: Path) -> None:
    """One row per family: ours and the median cell, as multiples of the best cell, at the three budgets."""
    names = list(dict.fromkeys(row["family"] for row in summaries))
    figure, (axes,) = new_figure(panel=(8.4, 0.62 * len(names) + 1.6))
    for place, name in enumerate(reversed(names)):
        rows = [row for row in summaries if row["family"] == name]
        for offset, row in zip((0.22, 0, -0.22), rows, strict=True):
            y = place + offset
            median = min(row["median"] / row["best"], 12)
            axes.plot([1, median], [y, y], color="#dddddd", linewidth=1, zorder=1)
            axes.plot(median, y, "|", color=GREY, markersize=9)
            axes.plot(row["ours_over_best"], y, "o", color=BLUE)
            axes.annotate(
                f"{row['budget']:,}", (0, y), (-6, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", va="center", fontsize=7,
            )  # fmt: skip
    axes.axvline(1, color=VERMILLION, linewidth=1.2)
    axes.set_yticks(range(len(names)), list(reversed(names)))
    axes.tick_params(axis="y", pad=36, length=0)
    axes.set_xscale("log")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(
        "held-out loss after adaptation, over the best cell's (red); dots: nothing given, bars: median cell"
    )
    axes.set_title(
        "metastep with nothing given (dots) and the grid's median cell (bars), by meta-steps"
    )
    save_figure(figure, out / "zero_tuning")


def show(summaries: list[dict]) -> None:
    """Print the table."""
    print(
        f"{'family':26s} {'budget':>7s} {'ours':>8s} {'best':>8s} {'ratio':>14s} {'median':>8s}  best cell"
    )
    for row in summaries:
        optimizer, alpha, meta_lr = row["best_cell"]
        spread = "" if row["ci95_over_seeds"] is None else f" ± {row['ci95_over_seeds']:.2f}"
        print(
            f"{row['family']:26s} {row['budget']:7,d} {row['ours']:8.4f} {row['best']:8.4f} "
            f"{row['ours_over_best']:7.2f}{spread:7s} {row['median']:8.3f}  {optimizer} {alpha:.3g}, {meta_lr:g}"
        )


def main() -> None:
    """Run family after family."""
    options = tyro.cli(Options)
    path = options.out / "zero_tuning.json"
    record: dict[str, Any] = read_json(path) if path.exists() else {}
    if not options.draw_only:
        with tempfile.TemporaryDirectory() as folder:
            for name in options.families:
                family = FAMILIES[name]
                budgets = family.budgets if options.scale == "reduced" else family.full_budgets
                few = (0,) if options.scale == "reduced" and "omniglot" in name else (0, 1)
                seeds = options.seeds or (few if options.scale == "reduced" else (0, 1, 2))
                began = time.monotonic()
                ours = [r for s in seeds for r in nothing_given(family, budgets, s, Path(folder))]
                between = time.monotonic()
                grid = whole_grid(family, budgets, list(seeds), options.scale, Path(folder))
                times = {
                    "ours_seconds": between - began,
                    "grid_seconds": time.monotonic() - between,
                }
                summary = summarise(name, ours, grid)
                record[name] = {
                    "scale": options.scale,
                    "summary": summary,
                    "ours": ours,
                    "grid": grid,
                } | times
                write_json(path, record)
                show(summary)
                jax.clear_caches()
    summaries = [row for name in FAMILIES if name in record for row in record[name]["summary"]]
    show(summaries)
    draw(summaries, options.out)


if __name__ == "__main__":
    main()
