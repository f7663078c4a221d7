"""Which adaptation rate trains best: the measured one, or one a few times larger or smaller, each tried in earnest.

The measured rate is the best one for the model as it is before training. Meta-training fits the model to the rate it
is trained at, and what it can be fitted to shows only by training: on Omniglot, a rate six times the measured one
makes the untrained network worse than no adaptation at all, and the trained one better.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from metastep._kept import kept_jit
from metastep.rates import RATES
from metastep.train.build import build_learner
from metastep.train.config import TrainConfig
from metastep.train.problem import TaskSet, split_keys
from metastep.train.state import HEALTHY, TrainState, initial_state
from metastep.train.step import Rows, compile_advance, without_start

# Rehearsed rates are this far apart, at most so many of them, and the next one must be better by this share and at
# this level of a one-sided test.
_FACTOR, _MOST, _MARGIN, _LEVEL = 3.0, 4, 0.01, 0.05
# All rehearsals together cost at most 4 % of a run. Where that is too short to tell rates apart, there are none.
_PART, _SHORTEST, _LONGEST = 100, 20, 200


def rehearsal_length(config: TrainConfig) -> int:
    """Meta-steps of one rehearsal: a hundredth of the run and at most 200; 0 for none, if these are less than 20."""
    takes_part = config.rate == "fixed" or RATES[config.rate].learned
    if not (
        takes_part and config.rehearse and config.alpha == "auto" and config.algorithm != "erm"
    ):
        return 0
    steps = (config.iterations or 0) // _PART
    return min(steps, _LONGEST) if steps >= _SHORTEST else 0


Announce = Callable[[str, dict[str, Any]], None]
"""Called with the name of a stage and its record."""

Trial = Callable[[float], Float[np.ndarray, " steps"]]
"""Adaptation rate -> the query loss of each of the last meta-steps of a short training at it."""


@dataclasses.dataclass(frozen=True)
class Rehearsals:
    """What was tried and what came of it.

    Attributes
    ----------
    tried : adaptation rate -> query loss after adaptation of each meta-step in the last third of its training, in the
        order of trying; infinite where it diverged
    chosen : the rate to go with
    """

    tried: dict[float, Float[np.ndarray, " steps"]]
    chosen: float

    def rows(self) -> list[dict[str, Any]]:
        """One record for each rehearsal: `alpha`, and `loss`, the mean over the meta-steps."""
        return [{"alpha": a, "loss": float(np.mean(losses))} for a, losses in self.tried.items()]


def rehearse(
    config: TrainConfig,
    task_set: TaskSet,
    alpha: float,
    meta_lr: float,
    announce: Announce = lambda stage, record: None,
) -> Rehearsals | None:
    """Short trainings at `alpha` and rates around it, uphill in steps of three until they get no better.

    Parameters
    ----------
    config : resolved options of the run; `rehearsal_length` says how long a rehearsal is
    task_set : tasks; all rehearsals start from the same parameters and see the same ones
    alpha, meta_lr : the measured rate, and the peak meta rate, which rises and falls over the rehearsal as the run's
        own schedule says
    announce : called with "rehearsal" and `alpha`, `loss`, `number`, `most`, `meta_steps` after each

    Returns
    -------
    what `climb` found; None if there is nothing to rehearse.
    """
    steps = rehearsal_length(config)
    if not steps:
        return None
    trial, numbers = rehearsal(config, task_set, alpha, meta_lr, steps), itertools.count(1)

    def announced(rate: float) -> np.ndarray:
        losses = trial(rate)
        outcome = {"alpha": rate, "loss": float(np.mean(losses)), "number": next(numbers)}
        announce("rehearsal", outcome | {"most": _MOST, "meta_steps": steps})
        return losses

    return climb(announced, alpha)


def rehearsal(
    config: TrainConfig, task_set: TaskSet, alpha: float, meta_lr: float, steps: int
) -> Trial:
    """Short trainings of `steps` meta-steps from the start, judged by their last third; one program."""
    # The very learner of the run, back-offs and all, so that the compiler's cache has the run's program ready.
    learner = build_learner(config, task_set.description, alpha, meta_lr)
    keys, advance = split_keys(config.seed), compile_advance(learner)
    start = initial_state(learner, keys["parameters"], steps)
    judged = max(steps // 3, 1)
    rate_alone = without_start(learner.rate)
    # Op by op, each would be compiled.
    scaled = kept_jit(lambda *given: rate_alone.scaled(*given))

    def train_until(state: TrainState, until: int, every: int) -> tuple[TrainState, Rows]:
        return advance.with_rows(task_set.splits.train, keys["rates"], state, until, every)[:2]

    def trial(rate: float) -> np.ndarray:
        factor = np.asarray(rate / alpha, jnp.result_type(float))
        meta, rate_state = scaled(start.meta, start.rate_state, factor)
        state = dataclasses.replace(start, meta=meta, rate_state=rate_state)
        # A row at the end of what is not judged, so that the window of the first that is judged begins there.
        done, losses = steps - judged, []
        state, rows = train_until(state, done, max(done, 1))
        while done < steps and int(state.failure) == HEALTHY:
            done = min(done + rows.room, steps)
            state, rows = train_until(state, done, 1)
            losses.extend(jax.device_get(rows).taken().window.loss.tolist())
        failed = int(state.failure) != HEALTHY or int(state.incidents.count) > 0
        return np.full(judged, math.inf) if failed else np.array(losses)

    return trial


def climb(trial: Trial, start: float) -> Rehearsals:
    """Try `start`, then three times it, or a third if that was no better, and go on in the better direction.

    Stops when the next rate is not clearly better, or after four rates. Where the first one diverges, there is only
    the way down.
    """
    tried, leader = {start: trial(start)}, start
    upwards = np.isfinite(tried[start]).all()
    for direction in (_FACTOR, 1 / _FACTOR) if upwards else (1 / _FACTOR,):
        while len(tried) < _MOST:
            rate = leader * direction
            tried[rate] = trial(rate)
            if np.isfinite(tried[leader]).all() and not clearly_better(tried[rate], tried[leader]):
                break
            leader = rate
        if leader != start:
            break
    return Rehearsals(tried, leader if np.isfinite(tried[leader]).all() else start)


def clearly_better(losses: np.ndarray, others: np.ndarray) -> bool:
    """Whether losses are lower than others on the same tasks, by 1 % and by more than their scatter explains.

    Compared meta-step by meta-step and as ratios: where tasks are heavy-tailed, the mean loss of a few meta-steps is
    that of their hardest task, and says which rate that task would like.
    """
    if not np.isfinite(losses).all() or not np.isfinite(others).all():
        return bool(np.isfinite(losses).all())
    smallest = np.finfo(float).tiny
    gains = np.log(np.maximum(others, smallest)) - np.log(np.maximum(losses, smallest))
    quantile = student_quantile(1 - _LEVEL, len(gains) - 1)
    scatter = quantile * np.std(gains, ddof=1) / math.sqrt(len(gains))
    return bool(np.mean(gains) > max(scatter, -math.log1p(-_MARGIN)))


def student_quantile(level: float, degrees: int) -> float:
    """t with P(T <= t) = level, for Student's T with whole degrees of freedom and level in [0.5, 1).

        P(|T| < t) = A(theta), theta = atan(t / sqrt(degrees))

    A is a finite series, and is solved by bisection. `scipy.special.stdtrit` is the same, but importing it would
    take a twentieth of the time in which a run starts. NaN without degrees of freedom.

    References
    ----------
    Abramowitz and Stegun (1964), equations 26.7.3 and 26.7.4, as printed.
    """
    low, high = 0.0, math.pi / 2
    while low < (theta := (low + high) / 2) < high:
        low, high = (theta, high) if _within(theta, degrees) < 2 * level - 1 else (low, theta)
    return math.sqrt(degrees) * math.tan(low) if degrees else math.nan


def _within(theta: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(theta))."""
    odd = degrees % 2
    total, term = 0.0, math.cos(theta) ** odd
    for number in range(odd, degrees - 1, 2):
        total += term
        term *= (number + 1) / (number + 2) * math.cos(theta) ** 2
    total *= math.sin(theta)
    return 2 / math.pi * (theta + total) if odd else total
