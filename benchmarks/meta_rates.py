"""How loose is Fallah's step, and how good the meta edge? Both against the best beta of a grid, SGD outside.

    python benchmarks/meta_rates.py [--tasks sinusoid quadratic] [--iterations 500] [--out benchmarks/results]

At the untrained parameters: the step of the convergence theory from measured constants, and 2 / lambda_max of the
exact meta-objective. Then MAML is trained by plain SGD at multiples of the edge, all as one compiled program, and
judged on held-out tasks. Writes meta_rates.json and prints a table.
"""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import tyro

from metastep._records import write_json
from metastep.metagrad import Exact
from metastep.rates import (
    FixedRate,
    estimate_smoothness,
    fallah_step,
    make_optimizer,
    meta_edge,
)
from metastep.tasks import batch_of_episodes
from metastep.train import (
    Learner,
    TrainConfig,
    build_inner_loop,
    build_model,
    load_tasks,
    measure_rates,
    sweep,
)

FACTORS = (1 / 64, 1 / 16, 1 / 4, 1 / 2, 1.0, 2.0, 4.0)


@dataclasses.dataclass
class Options:
    """Compare Fallah's step, the meta edge and a grid of meta rates."""

    tasks: tuple[str, ...] = ("sinusoid", "quadratic")
    """Task families."""
    iterations: int = 500
    """Meta-steps of each training."""
    tasks_per_step: int = 25
    """Tasks of a meta-step."""
    edge_tasks: int = 256
    """Tasks the curvature of the meta-objective is averaged over."""
    test_tasks: int = 500
    """Held-out tasks."""
    alpha: float | None = None
    """Adaptation rate. Default: the one measured, at most 1/L, where the theory's lemmas end."""
    seed: int = 0
    """Of parameters and tasks."""
    out: Path = Path("benchmarks/results")
    """Where the JSON goes."""


def learner_of(config: TrainConfig, description: dict, alpha: float, options: Options) -> Learner:
    """MAML with plain SGD outside and a fixed alpha."""
    model = build_model(config, description)
    objective, adapter = build_inner_loop(config, model, description)
    return Learner(
        model=model,
        objective=objective,
        adapter=adapter,
        meta_gradient=Exact(),
        rate=FixedRate(alpha),
        optimizer=make_optimizer("sgd", 1.0),
        tasks_per_step=options.tasks_per_step,
        schedule="constant",
    )


def compare(name: str, options: Options) -> dict:
    """One family: the two steps, their cost, and the grid."""
    config = TrainConfig(tasks=name, seed=options.seed)
    task_set = load_tasks(config)
    advised = options.alpha or measure_rates(config, task_set).alpha_chosen
    learner = learner_of(config, task_set.description, advised, options)
    family = task_set.splits.train
    # The first of the keys that `sweep` splits a seed into: the same untrained parameters.
    params = learner.model.init(jax.random.split(jax.random.key(options.seed), 3)[0])
    key = jax.random.key(options.seed + 1)
    began = time.monotonic()
    constants = estimate_smoothness(learner.objective, params, family, key)
    alpha = options.alpha or min(advised, 1 / constants.smoothness)
    learner = dataclasses.replace(learner, rate=FixedRate(alpha))
    steps = {name: fallah_step(constants, a) for name, a in (("at_alpha", alpha), ("at_0", 0.0))}
    middle = time.monotonic()
    episodes = batch_of_episodes(family, key, options.edge_tasks)
    edge = meta_edge(
        lambda w, episode: learner.query_loss(w, episode, alpha), params, episodes, "sgd", key
    )
    ended = time.monotonic()
    rates = [steps["at_alpha"].beta, *(factor * edge.beta_max for factor in FACTORS)]
    result = sweep(
        learner,
        task_set.splits,
        None,
        rates,
        (options.seed,),
        milestones=[options.iterations],
        test_tasks=options.test_tasks,
    )
    losses, diverged = result.test_loss[0, 0, :, 0], result.diverged_at[0, :, 0]
    finite = np.where(np.isfinite(losses) & (diverged == 0), losses, np.inf)
    return {
        "tasks": name,
        "alpha": alpha,
        "advised_alpha": advised,
        "constants": dataclasses.asdict(constants) | {"gradient_norms": None},
        "fallah": {name: dataclasses.asdict(step) for name, step in steps.items()},
        "edge": dataclasses.asdict(edge),
        "seconds": {"fallah": middle - began, "edge": ended - middle, "grid": result.seconds},
        "rates": rates,
        "test_loss": losses.tolist(),
        "diverged_at": diverged.tolist(),
        "best_beta": rates[int(np.argmin(finite))],
        "best_loss": float(finite.min()),
    }


def show(row: dict) -> None:
    """One family as lines of text."""
    step, edge = row["fallah"]["at_alpha"], row["edge"]
    print(f"{row['tasks']}: alpha {row['alpha']:.4g} (advised {row['advised_alpha']:.4g})")
    print(f"  constants { {k: v for k, v in row['constants'].items() if isinstance(v, float)} }")
    print(f"  Fallah's step {step['beta']:.3g} ({step['reason']})")
    print(f"  meta edge     {edge['beta_max']:.3g} (sharpness {edge['sharpness']:.4g})")
    print(f"  best of grid  {row['best_beta']:.3g}, test loss {row['best_loss']:.4g}")
    print(f"  best / Fallah {row['best_beta'] / step['beta']:.3g}", end="   ")
    print(f"best / edge {row['best_beta'] / edge['beta_max']:.3g}")
    for rate, loss, at in zip(row["rates"], row["test_loss"], row["diverged_at"], strict=True):
        note = f"   diverged at {at}" if at else ""
        print(f"    beta {rate:9.3g}  {rate / edge['beta_max']:7.4f} edge  loss {loss:9.4g}{note}")
    print(f"  seconds { {name: round(s, 1) for name, s in row['seconds'].items()} }", flush=True)


def main() -> None:
    """Run the comparison."""
    options = tyro.cli(Options)
    rows = []
    for name in options.tasks:
        rows.append(compare(name, options))
        show(rows[-1])
        record = {"iterations": options.iterations, "families": rows}
        write_json(options.out / "meta_rates.json", record)


if __name__ == "__main__":
    main()
