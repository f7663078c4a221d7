"""What inputs and labels cost that nobody has brought to zero mean and unit variance.

    python benchmarks/raw_units.py [--iterations 1000] [--cases ...] [--seeds 0 1 2] [--out benchmarks/results]

The same tasks with their inputs, or their labels, moved and stretched in different ways (`Weather`, and `Arms`, which
need more of a network), each learned with nothing given: as they are (`--no-standardise`), and by default, where a
model of the library meets those that stand out. Losses are given in units of the labels before they were stretched,
so whatever they differ by is the price of how the numbers come. Writes raw_units.json and prints a table.
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import tyro

from awkward_problems import Weather
from later_problems import Arms
from metastep._records import read_json, write_json
from zero_tuning import nothing_given
from zero_tuning_families import Family


def moved(mean=0.0, spread=1.0, one_spread=1.0, **labels) -> Weather:
    """All inputs with this mean and standard deviation, the last one stretched once more."""
    return Weather(usual=(mean,) * 3, spread=(spread, spread, spread * one_spread), **labels)


_ARMS = "arms, angles in radians, lengths in 25 cm"
CASES: dict[str, Weather | Arms] = {
    "zero means, unit variances": moved(),
    "inputs with means of 1 standard deviation": moved(1.0),
    "means of 3": moved(3.0),
    "means of 10": moved(10.0),
    "means of 30": moved(30.0),
    "means of 100": moved(100.0),
    "one input 10 times as wide": moved(one_spread=10.0),
    "100 times as wide": moved(one_spread=100.0),
    "1,000 times as wide": moved(one_spread=1000.0),
    "all inputs 0.01 times as wide": moved(spread=0.01),
    "0.1 times": moved(spread=0.1),
    "10 times": moved(spread=10.0),
    "100 times": moved(spread=100.0),
    "inputs as the instruments give them": Weather(),
    "labels with a mean of 3 standard deviations": moved(label_mean=3.0 * 2.1),
    "a mean of 10": moved(label_mean=10 * 2.1),
    "a mean of 100": moved(label_mean=100 * 2.1),
    "labels 0.01 times as wide": moved(label_spread=0.01),
    "labels 100 times as wide": moved(label_spread=100.0),
    _ARMS: Arms(),
    "angles 0.1 times as wide": Arms(turn=0.1),
    "angles 0.3 times": Arms(turn=0.3),
    "angles 3 times": Arms(turn=3.0),
    "angles 10 times": Arms(turn=10.0),
    "angles in degrees": Arms(turn=57.3),
    "lengths 0.1 times as wide": Arms(reach=0.1),
    "lengths 0.3 times": Arms(reach=0.3),
    "lengths 3 times": Arms(reach=3.0),
    "lengths 10 times": Arms(reach=10.0),
    "lengths in centimetres": Arms(reach=25.0),
    "lengths in centimetres, angles in degrees": Arms(turn=57.3, reach=25.0),
}
"""The labels have a standard deviation of 2.1 to begin with, and of 1.1 with arms, whose angles have one of 0.9."""


@dataclasses.dataclass
class Options:
    """Train with nothing given on inputs moved and stretched."""

    iterations: int = 1_000
    """Meta-steps."""
    cases: tuple[str, ...] = tuple(CASES)
    """By name. They are held against the first of all, or of arms, read from the JSON where it is not run. The JSON
    keeps what it has of other cases."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs."""
    out: Path = Path("benchmarks/results")
    """Where the JSON goes."""


def losses(tasks: Weather | Arms, standardise: bool, options: Options, folder: Path) -> list[float]:
    """Held-out losses after adaptation, one for each seed; infinite where a run failed."""
    family = Family({"tasks": tasks, "standardise": standardise}, (0, 0), (), (0, 0, 0))
    rows = (nothing_given(family, (options.iterations,), seed, folder)[0] for seed in options.seeds)
    unit = float(tasks.reach if isinstance(tasks, Arms) else tasks.label_spread) ** 2
    return [np.inf if row["loss"] is None else row["loss"] / unit for row in rows]


def main() -> None:
    """Run one after another."""
    options = tyro.cli(Options)
    path = options.out / "raw_units.json"
    before = read_json(path) if path.exists() else {}
    raw: dict[str, list[float]] = before.get("loss_as_they_are", {})
    met: dict[str, list[float]] = before.get("loss_met", {})
    print("| | as they are | times those at 1 | met by the model |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.cases:
            tasks = CASES[name]
            raw[name] = losses(tasks, False, options, Path(folder))
            met[name] = losses(tasks, True, options, Path(folder))
            first = _ARMS if isinstance(tasks, Arms) else next(iter(CASES))
            mean, one = np.mean(raw[name]), np.mean(raw.get(first, np.nan))
            print(
                f"| {name} | {mean:.3g} | {mean / one:.2f} | {np.mean(met[name]):.3g} |",
                flush=True,
            )
    record = {"iterations": options.iterations, "loss_as_they_are": raw, "loss_met": met}
    write_json(path, record)


if __name__ == "__main__":
    main()
