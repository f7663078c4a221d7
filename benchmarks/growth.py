"""How time grows with tasks, shots and inner steps; what a start, estimating alpha and keeping records cost.

    taskset -c 0 python benchmarks/growth.py [--out benchmarks/results]

Writes growth.json and a figure. Starts are measured as a user has them: `metastep train sinusoid` in a process of
its own, twice, the first time with an empty cache of compiled programs.
"""

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from metastep._records import read_json, read_jsonl, write_bytes, write_json
from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact
from metastep.models import Objective, mlp
from metastep.rates import FixedRate, make_optimizer
from metastep.report.style import BLUE, VERMILLION, new_figure, render
from metastep.tasks import Sinusoid
from metastep.train import (
    Learner,
    TrainConfig,
    initial_state,
    load_tasks,
    measure_rates,
    side_by_side,
)
from metastep.train.step import compile_advance

# On one core, the time of the process itself: others may use that core too.
ONE_CORE = len(os.sched_getaffinity(0)) == 1
AXES = {
    "tasks": (5, 25, 100),
    "shots": (5, 10, 50),
    "inner steps": (1, 5, 10),
}
BASE = {"tasks": 25, "shots": 10, "inner steps": 1}


@dataclasses.dataclass
class Options:
    """Measure growth, starts and overheads."""

    parts: tuple[Literal["starts", "growth"], ...] = ("starts", "growth")
    """What to measure; the other part keeps its last result."""
    turns: int = 5
    """Turns of each measurement; the median is kept."""
    iterations: int = 4000
    """Meta-steps of the run whose start and records are timed."""
    out: Path = Path("benchmarks/results")
    """Where the JSON goes."""
    figures: Path = Path("docs/figures")
    """Where the figure goes."""


def clock() -> float:
    """Seconds of this process on one core, of the wall on several."""
    return time.process_time() if ONE_CORE else time.perf_counter()


def clock_of_children() -> float:
    """The same for the processes started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime if ONE_CORE else time.perf_counter()


def time_of(tasks: int, shots: int, inner_steps: int, turns: int) -> dict[str, float]:
    """Seconds of a meta-step on sinusoids, and of the first, which compiles."""
    family, model = Sinusoid(shots=shots, queries=shots), mlp((1,), 1)
    learner = Learner(
        model, Objective.of(model.apply, family.kind), GradientAdapter(inner_steps), Exact(), FixedRate(1e-3),
        make_optimizer("adam", 1e-3), tasks_per_step=tasks, tasks_at_once=side_by_side(model, None, tasks),
    )  # fmt: skip
    advance, state = compile_advance(learner), initial_state(learner, jax.random.key(0))

    def run(count: int) -> float:
        began = clock()
        jax.block_until_ready(advance(family, jax.random.key(1), state, jnp.asarray(count)))
        return clock() - began

    first = run(1)
    count = max(1, round(0.1 / (run(5) / 5)))
    return {"first": first, "seconds": statistics.median(run(count) / count for _ in range(turns))}


def growth(options: Options) -> dict[str, Any]:
    """Along each axis: times, and how well a straight line with an offset explains them."""
    found, known = {}, {}
    for name, values in AXES.items():
        points = []
        for value in values:
            sizes = tuple((BASE | {name: value}).values())
            if sizes not in known:
                known[sizes] = time_of(*sizes, options.turns)
            point = known[sizes]
            points.append({"value": value} | point)
            print(
                f"{name} {value}: {1000 * point['seconds']:.3f} ms, first {point['first']:.1f} s",
                flush=True,
            )
        x, y = (np.array([p[key] for p in points]) for key in ("value", "seconds"))
        weights = 1 / y  # relative errors count
        slope, offset = np.polyfit(x, y, 1, w=weights)
        worst = float(np.max(np.abs(slope * x + offset - y) / y))
        found[name] = {"points": points, "slope": slope, "offset": offset, "worst_error": worst}
    return found


def starts(options: Options) -> dict[str, Any]:
    """Seconds from `metastep train sinusoid` to its first meta-step, cold and with compiled programs at hand."""
    command = [
        sys.executable,
        "-c",
        "from metastep.cli import main; main()",
        "train",
        "sinusoid",
        "--json",
    ]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        for kind in ("cold", "warm"):
            began = clock_of_children()
            options_of_run = ["--iterations", "1", "--eval-tasks", "2", "--out", f"{folder}/{kind}"]
            subprocess.run(
                [*command, *options_of_run], env=environment, check=True, capture_output=True
            )
            found[f"{kind}_seconds"] = clock_of_children() - began
        run = [
            "--iterations",
            str(options.iterations),
            "--eval-every",
            str(10**6),
            "--out",
            f"{folder}/long",
        ]
        result = subprocess.run([*command, *run], env=environment, check=True, capture_output=True)
        rows = [row for row in read_jsonl(Path(folder) / "long" / "metrics.jsonl") if "loss" in row]
        per_second = json.loads(result.stdout)["steps_per_second"]
    whole = (rows[-1]["iteration"] - rows[1]["iteration"]) / (
        rows[-1]["seconds"] - rows[1]["seconds"]
    )
    return found | {
        "steps_per_second": per_second,
        "with_records": whole,
        "overhead": 1 - whole / per_second,
    }


def estimation() -> dict[str, float]:
    """Seconds to estimate alpha on sinusoids, the first time and when compiled."""
    config = TrainConfig(tasks="sinusoid")
    task_set, seconds = load_tasks(config), []
    for _ in range(2):
        began = clock()
        measure_rates(config, task_set)
        seconds.append(clock() - began)
    return {"first_seconds": seconds[0], "again_seconds": seconds[1]}


def draw(found: dict[str, Any], out: Path) -> None:
    """One panel for each axis, points and line."""
    figure, panels = new_figure(1, len(AXES), (3.6, 3.2))
    for axes, (name, axis) in zip(panels, found.items(), strict=True):
        x, y = (np.array([p[key] for p in axis["points"]]) for key in ("value", "seconds"))
        line = np.linspace(0, x.max(), 50)
        axes.plot(line, 1000 * (axis["slope"] * line + axis["offset"]), color=VERMILLION)
        axes.plot(x, 1000 * y, "o", color=BLUE)
        axes.set_xlabel(name)
        axes.set_ylim(bottom=0)
        axes.set_title(f"off the line by at most {100 * axis['worst_error']:.1g} %")
    panels[0].set_ylabel("milliseconds of a meta-step")
    write_bytes(out / "growth.png", render(figure, "png"))


def main() -> None:
    """Starts and records first: they want a machine that is not warm."""
    options = tyro.cli(Options)
    path = options.out / "growth.json"
    record: dict[str, Any] = read_json(path) if path.exists() else {}
    if "starts" in options.parts:
        record |= {"start": starts(options), "estimation": estimation()}
        print(json.dumps({name: record[name] for name in ("start", "estimation")}, indent=1))
        write_json(path, record)
    if "growth" in options.parts:
        record["growth"] = growth(options)
        write_json(path, record)
        draw(record["growth"], options.figures)


if __name__ == "__main__":
    main()
