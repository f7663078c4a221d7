"""What XLA's options on a CPU cost and bring: compiling the training program, and a meta-step of it.

    taskset -c 0 python benchmarks/compiling.py [--families sinusoid ...] [--rounds 9]

The program of a run with nothing given is compiled as XLA does by itself, with the option that metastep sets
(`metastep._compiler`), with less optimisation still, and with loops written the older way. Then the programs take
turns, for about half a second each; medians over the rounds, in seconds of the processor. Omniglot needs
METASTEP_DATA.
"""

import dataclasses
import math
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from metastep._compiler import ON_CPU
from metastep.train import build_learner, keep_freed_memory
from metastep.train.state import initial_state
from metastep.train.step import advance
from zero_tuning import load
from zero_tuning_families import FAMILIES

_SECONDS = 0.5
CHOICES: dict[str, dict[str, Any]] = {
    "XLA's own": {},
    "level 2": ON_CPU,
    "level 1": {"xla_backend_optimization_level": 1},
    "older fusion": {"xla_cpu_use_fusion_emitters": False},
}


@dataclasses.dataclass
class Options:
    """Compile and time meta-steps by each choice of options."""

    families: tuple[str, ...] = (
        "sinusoid",
        "sinusoid, 5 inner steps",
        "sinusoid, deep network",
        "sensors",
        "omniglot 5-way MAML",
        "omniglot 20-way MAML",
        "omniglot 20-way ANIL",
    )
    """Of the benchmark of zero tuning."""
    rounds: int = 9
    """How often each program has its turn."""


class Contender:
    """A program, what compiling it took, and what its meta-steps take."""

    def __init__(self, lowered: Any, options: dict[str, Any], arguments: tuple):
        began = time.process_time()
        self.program = lowered.compile(options or None)
        self.compiling = time.process_time() - began
        self.arguments, self.steps, self.seconds = arguments, 1, []
        self.turn()
        self.turn()
        self.steps = math.ceil(_SECONDS / self.seconds[-1])
        self.seconds = []

    def turn(self) -> None:
        """Take `steps` meta-steps from where the program began, and note what one took."""
        began = time.process_time()
        jax.block_until_ready(self.program(*self.arguments, jnp.asarray(self.steps)))
        self.seconds.append((time.process_time() - began) / self.steps)


def contenders(name: str, folder: Path) -> list[Contender]:
    """One for each choice of options."""
    family = FAMILIES[name]
    config, tasks = load(family, 0, folder)
    # A rate that is too high would fail, and be mended: the grid's lowest does not.
    learner = build_learner(config, tasks.description, alpha=family.alphas[0], meta_lr=1e-3)
    state = initial_state(learner, jax.random.key(0), 10_000)
    arguments = tasks.splits.train, jax.random.key(1), state
    lowered = jax.jit(partial(advance, learner)).lower(*arguments, jnp.asarray(1))
    return [Contender(lowered, options, arguments) for options in CHOICES.values()]


def main() -> None:
    """Print a row for each family."""
    options = tyro.cli(Options)
    keep_freed_memory()
    jax.config.update("jax_enable_compilation_cache", False)
    print(
        f"| compiling, s; one meta-step, ms | {' | '.join(CHOICES)} |\n|---|{'---|' * len(CHOICES)}"
    )
    for name in options.families:
        with tempfile.TemporaryDirectory() as folder:
            found = contenders(name, Path(folder))
        for _ in range(options.rounds):
            for each in found:
                each.turn()
        shown = (f"{one.compiling:.1f}; {1e3 * np.median(one.seconds):.3g}" for one in found)
        print(f"| {name} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
