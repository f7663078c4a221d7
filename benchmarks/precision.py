"""What a model in bfloat16 changes: meta-gradients, what is learned, and the time of a meta-gradient.

    python benchmarks/precision.py [--tasks sinusoid omniglot]

Meta-gradients of second-order MAML at the starting parameters, over the same tasks, in float32 and with
`--precision bfloat16`: the cosine between them, the ratio of their lengths, and what one takes. Then a run with
nothing given in each, and its loss on the same held-out tasks. CPUs gain nothing by bfloat16; on an accelerator the
times are what to look at. Omniglot needs METASTEP_DATA.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from metastep._types import MetaParams
from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact, TaskGradient, mean_over_tasks
from metastep.models import Objective
from metastep.tasks import batch_of_episodes
from metastep.train import (
    RunFolder,
    TrainConfig,
    build_model,
    evaluate_run,
    keep_freed_memory,
    load_run,
    load_tasks,
    side_by_side,
    train,
)

_PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Tasks of one kind: a usual rate, inner steps to compare, tasks of a meta-gradient, meta-steps of the run."""

    alpha: float
    inner_steps: tuple[int, ...]
    num_tasks: int
    iterations: int


_PROBLEMS = {
    "sinusoid": Problem(0.01, (1, 5), 25, 2_000),
    "omniglot": Problem(0.4, (1, 5), 16, 60),
}


@dataclasses.dataclass
class Options:
    """Compare a model in bfloat16 with the same in float32."""

    tasks: tuple[str, ...] = ("sinusoid", "omniglot")
    """Of which problems; Omniglot is 5-way 1-shot with Conv4 of 64 filters."""
    rounds: int = 5
    """How often a meta-gradient is timed; the median counts."""


def main() -> None:
    """Print both tables."""
    options = tyro.cli(Options)
    keep_freed_memory()
    print(
        "| | inner steps | cosine | length over that in float32 | float32, ms | bfloat16, ms |\n"
        "|---|---|---|---|---|---|"
    )
    for name in options.tasks:
        for steps in _PROBLEMS[name].inner_steps:
            (exact, slow), (rounded, fast) = (
                meta_gradient(name, steps, precision, options.rounds) for precision in _PRECISIONS
            )
            lengths = np.linalg.norm(exact), np.linalg.norm(rounded)
            cosine = exact @ rounded / np.prod(lengths)
            print(
                f"| {name} | {steps} | {cosine:.4f} | {lengths[1] / lengths[0]:.3f} | {1e3 * slow:.3g} | "
                f"{1e3 * fast:.3g} |",
                flush=True,
            )
    print("\n| | meta-steps | held-out loss, float32 | bfloat16 |\n|---|---|---|---|")
    for name in options.tasks:
        losses = " | ".join(f"{held_out_loss(name, precision):.4g}" for precision in _PRECISIONS)
        print(f"| {name} | {_PROBLEMS[name].iterations:,} | {losses} |", flush=True)


def meta_gradient(name: str, steps: int, precision: Any, rounds: int) -> tuple[np.ndarray, float]:
    """All its numbers in float64, and the median of what it takes in seconds."""
    problem, config = _PROBLEMS[name], TrainConfig(tasks=name, precision=precision)
    tasks = load_tasks(config)
    model = build_model(config, tasks.description)
    objective = Objective.of(model.apply, tasks.description["kind"])
    episodes = batch_of_episodes(tasks.splits.train, jax.random.key(1), problem.num_tasks)
    meta = MetaParams(model.init(jax.random.key(0)), jnp.asarray(problem.alpha))
    together = side_by_side(model, None)

    @jax.jit
    def compute(meta, episodes):
        rule = TaskGradient(
            Exact(), objective, GradientAdapter(steps), lambda meta: meta.rates, meta
        )
        return mean_over_tasks(rule, episodes, together)[1]

    found, seconds = jax.block_until_ready(compute(meta, episodes)), []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(compute(meta, episodes))
        seconds.append(time.perf_counter() - began)
    numbers = [np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(found.params)]
    return np.concatenate(numbers), float(np.median(seconds))


def held_out_loss(name: str, precision: Any) -> float:
    """After a run with nothing given but its length."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run")
        train(
            TrainConfig(tasks=name, precision=precision, iterations=_PROBLEMS[name].iterations), run
        )
        return evaluate_run(load_run(run), num_tasks=200)[0].after.loss.mean


if __name__ == "__main__":
    main()
