"""How unlike the meta-gradients of tasks are: what is there for `--clip-tasks` to cut?

    python benchmarks/task_lengths.py [--families "sinusoid, 20 inner steps" ...] [--iterations 100]

Trains by default, and looks at the tasks of 20 meta-steps at the start of the run, in its middle and at its end: how
long the longest meta-gradient of a meta-step is, in median ones; its share of the length of the uncut mean (100 %:
all of it; 100 % / tasks: all are alike); and the share of tasks that three times the median cuts. Medians over
meta-steps. Omniglot needs METASTEP_DATA.
"""

import dataclasses
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from metastep._trees import norm
from metastep.metagrad import TaskGradient, mean_over_tasks
from metastep.tasks import batch_of_episodes
from metastep.train import build_learner, choose_rates
from metastep.train.learner import Learner
from metastep.train.state import TrainState, initial_state
from metastep.train.step import compile_advance
from zero_tuning import load
from zero_tuning_families import FAMILIES

_META_STEPS = 20


@dataclasses.dataclass
class Options:
    """Look at the lengths of meta-gradients."""

    families: tuple[str, ...] = (
        "sinusoid",
        "sinusoid, 5 inner steps",
        "sinusoid, 20 inner steps",
        "quadratic",
        "sensors",
        "outliers",
        "clusters",
        "omniglot 5-way MAML",
    )
    """Of the benchmark of zero tuning."""
    iterations: int = 100
    """Length of the run."""
    seed: int = 0
    """Of tasks and parameters."""


def lengths(learner: Learner, family, state: TrainState, key) -> np.ndarray:
    """(meta-steps, 3): longest over median length, its share of the mean's, share of tasks cut at 3 medians."""

    @jax.jit
    def of_step(key):
        tasks = TaskGradient(
            learner.meta_gradient,
            learner.objective,
            learner.adapter,
            lambda meta: learner.rate.alpha(meta, state.rate_state),
            state.meta,
            jnp.asarray(jnp.inf),
        )
        episodes = batch_of_episodes(family, key, learner.tasks_per_step)
        outcomes, mean = mean_over_tasks(tasks, episodes, learner.tasks_at_once)
        return outcomes.length, norm(mean)

    found = [of_step(key) for key in jax.random.split(key, _META_STEPS)]
    each, means = (np.array(values) for values in zip(*found, strict=True))
    median, longest = np.median(each, axis=1), each.max(axis=1)
    share = np.minimum(longest / learner.tasks_per_step / means, 1)
    return np.stack([longest / median, share, np.mean(each > 3 * median[:, None], axis=1)], axis=1)


def main() -> None:
    """Print a row for each family and time."""
    options = tyro.cli(Options)
    print(
        "| family | meta-step | longest, in medians | its share of the mean | cut at 3 |\n|---|---|---|---|---|"
    )
    for name in options.families:
        with tempfile.TemporaryDirectory() as folder:
            config, tasks = load(FAMILIES[name], options.seed, Path(folder))
            config = dataclasses.replace(config, iterations=options.iterations)
            rates = choose_rates(config, tasks)
        learner = build_learner(config, tasks.description, rates["alpha_chosen"], rates["meta_lr"])
        start, training, looking = jax.random.split(jax.random.key(options.seed), 3)
        state, advance = initial_state(learner, start, options.iterations), compile_advance(learner)
        for until in (0, options.iterations // 2, options.iterations):
            state = advance(tasks.splits.train, training, state, jnp.asarray(until))
            longest, share, cut = np.median(
                lengths(learner, tasks.splits.train, state, looking), axis=0
            )
            print(f"| {name} | {until} | {longest:.1f} | {share:.0%} | {cut:.0%} |", flush=True)


if __name__ == "__main__":
    main()
