"""Nothing given against the best cell of the grid in the same time, where the table of zero tuning has as many steps.

    python benchmarks/same_time.py [--families sinusoid quadratic ...]
    python benchmarks/same_time.py --show      # only print the table again

A meta-step of the default takes longer than one of a cell. Here it has as many fewer of them as it takes for its
meta-steps and rehearsals together to last 1.05 times as long as those of a cell. What a meta-step costs is measured
first, by `default_cost`; the best cell is that of zero_tuning.json. Not in that time is what both pay once: reading
data, compiling, and for the default the measuring of its first alpha.
Every family adds its rows to same_time.json when it is done. Omniglot needs METASTEP_DATA.
"""

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from default_cost import CHOICES, times
from metastep._records import read_json, write_json
from metastep.train import keep_freed_memory
from zero_tuning import nothing_given, read_record, summarise
from zero_tuning_families import FAMILIES

_EXTRA = 0.05
"""The share of a cell's time that the default may take on top."""
_REHEARSED_FROM, _REHEARSALS = 2_000, 0.04
"""Runs of so many meta-steps are rehearsed, for at most this share of them."""


@dataclasses.dataclass
class Options:
    """Compare metastep with nothing given to the best cell of the grid in the same time."""

    families: tuple[str, ...] = tuple(FAMILIES)
    """Which ones; those whose grid has been run."""
    rounds: int = 15
    """How often cell and default take turns when a meta-step of each is timed."""
    results: Path = Path("benchmarks/results")
    """Where zero_tuning.json is."""
    out: Path = Path("benchmarks/results")
    """Where same_time.json goes."""
    show: bool = False
    """Only print what is there."""


def meta_steps(budget: int, cost: float) -> int:
    """How many meta-steps of the default last 1.05 times as long as `budget` of a cell's, its rehearsals included."""
    count = math.floor((1 + _EXTRA) * budget / cost)
    rehearsed = math.floor(count / (1 + _REHEARSALS))
    return rehearsed if rehearsed >= _REHEARSED_FROM else min(count, _REHEARSED_FROM - 1)


def in_the_same_time(name: str, grid: dict[str, Any], rounds: int, folder: Path) -> dict[str, Any]:
    """What a meta-step takes, and for each set of budgets the runs of the default that last as long as a cell's."""
    cell, default = times(name, (CHOICES[0], CHOICES[-1]), rounds, folder)
    record: dict[str, Any] = {"cell_seconds": cell, "default_seconds": default}
    for length, found in grid.items():
        budgets = sorted({row["budget"] for row in found["ours"]})
        steps = [meta_steps(budget, default / cell) for budget in budgets]
        record[length] = [
            row | {"budget": budget, "steps": count}
            for seed in sorted({row["seed"] for row in found["ours"]})
            for budget, count, row in zip(
                budgets, steps, nothing_given(FAMILIES[name], steps, seed, folder), strict=True
            )
        ]
    return record


def rows_of(name: str, found: dict[str, Any], grid: dict[str, Any]) -> list[dict]:
    """A row for each budget of a family: `summarise`'s, and beside it the ratio with as many meta-steps."""
    rows = []
    for length, both in grid.items():
        runs = found[length]
        steps = {run["budget"]: run["steps"] for run in runs}
        pairs = zip(summarise(name, both | {"ours": runs}), summarise(name, both), strict=True)
        rows += [
            row | {"steps": steps[row["budget"]], "as_many": usual["ours_over_best"]}
            for row, usual in pairs
        ]
    return rows


def show(record: dict[str, Any], grids: dict[str, Any]) -> None:
    """Print the table, in Markdown."""
    print(
        "| family | a meta-step costs | meta-steps of a cell | of the default | nothing given | best cell "
        "| ratio | with as many meta-steps |\n|---|---|---|---|---|---|---|---|"
    )
    shown = []
    for name in (name for name in FAMILIES if name in record):
        cost = record[name]["default_seconds"] / record[name]["cell_seconds"]
        for row in rows_of(name, record[name], grids[name]):
            spread = "" if row["ci95_over_seeds"] is None else f" ± {row['ci95_over_seeds']:.2f}"
            print(
                f"| {name} | {cost:.2f} | {row['budget']:,d} | {row['steps']:,d} | {row['ours']:.4g} "
                f"| {row['best']:.4g} | **{row['ours_over_best']:.2f}**{spread} | {row['as_many']:.2f} |"
            )
            shown.append(row)
    behind = sum(row["ours_over_best"] > 1.05 for row in shown)
    higher = np.mean([math.log(row["ours_over_best"] / row["as_many"]) for row in shown])
    print(
        f"\n{len(shown)} rows, {behind} more than 5 % behind the best cell in the same time; "
        f"{math.exp(higher):.3f} times the loss with as many meta-steps (geometric mean)"
    )


def main() -> None:
    """Run family after family."""
    options = tyro.cli(Options)
    keep_freed_memory()
    path = options.out / "same_time.json"
    record: dict[str, Any] = read_json(path) if path.exists() else {}
    grids = read_record(options.results / "zero_tuning.json")
    with tempfile.TemporaryDirectory() as folder:
        for name in () if options.show else options.families:
            record[name] = in_the_same_time(name, grids[name], options.rounds, Path(folder))
            write_json(path, record)
            show({name: record[name]}, grids)
            jax.clear_caches()
    show(record, grids)


if __name__ == "__main__":
    main()
