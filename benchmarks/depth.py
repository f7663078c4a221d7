"""Which meta rate deep networks want: the default at shares of the meta rate that networks of three layers get.

    python benchmarks/depth.py [--families sinusoid clusters] [--layers 4 7 10] [--budgets 300 1000]

Networks of so many layers, 40 wide, on tasks of the benchmark of zero tuning; no rate is given, and the measured
alpha is the same for all shares. Prints the held-out loss after adaptation, averaged over seeds, and the share that
the limit on depth stands for (`rates.default_meta_lr`). Adds to depth.json; `--show` only prints what is there.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from metastep._records import read_json, write_json
from metastep.rates import default_meta_lr
from metastep.train import build_learner, choose_rates, keep_freed_memory
from zero_tuning import judged, load, trained
from zero_tuning_families import FAMILIES

_WIDTH = 40


@dataclasses.dataclass
class Options:
    """Train deep networks at shares of the usual meta rate."""

    families: tuple[str, ...] = ("sinusoid", "clusters")
    """Of the benchmark of zero tuning."""
    layers: tuple[int, ...] = (4, 7, 10)
    """Of the networks, the output layer included."""
    budgets: tuple[int, ...] = (300, 1_000)
    """Meta-steps."""
    shares: tuple[float, ...] = (1.0, 0.7, 0.5, 0.35)
    """Of the usual meta rate."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training each."""
    out: Path = Path("benchmarks/results")
    """Where depth.json is."""
    show: bool = False
    """Only print what is there."""


def losses(
    name: str, layers: int, budget: int, options: Options, folder: Path
) -> list[list[float | None]]:
    """Held-out loss at each share, for each seed; None where the training was lost."""
    family = FAMILIES[name]
    usual, _ = default_meta_lr("relative-adam", budget)
    rows: list[list[float | None]] = [[] for _ in options.shares]
    for seed in options.seeds:
        config, tasks = load(family, seed, folder, hidden=(_WIDTH,) * (layers - 1))
        config = dataclasses.replace(config, iterations=budget, log_every=max(1, budget // 200))
        alpha = choose_rates(config, tasks)["alpha_chosen"]
        for row, share in zip(rows, options.shares, strict=True):
            learner = build_learner(config, tasks.description, alpha, share * usual)
            state, keys = trained(learner, tasks.splits, config)
            row.append(judged(learner, tasks.splits, state, keys, family.test_tasks)["loss"])
    return rows


def show(record: list[dict[str, Any]]) -> None:
    """Print the table, in Markdown."""
    shares = sorted({share for row in record for share in row["shares"]}, reverse=True)
    print(
        f"| layers | meta-steps | {' | '.join(f'{share:g} of the usual rate' for share in shares)} | the limit |\n"
        f"|---|---|{'---|' * len(shares)}---|"
    )
    for row in record:
        found = dict(zip(row["shares"], row["losses"], strict=True))
        means = {
            share: np.mean([np.inf if loss is None else loss for loss in of_seeds])
            for share, of_seeds in found.items()
        }
        cells = [f"{means[share]:.4g}" if share in means else "" for share in shares]
        usual, _ = default_meta_lr("relative-adam", row["budget"])
        limit = default_meta_lr("relative-adam", row["budget"], row["layers"])[0] / usual
        print(
            f"| {row['family']}, {row['layers']} | {row['budget']:,d} | {' | '.join(cells)} | {limit:.2f} |"
        )


def main() -> None:
    """Run, add to the record, print."""
    options = tyro.cli(Options)
    keep_freed_memory()
    path = options.out / "depth.json"
    record: list[dict[str, Any]] = read_json(path) if path.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for name in () if options.show else options.families:
            for layers in options.layers:
                for budget in options.budgets:
                    row = {
                        "family": name,
                        "layers": layers,
                        "budget": budget,
                        "seeds": options.seeds,
                    }
                    row |= {"shares": options.shares}
                    row |= {"losses": losses(name, layers, budget, options, Path(folder))}
                    like = ("family", "layers", "budget")
                    record = [r for r in record if any(r[key] != row[key] for key in like)] + [row]
                    write_json(path, record)
                jax.clear_caches()
    show(record)


if __name__ == "__main__":
    main()
