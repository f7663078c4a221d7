"""Training over the whole (alpha, beta) plane, beside the limits that curvature predicts for it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from metastep._compiler import TunedJit
from metastep._errors import check_count, check_positive
from metastep._types import Params
from metastep.rates import FixedRate, make_optimizer
from metastep.tasks import TaskSplits
from metastep.train.choose import choose_meta_lr
from metastep.train.config import ProblemConfig, TrainConfig
from metastep.train.edges import plain_learner, predict_limits
from metastep.train.learner import Learner
from metastep.train.problem import TaskSet, starting_parameters
from metastep.train.sweep import Progress, sweep

# Half decades and thereabouts: cells are coarse enough to be seen, and the plane spans three decades each way.
_ALPHA_STEP, _BETA_STEP = 10**0.375, 10**0.5


def log_grid(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` rates from `low` to `high`, each the same multiple of the one before."""
    return tuple(float(f"{rate:.3g}") for rate in np.geomspace(low, high, count))


def grid_around(centre: float, factor: float, count: int, below: int) -> tuple[float, ...]:
    """`count` rates, each `factor` times the one before, with `centre` after `below` of them."""
    return tuple(centre * factor**k for k in range(-below, count - below))


def train_plane(
    learner: Learner,
    splits: TaskSplits,
    start: Params,
    alphas: tuple[float, ...],
    betas: tuple[float, ...],
    *,
    iterations: int,
    seed: int = 0,
    keep: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Train at every pair of rates, all from `start` and on the same tasks.

    Parameters
    ----------
    learner : with the outer optimiser of the map; its own rates are not used
    splits : tasks; those of `train` are trained on
    start : parameters every training begins at
    alphas, betas : adaptation and meta rates
    iterations : meta-steps of each training
    seed : of the tasks
    keep : folder that a killed map goes on from, see `sweep`
    progress : called with (meta-steps done, meta-steps in all)

    Returns
    -------
    `alphas`, `betas`, `iterations`, `seconds`; `train_loss`, (alphas, betas), the loss after adaptation over the
    last tenth of the training, NaN where it diverged; `diverged_at`, the meta-step at which it did, 0 for none.
    """
    model = dataclasses.replace(learner.model, init=lambda key: start)
    learner = dataclasses.replace(learner, model=model, rate=FixedRate(1.0), schedule="constant")
    found = sweep(
        learner,
        splits,
        alphas,
        betas,
        (seed,),
        milestones=(iterations,),
        test_tasks=0,
        window=max(1, iterations // 10),
        keep=keep,
        progress=progress,
    )
    loss = found.train_loss[0, :, :, 0]
    return {
        "alphas": list(alphas),
        "betas": list(betas),
        "train_loss": np.where(np.isfinite(loss), loss, np.nan).tolist(),
        "diverged_at": found.diverged_at[:, :, 0].tolist(),
        "iterations": iterations,
        "seconds": found.seconds,
    }


def rate_map(
    learner: Learner,
    splits: TaskSplits,
    start: Params,
    alpha: float,
    meta_lr: float,
    *,
    optimizer: str = "sgd",
    cells: tuple[int, int] = (9, 7),
    iterations: int = 100,
    edge_tasks: int = 32,
    lanczos: int = 20,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """The (alpha, beta) plane around a pair of rates: where training works, and where it should by prediction.

    Parameters
    ----------
    learner : model, loss, inner loop and meta-gradient; its rate and optimiser are replaced
    splits : tasks
    start : parameters every training begins at, and the curvatures are measured at
    alpha, meta_lr : the chosen rates; alpha is a column of the grid, beta_c there a row, and meta_lr within it
    optimizer : outer optimiser, a name in `rates.OPTIMIZERS`
    cells : number of alphas and of betas
    iterations, seed, progress : of the trainings, see `train_plane`
    edge_tasks, lanczos : tasks and Lanczos steps of the predicted limits

    Returns
    -------
    The records of `train_plane`, and `optimizer`; `chosen` {`alpha`, `beta`}; `highest_loss`, that of `start` on
    the same kind of tasks without adaptation, which a training that works stays below; `predicted`
    {`start`: see `predict_limits`}. `report.rate_map.map_figure` draws them.

    Raises
    ------
    InputError
        When a rate is not above 0, a count is below 1 or the curvature at `start` is not finite.

    References
    ----------
    Takagi et al., figure 4.
    """
    for name, value in (("alpha", alpha), ("meta_lr", meta_lr)):
        check_positive(name, value)
    for name, count in (("cells", min(cells)), ("iterations", iterations)):
        check_count(name, count)
    outer = make_optimizer(optimizer, meta_lr)
    learner = dataclasses.replace(learner, optimizer=outer, meta_lr=meta_lr)
    alphas = grid_around(alpha, _ALPHA_STEP, cells[0], cells[0] // 2)
    edge_key, loss_key = jax.random.split(jax.random.key(seed))
    predicted = predict_limits(
        learner, splits, start, alphas, edge_key,
        optimizer=optimizer, num_tasks=edge_tasks, lanczos=lanczos,
    )  # fmt: skip
    betas = _betas(predicted["beta_c"][cells[0] // 2], meta_lr, cells[1])
    plane = train_plane(
        learner, splits, start, alphas, betas, iterations=iterations, seed=seed, progress=progress
    )
    return plane | {
        "optimizer": optimizer,
        "chosen": {"alpha": alpha, "beta": meta_lr},
        "highest_loss": _loss_without_adaptation(learner, splits, start, loss_key),
        "predicted": {"start": predicted},
    }


def map_of_problem(
    config: ProblemConfig,
    task_set: TaskSet,
    alpha: float,
    *,
    optimizer: str = "sgd",
    iterations: int | None = None,
    cells: tuple[int, int] | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """`rate_map` of the tasks, model and algorithm of a configuration, around the rates that training would use.

    Parameters
    ----------
    config, task_set : tasks, model and algorithm
    alpha : the chosen adaptation rate
    optimizer : outer optimiser; its meta rate is the one that `meta_lr="auto"` stands for
    iterations, cells : 100 meta-steps at 9 x 7 pairs of rates; for images, which take much longer on a CPU, 20 at
        5 x 4, of 4 tasks each
    progress : called with (meta-steps done, meta-steps in all)
    """
    images = task_set.description["images"]
    given: Any = {f.name: getattr(config, f.name) for f in dataclasses.fields(ProblemConfig)}
    meta_lr, reason = choose_meta_lr(TrainConfig(**given, optimizer=optimizer), task_set, alpha)  # type: ignore[arg-type]
    learner = plain_learner(
        config, task_set, alpha, meta_lr, optimizer=optimizer, tasks_per_step=4 if images else None
    )
    sizes: Any = {"edge_tasks": 4, "lanczos": 10} if images else {}
    found = rate_map(
        learner,
        task_set.splits,
        starting_parameters(learner.model, config.seed),
        alpha,
        meta_lr,
        optimizer=optimizer,
        cells=cells or ((5, 4) if images else (9, 7)),
        iterations=iterations or (20 if images else 100),
        seed=config.seed,
        progress=progress,
        **sizes,
    )
    return found | {"tasks_per_step": learner.tasks_per_step, "meta_lr_reason": reason}


def _betas(edge: float, meta_lr: float, count: int) -> tuple[float, ...]:
    """Two decades below the predicted edge and one above, moved or widened to hold the chosen meta rate."""
    if not math.isfinite(edge):
        return grid_around(meta_lr, _BETA_STEP, count, count // 2)
    grid = grid_around(edge, _BETA_STEP, count, 2 * count // 3)
    if count < 2 or grid[0] < meta_lr < grid[-1]:
        return grid
    return log_grid(min(grid[0], meta_lr / 2), max(grid[-1], 2 * meta_lr), count)


def _loss_without_adaptation(
    learner: Learner, splits: TaskSplits, start: Params, key: PRNGKeyArray, num_tasks: int = 128
) -> float:
    @TunedJit
    def compute(family, params: Params) -> Array:
        def one(task_key: PRNGKeyArray) -> Array:
            return learner.objective(params, family.sample(task_key).query)

        width = learner.tasks_at_once or num_tasks
        return jnp.mean(jax.lax.map(one, jax.random.split(key, num_tasks), batch_size=width))

    return float(compute(splits.train, start))
