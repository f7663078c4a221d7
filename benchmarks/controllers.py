"""What becomes of alpha in training: every kind of rate beside every other, and what the model makes of a fixed one.

    python benchmarks/controllers.py [--tasks sinusoid] [--iterations 3000] [--seeds 0 1] [--out benchmarks/results]

All start from the measured alpha and the same parameters, see the same tasks and have the same outer optimiser.
For each: the held-out loss, alpha at the end, and the greedy label-aware optimum at the final parameters. If a model
fits itself to the alpha it is trained at, that optimum ends near the alpha in force, whatever it was.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from metastep._records import write_json
from metastep.rates import RATES, default_meta_lr, label_aware_terms
from metastep.tasks import batch_of_episodes
from metastep.train import (
    TrainConfig,
    advance,
    build_learner,
    initial_state,
    load_tasks,
    measure_rates,
)
from metastep.train.evaluate import compile_judge
from metastep.train.learner import mean_alpha
from metastep.train.problem import filled

FACTORS = (1 / 30, 1 / 10, 1 / 3, 3.0)


@dataclasses.dataclass
class Options:
    """Compare the kinds of rates."""

    tasks: str = "sinusoid"
    """A synthetic family or a path."""
    steps: int | None = None
    """Inner steps."""
    iterations: int = 3_000
    """Meta-steps of each run."""
    seeds: tuple[int, ...] = (0, 1)
    """One comparison each."""
    test_tasks: int = 2_000
    """Held-out tasks."""
    out: Path = Path("benchmarks/results")
    """Where the JSON goes."""


def run(options: Options, kind: str, factor: float, seed: int) -> dict:
    """One training, judged at its end."""
    config = TrainConfig(tasks=options.tasks, steps=options.steps, seed=seed)
    task_set = load_tasks(config)
    config = filled(config, task_set.description)
    start = factor * measure_rates(config, task_set).alpha_chosen
    meta_lr, _ = default_meta_lr(config.optimizer, options.iterations)
    learner = build_learner(
        dataclasses.replace(config, rate=kind), task_set.description, start, meta_lr
    )
    keys = jax.random.split(jax.random.key(seed), 4)
    train = jax.jit(
        lambda family, state: advance(
            learner, family, keys[1], state, jnp.asarray(options.iterations)
        )
    )
    state = train(task_set.splits.train, initial_state(learner, keys[0], options.iterations))
    alpha = learner.rate.alpha(state.meta, state.rate_state)
    judge = compile_judge(learner, learner.adapter.steps, options.test_tasks)
    losses = np.asarray(judge(state.meta.params, alpha, task_set.splits.test, keys[2]).losses)[
        :, -1
    ]
    episodes = batch_of_episodes(task_set.splits.test, keys[3], 1_000)
    terms = jax.vmap(lambda e: label_aware_terms(learner.objective, state.meta.params, e))(episodes)
    row = {
        "kind": kind, "start": start, "seed": seed, "loss": float(losses.mean()),
        "ci95": float(1.96 * losses.std() / len(losses) ** 0.5),
        "alpha": float(mean_alpha(learner, state.meta, state.rate_state)),
        "greedy": float(terms.slope.sum() / terms.curvature.sum()),
        "incidents": int(state.incidents.count), "failed": int(state.failure),
    }  # fmt: skip
    print(
        f"seed {seed}  {kind:15s} start {start:8.4g}  end {row['alpha']:8.4g}  greedy optimum {row['greedy']:8.4g}  "
        f"loss {row['loss']:.4f} ± {row['ci95']:.4f}", flush=True,
    )  # fmt: skip
    return row


def main() -> None:
    """Every kind from the measured alpha, then fixed ones around it."""
    options = tyro.cli(Options)
    cells = [(kind, 1.0) for kind in RATES] + [("fixed", factor) for factor in FACTORS]
    rows = [run(options, kind, factor, seed) for seed in options.seeds for kind, factor in cells]
    name = Path(options.tasks).stem + (f"_{options.steps}" if options.steps else "")
    write_json(
        options.out / f"controllers_{name}.json",
        {"iterations": options.iterations, "tasks": options.tasks, "rows": rows},
    )


if __name__ == "__main__":
    main()
