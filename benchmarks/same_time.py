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


def in_the_same_time(name: str, grid: dict[str, Any], rounds: int, folder: Path) -> list[dict]:
    """A row for each budget of a family: `summarise`'s, the default's cost, and the ratio with as many meta-steps."""
    cell, default = times(name, (CHOICES[0], CHOICES[-1]), rounds, folder)
    cost = default / cell
    rows = []
    for found in grid.values():
        budgets = sorted({row["budget"] for row in found["ours"]})
        steps = [meta_steps(budget, cost) for budget in budgets]
        ours = [
            row | {"budget": budget}
            for seed in sorted({row["seed"] for row in found["ours"]})
            for budget, row in zip(
                budgets, nothing_given(FAMILIES[name], steps, seed, folder), strict=True
            )
        ]
        as_many = {row["budget"]: row["ours_over_best"] for row in summarise(name, found)}
        rows += [
            row | {
                "cost": cost, "steps": count, "seconds_of_a_cell": cell * row["budget"],
                "as_many": as_many[row["budget"]], "runs": [run for run in ours if run["budget"] == row["budget"]],
            }
            for count, row in zip(steps, summarise(name, found | {"ours": ours}), strict=True)
        ]  # fmt: skip
    return rows


def show(record: dict[str, list[dict]]) -> None:
    """Print the table, in Markdown."""
    print(
        "| family | a meta-step costs | meta-steps of a cell | of the default | nothing given | best cell "
        "| ratio | with as many meta-steps |\n|---|---|---|---|---|---|---|---|"
    )
    rows = [row for name in FAMILIES for row in record.get(name, [])]
    for row in rows:
        spread = "" if row["ci95_over_seeds"] is None else f" ± {row['ci95_over_seeds']:.2f}"
        print(
            f"| {row['family']} | {row['cost']:.2f} | {row['budget']:,d} | {row['steps']:,d} "
            f"| {row['ours']:.4g} | {row['best']:.4g} | **{row['ours_over_best']:.2f}**{spread} "
            f"| {row['as_many']:.2f} |"
        )
    behind = sum(row["ours_over_best"] > 1.05 for row in rows)
    print(f"\n{len(rows)} rows, {behind} more than 5 % behind the best cell in the same time")


def main() -> None:
    """Run family after family."""
    options = tyro.cli(Options)
    keep_freed_memory()
    path = options.out / "same_time.json"
    record: dict[str, list[dict]] = read_json(path) if path.exists() else {}
    grids = read_record(options.results / "zero_tuning.json")
    with tempfile.TemporaryDirectory() as folder:
        for name in () if options.show else options.families:
            record[name] = in_the_same_time(name, grids[name], options.rounds, Path(folder))
            write_json(path, record)
            show({name: record[name]})
            jax.clear_caches()
    show(record)


if __name__ == "__main__":
    main()
