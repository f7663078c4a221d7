"""What it costs to judge by steps that do not overstep, against plain gradient steps.

    taskset -c 0 python benchmarks/judging.py [--families sinusoid ...] [--rounds 9] [--tasks 100]

A family's untrained model is adapted to fresh tasks at the lowest rate of its grid, where hardly a step is halved:
what the care costs where it is not needed. Both programs take turns; medians over the rounds, and seconds to compile
each. Omniglot needs METASTEP_DATA.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import tyro

from metastep.adapt import HALVINGS
from metastep.train import build_learner, keep_freed_memory
from metastep.train.evaluate import compile_judge
from zero_tuning import load
from zero_tuning_families import FAMILIES


@dataclasses.dataclass
class Options:
    """Time the adaptation of held-out tasks, careful and plain."""

    families: tuple[str, ...] = (
        "sinusoid",
        "sinusoid, 5 inner steps",
        "sensors",
        "omniglot 5-way MAML",
        "omniglot 5-way ANIL",
    )
    """Of the benchmark of zero tuning."""
    rounds: int = 9
    """How often each program has its turn."""
    tasks: int = 100
    """Tasks of a turn."""


def times(name: str, options: Options, folder: Path) -> tuple[list[float], list[float], int]:
    """Seconds to compile and seconds of a task, careful and plain, and the number of inner steps."""
    family = FAMILIES[name]
    config, tasks = load(family, 0, folder)
    learner = build_learner(config, tasks.description, alpha=family.alphas[0], meta_lr=1e-3)
    steps = learner.adapter.steps
    params = learner.model.init(jax.random.key(0))
    arguments = params, family.alphas[0], tasks.splits.test, jax.random.key(1)
    programs, compiling = [], []
    for halvings in (HALVINGS, 0):
        began = time.process_time()
        judge = compile_judge(learner, steps, options.tasks, halvings=halvings)
        programs.append(judge.lower(*arguments).compile())
        compiling.append(time.process_time() - began)
    taken: list[list[float]] = [[] for _ in programs]
    for turn in range(options.rounds + 1):
        for program, seconds in zip(programs, taken, strict=True):
            began = time.process_time()
            jax.block_until_ready(program(*arguments))
            if turn:  # the first is for memory
                seconds.append((time.process_time() - began) / options.tasks)
    return compiling, [float(np.median(each)) for each in taken], steps


def main() -> None:
    """Print a row for each family."""
    options = tyro.cli(Options)
    keep_freed_memory()
    print(
        "| one task, ms | inner steps | plain steps | none that oversteps | over plain | compiling, s |\n"
        "|---|---|---|---|---|---|"
    )
    for name in options.families:
        with tempfile.TemporaryDirectory() as folder:
            compiling, (careful, plain), steps = times(name, options, Path(folder))
        print(
            f"| {name} | {steps} | {1e3 * plain:.3g} | {1e3 * careful:.3g} | {careful / plain:.2f} | "
            f"{compiling[1]:.1f}, {compiling[0]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
