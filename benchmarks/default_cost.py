"""What the default costs: its meta-step against that of a cell of a grid, and what of it is for bounding tasks.

    taskset -c 0 python benchmarks/default_cost.py [--families sinusoid ...] [--rounds 15]

A cell has one fixed rate and Adam at a constant meta rate. The default learns a rate for each parameter, and bounds
what a task may weigh: the gradient of a sum is cheaper than the gradients it sums up, whose lengths a bound has to
know. The programs take turns, for about a fifth of a second each; medians over the rounds. Omniglot needs
METASTEP_DATA.
"""

import dataclasses
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from metastep.train import build_learner, keep_freed_memory
from metastep.train.state import initial_state
from metastep.train.step import Advance, compile_advance
from zero_tuning import CELL, load
from zero_tuning_families import FAMILIES

_SECONDS = 0.2
CHOICES: tuple[dict[str, Any], ...] = (CELL | {"optimizer": "adam"}, {"clip_tasks": "off"}, {})
"""What is given: for a cell of the grid, for the default without a bound, and for the default."""


@dataclasses.dataclass
class Options:
    """Time meta-steps of a cell, of the default without a bound, and of the default."""

    families: tuple[str, ...] = (
        "sinusoid",
        "sinusoid, 5 inner steps",
        "sinusoid, wide network",
        "sensors",
        "omniglot 5-way MAML",
        "omniglot 5-way ANIL",
    )
    """Of the benchmark of zero tuning."""
    rounds: int = 15
    """How often each program has its turn."""


@dataclasses.dataclass
class Contender:
    """A program, where it stands, and what its meta-steps took."""

    advance: Advance
    state: object
    tasks: object
    steps: int
    seconds: list[float]

    @classmethod
    def of(cls, name: str, folder: Path, **given: Any) -> "Contender":
        family = FAMILIES[name]
        config, tasks = load(family, 0, folder, **given)
        # A rate that is too high would fail, and be mended: the grid's lowest does not.
        learner = build_learner(config, tasks.description, alpha=family.alphas[0], meta_lr=1e-3)
        state = initial_state(learner, jax.random.key(0), 10_000)
        found = cls(compile_advance(learner), state, tasks.splits.train, 1, [])
        found.turn()  # compiles
        found.turn()
        found.steps = math.ceil(_SECONDS / found.seconds[-1])
        found.seconds = []
        return found

    def turn(self) -> None:
        """Take `steps` meta-steps from where the program began, and note what one took."""
        began = time.perf_counter()
        ended = self.advance(self.tasks, jax.random.key(1), self.state, jnp.asarray(self.steps))
        jax.block_until_ready(ended)
        self.seconds.append((time.perf_counter() - began) / self.steps)


def times(name: str, choices: Sequence[dict[str, Any]], rounds: int, folder: Path) -> list[float]:
    """Seconds that a meta-step takes by each choice of options: medians over rounds in which they take turns."""
    contenders = [Contender.of(name, folder, **given) for given in choices]
    for _ in range(rounds):
        for contender in contenders:
            contender.turn()
    return [float(np.median(each.seconds)) for each in contenders]


def main() -> None:
    """Print a row for each family."""
    options = tyro.cli(Options)
    keep_freed_memory()
    print(
        "| one meta-step, ms | a cell of a grid | rates learned | and tasks bounded | over a cell |\n"
        "|---|---|---|---|---|"
    )
    for name in options.families:
        with tempfile.TemporaryDirectory() as folder:
            found = times(name, CHOICES, options.rounds, Path(folder))
        shown = " | ".join(f"{1e3 * each:.3g}" for each in found)
        print(f"| {name} | {shown} | {found[-1] / found[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
