"""What rows of metrics and progress cost beside the meta-steps they are about, on the smallest problem there is.

    taskset -c 1 python benchmarks/records.py

Trains sinusoids, 25 tasks and 1 inner step, through `metastep.train.train` with many rows of metrics and with few,
in turns, and compares the processor time from the first meta-step to the last. A row is a
line of metrics.jsonl with all that leads to it. Writes benchmarks/results/records.json.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console

from metastep.cli.progress import LineObserver
from metastep.train import RunFolder, TrainConfig, train

ROOT = Path(__file__).parents[1]


class Clock(LineObserver):
    """The lines a log shows, with the processor time from the first meta-step to the last."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.began, self.seconds = 0.0, 0.0

    def progress(self, iteration: int, figures: dict[str, float]) -> None:
        super().progress(iteration, figures)
        self.began = self.began or time.process_time()
        self.seconds = time.process_time() - self.began


def seconds_of(iterations: int, rows: int) -> float:
    """Processor time of a run without its first meta-step, which compiles, and its last validation."""
    config = TrainConfig(
        tasks="sinusoid", alpha=0.01, rate="shared-meta-sgd", iterations=iterations,
        log_every=iterations // rows, eval_every=iterations,
    )  # fmt: skip
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(FileNotFoundError):
        train(config, RunFolder(Path(folder) / "run"), clock)
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=4000)
    parser.add_argument(
        "--rows", type=int, default=200, help="of a run unless it is told otherwise"
    )
    parser.add_argument(
        "--many", type=int, default=2000, help="rows that the cost of one is measured by"
    )
    options = parser.parse_args()
    few = 4
    turns = {rows: [] for rows in (few, options.rows, options.many)}
    for _ in range(options.rounds):
        for rows, times in turns.items():
            times.append(seconds_of(options.iterations, rows))
    taken = {rows: statistics.median(times) for rows, times in turns.items()}
    row = (taken[options.many] - taken[few]) / (options.many - few)
    steps = taken[few] - few * row
    record = {
        "iterations": options.iterations,
        "milliseconds_of_a_row": round(1e3 * row, 3),
        "milliseconds_of_a_meta_step": round(1e3 * steps / options.iterations, 4),
        "seconds": {str(rows): round(seconds, 3) for rows, seconds in taken.items()},
        "share_of_rows": round(options.rows * row / (options.rows * row + steps), 4),
    }
    print(json.dumps(record, indent=1))
    out = ROOT / "benchmarks" / "results" / "records.json"
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
