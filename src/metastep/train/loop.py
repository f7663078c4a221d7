"""The training loop: dispatch compiled meta-steps, and between dispatches log, validate, save, listen."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from metastep._errors import DivergenceError
from metastep.tasks import TaskSplits
from metastep.train.checkpoint import Checkpoints
from metastep.train.crew import ALONE, Crew
from metastep.train.devices import local, replicate
from metastep.train.evaluate import compile_judge
from metastep.train.journal import Journal, Observer, latest
from metastep.train.learner import Learner, mean_alpha
from metastep.train.sharpness import EdgeWatch
from metastep.train.state import (
    HEALTHY,
    INNER_LOOP,
    TrainState,
    current_meta_lr,
    with_validation,
)
from metastep.train.step import compile_advance

# A dispatch lasts about this long: short enough for a live display and a prompt Ctrl-C, long enough that the
# host's work between two of them does not show.
_DISPATCH_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run is, and every how many meta-steps something happens."""

    iterations: int
    log_every: int
    eval_every: int
    eval_tasks: int
    checkpoint_seconds: float

    def next_stop(self, iteration: int, rows: int) -> int:
        """The next iteration at which the loop has something to do: a validation, or so many rows to write."""
        row = self.window(iteration)
        stops = (multiple_after(iteration, self.eval_every), (iteration // row + rows) * row)
        last_whole = self.iterations - self.iterations % self.log_every
        return min(self.iterations, *stops, last_whole if iteration < last_whole else stops[0])

    def window(self, iteration: int) -> int:
        """The next row of metrics ends at a multiple of this: the last one of a run may be a short one."""
        is_short = multiple_after(iteration, self.log_every) > self.iterations
        return self.iterations if is_short else self.log_every


def multiple_after(iteration: int, every: int) -> int:
    """The first multiple of `every` that is yet to come."""
    return iteration - iteration % every + every


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    status : "finished" or "interrupted"
    state : the last state
    steps_per_second : meta-steps per second of training, compilation and validation left out
    """

    status: str
    state: TrainState
    steps_per_second: float


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a question the loop asks; a second Ctrl-C interrupts at once."""
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    watched = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, ask) for number in watched]
    except ValueError:  # not the main thread: signals are somebody else's
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)


class Pace:
    """How many meta-steps fill a dispatch, and how fast the run is without its first, compiling dispatch."""

    def __init__(self) -> None:
        self.steps, self.seconds, self.dispatches = 0, 0.0, 0

    def dispatch_size(self) -> int:
        """One step to begin with, then as many as take the time of a dispatch."""
        if not self.steps:
            return 1
        return max(1, math.floor(_DISPATCH_SECONDS * self.per_second))

    def add(self, steps: int, seconds: float) -> None:
        """Take note of a dispatch."""
        if self.dispatches:
            self.steps, self.seconds = self.steps + steps, self.seconds + seconds
        self.dispatches += 1

    @property
    def per_second(self) -> float:
        """Meta-steps per second so far; 0 while unknown."""
        return self.steps / self.seconds if self.seconds > 0 else 0.0


