"""Which adaptation rate trains best: the measured one, or one a few times larger or smaller, each tried in earnest.

The measured rate is the best one for the model as it is before training. Meta-training fits the model to the rate it
is trained at, and what it can be fitted to shows only by training: on Omniglot, a rate six times the measured one
makes the untrained network worse than no adaptation at all, and the trained one better.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from metastep.train.build import build_learner
from metastep.train.config import TrainConfig
from metastep.train.problem import TaskSet, split_keys
from metastep.train.state import HEALTHY, TrainState, Window, initial_state
from metastep.train.step import compile_advance

# Rehearsed rates are this far apart, at most so many of them, and the next one must be better by this share.
_FACTOR, _MOST, _MARGIN = 3.0, 4, 0.01
# Shorter runs than this are over before a rehearsal would pay.
_SHORTEST_RUN = 200
_LONGEST = 200
_REHEARSED = ("meta-sgd", "per-layer", "learned", "fixed")


def rehearsal_length(config: TrainConfig) -> int:
    """Meta-steps of one rehearsal: a hundredth of the run, at least 20 and at most 200; 0 for none."""
    iterations = config.iterations or 0
    takes_part = config.rehearse and config.rate in _REHEARSED and config.algorithm != "erm"
    if not takes_part or config.alpha != "auto" or iterations < _SHORTEST_RUN:
        return 0
    return min(max(iterations // 100, 20), _LONGEST)


def rehearse(
    config: TrainConfig, task_set: TaskSet, alpha: float, meta_lr: float
) -> list[dict[str, Any]]:
    """Short trainings at `alpha` and rates around it, uphill in steps of three until they get worse.

    Parameters
    ----------
    config : resolved options of the run; `rehearsal_length` says how long a rehearsal is
    task_set : tasks; all rehearsals start from the same parameters and see the same ones
    alpha, meta_lr : the measured rate, and the peak meta rate, which rises and falls over the rehearsal as the run's
        own schedule says

    Returns
    -------
    one record for each rehearsal, in the order of trying: `alpha`, and `loss`, the mean query loss after adaptation
    over its last third (infinite where it diverged). Empty if there is nothing to rehearse.
    """
    steps = rehearsal_length(config)
    if not steps:
        return []
    losses = climb(rehearsal(config, task_set, alpha, meta_lr, steps), alpha)
    return [{"alpha": rate, "loss": loss} for rate, loss in losses.items()]


def rehearsal(
    config: TrainConfig, task_set: TaskSet, alpha: float, meta_lr: float, steps: int
) -> Callable[[float], float]:
    """Adaptation rate -> mean query loss over the last third of `steps` meta-steps from the start; one program."""
    # The very learner of the run, back-offs and all, so that the compiler's cache has the run's program ready.
    learner = build_learner(config, task_set.description, alpha, meta_lr)
    keys, advance = split_keys(config.seed), compile_advance(learner)
    start = initial_state(learner, keys["parameters"], steps)

    def train_until(state: TrainState, until: int) -> TrainState:
        return advance(task_set.splits.train, keys["rates"], state, jnp.asarray(until))

    def loss_at(rate: float) -> float:
        factor = jnp.asarray(rate / alpha, float)
        meta, rate_state = learner.rate.scaled(start.meta, start.rate_state, factor)
        state = dataclasses.replace(start, meta=meta, rate_state=rate_state)
        settled = train_until(state, steps - max(steps // 3, 1))
        end = train_until(dataclasses.replace(settled, window=Window.empty()), steps)
        failed = int(end.failure) != HEALTHY or int(end.incidents.count) > 0
        return math.inf if failed else float(end.window.loss) / int(end.window.steps)

    return loss_at


def climb(loss_at: Callable[[float], float], start: float) -> dict[float, float]:
    """Losses at `start`, then at three times it, or a third if that was no better, and on in the better direction.

    Stops when the next rate is not better by 1 %, or after four rates. Where the first one diverges, there is only
    the way down.
    """
    losses = {start: loss_at(start)}

    def better(rate: float) -> bool:
        so_far = min(losses.values())
        losses[rate] = loss_at(rate)
        return losses[rate] < (1 - _MARGIN) * so_far or math.isinf(so_far)

    diverges = math.isinf(losses[start])
    for direction in (1 / _FACTOR,) if diverges else (_FACTOR, 1 / _FACTOR):
        rate = start * direction
        while len(losses) < _MOST and better(rate):
            rate *= direction
        if best(losses) != start:
            break
    return losses


def best(losses: dict[float, float]) -> float:
    """The rate to go with: that of the lowest loss, the first one tried unless another is better by 1 %."""
    first = next(iter(losses))
    lowest = min(losses, key=losses.__getitem__)
    return lowest if losses[lowest] < (1 - _MARGIN) * losses[first] else first
