"""Is the rate measured before training as good as the best of a grid? Sinusoid, K = 10, one step, Adam, 25 tasks.

    python benchmarks/sinusoid_alpha.py [--iterations 10000] [--seeds 0 1] [--out benchmarks/results]

Trains at `alpha = auto` and at every rate of the grid, each through `metastep.train` as the command line does,
and judges all on the same held-out tasks after adaptation. Writes sinusoid_alpha.json and prints a table.
"""

import dataclasses
import tempfile
from pathlib import Path

import tyro

from metastep._records import write_json
from metastep.train import RunFolder, TrainConfig, evaluate_run, load_run, train

GRID = (0.001, 0.003, 0.01, 0.03, 0.1)


@dataclasses.dataclass
class Options:
    """Compare `alpha = auto` with a grid."""

    iterations: int = 10_000
    """Meta-steps of each run."""
    seeds: tuple[int, ...] = (0,)
    """One whole comparison each."""
    test_tasks: int = 2_000
    """Held-out tasks."""
    out: Path = Path("benchmarks/results")
    """Where the JSON goes."""


def run_once(alpha, seed: int, options: Options) -> dict:
    """Train and judge at one rate; the last state is judged, so that no run profits from validation."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        config = TrainConfig(
            tasks="sinusoid", alpha=alpha, iterations=options.iterations, seed=seed, eval_tasks=2
        )
        result = train(config, run)
        evaluation, _ = evaluate_run(load_run(run, "latest"), num_tasks=options.test_tasks)
    loss = evaluation.after.loss
    row = {"alpha": alpha, "used": result.alpha, "seed": seed, "loss": loss.mean, "ci95": loss.ci95}
    print(
        f"seed {seed}  alpha {alpha!s:>6}  used {result.alpha:.4g}  test loss {loss.mean:.4f}",
        flush=True,
    )
    return row


def main() -> None:
    """Run the comparison."""
    options = tyro.cli(Options)
    rows = [run_once(a, seed, options) for seed in options.seeds for a in ("auto", *GRID)]
    summary = []
    for seed in options.seeds:
        losses = {row["alpha"]: row["loss"] for row in rows if row["seed"] == seed}
        best = min(GRID, key=losses.__getitem__)
        ratio = losses["auto"] / losses[best]
        summary.append({"seed": seed, "best_alpha": best, "auto_over_best": ratio})
        print(f"seed {seed}: auto / best of the grid (alpha {best}) = {ratio:.3f}")
    write_json(
        options.out / "sinusoid_alpha.json",
        {"iterations": options.iterations, "rows": rows, "summary": summary},
    )


if __name__ == "__main__":
    main()
