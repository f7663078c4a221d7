"""Is the measured rate as good as the best of a grid? Sinusoid, K = 10, one inner step, Adam at 1e-3, 25 tasks.

    python benchmarks/sinusoid_alpha.py [--iterations 10000] [--seeds 0 1] [--runs "nothing given"] [--out FOLDER]

Trains with `alpha = auto` (measured, then learned; and measured, then fixed) and at every rate of the grid, all with
constant Adam 1e-3 as in the published experiment, and once with nothing given at all. Each goes through
`metastep.train` as the command line does, and all are judged on the same held-out tasks after adaptation. Writes
sinusoid_alpha.json and prints a table.
"""

import dataclasses
import tempfile
from pathlib import Path

import tyro

from metastep._records import read_json, write_json
from metastep.train import RunFolder, TrainConfig, evaluate_run, load_run, train

GRID = (0.001, 0.003, 0.01, 0.03, 0.1)
RUNS = {
    "nothing given": {},
    "auto, learned": {"meta_lr": 1e-3},
    "auto, fixed": {"meta_lr": 1e-3, "rate": "fixed"},
} | {str(alpha): {"meta_lr": 1e-3, "alpha": alpha} for alpha in GRID}


@dataclasses.dataclass
class Options:
    """Compare `alpha = auto` with a grid."""

    iterations: int = 10_000
    """Meta-steps of each run."""
    seeds: tuple[int, ...] = (0,)
    """One whole comparison each."""
    runs: tuple[str, ...] = tuple(RUNS)
    """Which runs; the others are read from the JSON that is there."""
    test_tasks: int = 2_000
    """Held-out tasks."""
    out: Path = Path("benchmarks/results")
    """Where the JSON goes."""


def run_once(name: str, seed: int, options: Options) -> dict:
    """Train and judge at one rate; the last state is judged, so that no run profits from validation."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        config = TrainConfig(
            tasks="sinusoid", iterations=options.iterations, seed=seed, eval_tasks=2, **RUNS[name]
        )  # fmt: skip
        result = train(config, run)
        evaluation, _ = evaluate_run(load_run(run, "latest"), num_tasks=options.test_tasks)
    loss = evaluation.after.loss
    row = {"run": name, "alpha": result.alpha, "seed": seed, "loss": loss.mean, "ci95": loss.ci95}
    print(
        f"seed {seed}  {name:14s} alpha at start {result.alpha:.4g}  test loss {loss.mean:.4f}",
        flush=True,
    )
    return row


def main() -> None:
    """Run the comparison."""
    options = tyro.cli(Options)
    path = options.out / "sinusoid_alpha.json"
    kept = read_json(path)["rows"] if path.exists() else []
    rows = {(row["seed"], row["run"]): row for row in kept if row["seed"] in options.seeds}
    for seed in options.seeds:
        rows |= {(seed, name): run_once(name, seed, options) for name in options.runs}
    summary = []
    for seed in options.seeds:
        losses = {name: rows[seed, name]["loss"] for name in RUNS}
        best = min((str(alpha) for alpha in GRID), key=losses.__getitem__)
        ratios = {name: losses[name] / losses[best] for name in list(RUNS)[:3]}
        summary.append({"seed": seed, "best_alpha": best, "over_best": ratios})
        shown = ", ".join(f"{name} {ratio:.3f}" for name, ratio in ratios.items())
        print(f"seed {seed}: over the best of the grid (alpha {best}): {shown}")
    write_json(
        path,
        {"iterations": options.iterations, "rows": list(rows.values()), "summary": summary},
    )


if __name__ == "__main__":
    main()