def run_loop(
    learner: Learner,
    splits: TaskSplits,
    state: TrainState,
    schedule: Schedule,
    keys: dict[str, PRNGKeyArray],
    checkpoints: Checkpoints,
    observer: Observer,
    watch: EdgeWatch | None = None,
    crew: Crew = ALONE,
) -> Outcome:
    """Train from `state` to the end of the schedule, a stop request or divergence.

    Raises
    ------
    DivergenceError
        When a meta-step leaves the finite numbers; the last checkpoint is from before that.
    """
    advance, mesh = compile_advance(learner), learner.mesh
    train_tasks, training_key = replicate(mesh, (splits.train, keys["training"]))
    validate = validator(learner, splits, keys["validation"], schedule.eval_tasks)
    pace, journal = Pace(), Journal(learner, state, schedule.log_every, observer)
    iteration, room = int(state.iteration), 1
    # The first checkpoint can wait for the first dispatch: until then, a run begins anew as it began.
    saved_at, patience = time.monotonic(), schedule.checkpoint_seconds if iteration else 0.0
    observer.start(iteration, schedule.iterations)
    with stop_requests() as stop_requested:
        while iteration < schedule.iterations:
            save_due = pace.dispatches > 0 and time.monotonic() - saved_at > patience
            stop, steps, save = crew.agree(stop_requested(), pace.dispatch_size(), save_due)
            if stop:
                break
            if save:
                checkpoints.save(iteration, local(mesh, state))
                saved_at, patience = time.monotonic(), schedule.checkpoint_seconds
            until = min(schedule.next_stop(iteration, room), iteration + steps)
            bounds = until, schedule.window(iteration)
            before, began = state, time.monotonic()
            state, ended, now = jax.block_until_ready(
                advance.with_rows(train_tasks, training_key, *replicate(mesh, (state, *bounds)))
            )
            pace.add(until - iteration, time.monotonic() - began)
            ended, now = jax.device_get((ended, now))
            rows, room = ended.taken(), ended.room
            journal.add(state, rows, pace.per_second, iteration, began)
            if pace.dispatches == 1 and int(state.failure) != HEALTHY:
                checkpoints.save(iteration, local(mesh, before))
            check_health(learner, state)
            iteration = until
            observer.progress(iteration, latest(learner, rows, now, pace.per_second))
            if iteration % schedule.eval_every == 0 or iteration == schedule.iterations:
                validation = validate(state)
                observer.rows([{"iteration": iteration, "validation": validation}])
                state = with_validation(state, score(validation))
                if watch is not None:
                    state, edge = watch(local(mesh, state))
                    observer.rows([{"iteration": iteration, "edge": edge}])
    state = local(mesh, state)
    checkpoints.save(iteration, state)
    status = "finished" if iteration >= schedule.iterations else "interrupted"
    return Outcome(status, state, pace.per_second)


def validator(learner: Learner, splits: TaskSplits, key: PRNGKeyArray, num_tasks: int):
    """state -> mean validation figures, always on the same tasks."""
    judge = compile_judge(learner, learner.adapter.steps, num_tasks)
    tasks, key = replicate(learner.mesh, (splits.validation, key))

    def validate(state: TrainState) -> dict[str, float]:
        alpha = learner.rate.alpha(state.meta, state.rate_state)
        found = judge(*replicate(learner.mesh, (state.meta.params, alpha)), tasks, key)
        found = jax.device_get(found)
        names = {"loss": found.losses}
        if learner.objective.metric is not None:
            names["accuracy"] = found.metrics
        result = {}
        for name, values in names.items():
            result |= {
                name: float(values[:, -1].mean()),
                f"{name}_before": float(values[:, 0].mean()),
            }
        if halved := np.count_nonzero(found.halvings[:, -1]):
            result["halved"] = halved
        return result

    return validate


def score(validation: dict[str, float]) -> float:
    """What the best state is chosen by: accuracy, or minus the loss where there is none."""
    return validation.get("accuracy", -validation["loss"])


def check_health(learner: Learner, state: TrainState) -> None:
    """Raise a `DivergenceError` that names the loop and the rate, if a step failed."""
    failure = int(state.failure)
    if failure == HEALTHY:
        return
    rate = float(mean_alpha(learner, state.meta, state.rate_state))
    iteration, meta_lr = int(state.iteration) + 1, current_meta_lr(state)
    mended = int(state.incidents.count)
    after = f" after {mended} back-offs" if mended else ""
    if failure == INNER_LOOP:
        raise DivergenceError(
            f"meta-training diverged at iteration {iteration}{after}: the inner loop left the finite numbers "
            f"although the meta-parameters were still good; lower --alpha, now {rate:.3g}"
        )
    raise DivergenceError(
        f"meta-training diverged at iteration {iteration}{after}: the outer loop drove the meta-parameters away "
        f"before any adaptation; lower --meta-lr, now {meta_lr:.3g}"
    )
