"""How much the start of alpha matters, and whether a short training knows: final loss and rehearsal, start by start.

    python benchmarks/rehearsals.py [--families sinusoid "omniglot 5-way ANIL" ...] [--seeds 0 1]

For each family and seed, metastep as it is with no rate given but alpha's start, which is the measured one times 1/9,
1/3, 1, 3 and 9: the loss at the end of a rehearsal of 20 meta-steps, and the held-out loss after the medium short
budget of benchmarks/zero_tuning.py. Omniglot needs METASTEP_DATA.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from metastep._records import read_json, write_json
from metastep.train import build_learner, choose_meta_lr, measure_rates, sweep
from metastep.train.rehearse import rehearsal
from zero_tuning import FAMILIES, load

_FACTORS = (1 / 9, 1 / 3, 1.0, 3.0, 9.0)
_STEPS = 20


@dataclasses.dataclass
class Options:
    """Compare starts of alpha."""

    families: tuple[str, ...] = ("sinusoid", "quadratic", "sensors", "omniglot 5-way ANIL")
    """Which ones, by their names in benchmarks/zero_tuning.py."""
    seeds: tuple[int, ...] = (0, 1)
    """One training for each."""
    out: Path = Path("benchmarks/results")
    """Where rehearsals.json goes."""


def starts(name: str, seed: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each start of alpha."""
    family = FAMILIES[name]
    config, task_set = load(family, seed, folder)
    config = dataclasses.replace(config, iterations=family.budgets[1])
    measured = measure_rates(config, task_set).alpha_chosen
    meta_lr, _ = choose_meta_lr(config, task_set, measured)
    trial = rehearsal(config, task_set, measured, meta_lr, _STEPS)
    rows = []
    for factor in _FACTORS:
        alpha = factor * measured
        result = sweep(
            build_learner(config, task_set.description, alpha, meta_lr), task_set.splits, None,
            [meta_lr], [seed], milestones=[family.budgets[1]], test_tasks=family.test_tasks,
        )  # fmt: skip
        rows.append(
            {
                "seed": seed,
                "factor": factor,
                "alpha": alpha,
                "rehearsal": float(np.mean(trial(alpha))),
                "held_out": float(result.test_loss[0, 0, 0, 0]),
                "alpha_at_end": float(result.alpha[0, 0, 0, 0]),
            }
        )
    return rows


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """Means over the seeds, start by start."""
    print(f"{name}, {FAMILIES[name].budgets[1]} meta-steps")
    for factor in _FACTORS:
        mine = [row for row in rows if np.isclose(row["factor"], factor)]
        means = {
            key: np.mean([np.inf if row[key] is None else row[key] for row in mine])
            for key in ("alpha", "rehearsal", "held_out", "alpha_at_end")
        }
        print(f"  x{factor:<6.3g}" + "  ".join(f"{k} {v:.4g}" for k, v in means.items()))


def main() -> None:
    """Family after family; each adds its rows to rehearsals.json."""
    options = tyro.cli(Options)
    path = options.out / "rehearsals.json"
    record = read_json(path) if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.families:
            rows = [row for seed in options.seeds for row in starts(name, seed, Path(folder))]
            record[name] = rows
            write_json(path, record)
            show(name, rows)


if __name__ == "__main__":
    main()
