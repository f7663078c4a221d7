"""The training loop: dispatch compiled meta-steps, and between dispatches log, validate, save, listen."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from metastep._errors import DivergenceError
from metastep.tasks import TaskSplits
from metastep.train.checkpoint import Checkpoints
from metastep.train.crew import ALONE, Crew
from metastep.train.devices import local, replicate
from metastep.train.evaluate import compile_judge
from metastep.train.guard import incident_rows
from metastep.train.learner import Learner, mean_alpha, rates_in_force
from metastep.train.sharpness import EdgeWatch
from metastep.train.state import (
    HEALTHY,
    INNER_LOOP,
    TrainState,
    current_meta_lr,
    next_window,
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

    def next_stop(self, iteration: int) -> int:
        """The next iteration at which the loop has something to do."""
        stops = [
            iteration - iteration % every + every for every in (self.log_every, self.eval_every)
        ]
        return min(self.iterations, *stops)


class Observer(Protocol):
    """Whoever watches a run; every method may be a no-op."""

    def start(self, iteration: int, total: int) -> None:
        """Before the first dispatch: where the run stands, and how long it is."""

    def progress(self, iteration: int, figures: dict[str, float]) -> None:
        """After each dispatch: running means of the current window."""

    def row(self, row: dict[str, Any]) -> None:
        """A row of metrics, in order of iteration."""


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
        self.steps, self.seconds, self._compiled = 0, 0.0, False

    def dispatch_size(self) -> int:
        """One step to begin with, then as many as take the time of a dispatch."""
        if not self.steps:
            return 1
        return max(1, math.floor(_DISPATCH_SECONDS * self.per_second))

    def add(self, steps: int, seconds: float) -> None:
        """Take note of a dispatch."""
        if self._compiled:
            self.steps, self.seconds = self.steps + steps, self.seconds + seconds
        self._compiled = True

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
    rates_now = jax.jit(partial(rates_in_force, learner))
    pace, saved_at, started = Pace(), time.monotonic(), time.monotonic()
    iteration = int(state.iteration)
    # Incidents are written with the rows of metrics, so those since the last row are still to come.
    reported = len(
        [r for r in incident_rows(state) if r["iteration"] <= last_row(iteration, schedule)]
    )
    observer.start(iteration, schedule.iterations)
    checkpoints.save(iteration, state)  # whatever comes, there is something to go on from
    with stop_requests() as stop_requested:
        while iteration < schedule.iterations:
            save_due = time.monotonic() - saved_at > schedule.checkpoint_seconds
            stop, steps, save = crew.agree(stop_requested(), pace.dispatch_size(), save_due)
            if stop:
                break
            if save:
                checkpoints.save(iteration, local(mesh, state))
                saved_at = time.monotonic()
            until = min(schedule.next_stop(iteration), iteration + steps)
            began = time.monotonic()
            state = jax.block_until_ready(
                advance(train_tasks, training_key, *replicate(mesh, (state, jnp.asarray(until))))
            )
            pace.add(until - iteration, time.monotonic() - began)
            check_health(learner, state)
            iteration = until
            alphas = np.asarray(rates_now(state.meta, state.rate_state))
            means = figures(learner, state, pace, alphas)
            observer.progress(iteration, means)
            if iteration % schedule.log_every == 0 or iteration == schedule.iterations:
                seconds = {"seconds": round(time.monotonic() - started, 3)}
                observer.row({"iteration": iteration} | means | spread_of_alpha(alphas) | seconds)
                for incident in incident_rows(state, reported):
                    observer.row({"iteration": iteration, "incident": incident})
                reported, state = int(state.incidents.count), next_window(state)
            if iteration % schedule.eval_every == 0 or iteration == schedule.iterations:
                validation = validate(state)
                observer.row({"iteration": iteration, "validation": validation})
                state = with_validation(state, score(validation))
                if watch is not None:
                    state, edge = watch(local(mesh, state))
                    observer.row({"iteration": iteration, "edge": edge})
    state = local(mesh, state)
    checkpoints.save(iteration, state)
    status = "finished" if iteration >= schedule.iterations else "interrupted"
    return Outcome(status, state, pace.per_second)


def last_row(iteration: int, schedule: Schedule) -> int:
    """The iteration of the last row of metrics."""
    return iteration - iteration % schedule.log_every


def figures(
    learner: Learner, state: TrainState, pace: Pace, alphas: np.ndarray
) -> dict[str, float]:
    """Means over the current window, and the rates in force, for the progress bar and the metrics file."""
    window = jax.device_get(state.window)
    count = max(int(window.steps), 1)
    means = {
        "loss": float(window.loss) / count,
        "loss_before": float(window.loss_before) / count,
        "accuracy": float(window.metric) / count if learner.objective.metric else math.nan,
        "alpha": geometric_mean(alphas),
        "meta_lr": current_meta_lr(state) or math.nan,
        "grad_norm": float(window.gradient_norm) / count,
        "steps_per_second": round(pace.per_second, 3),
    }
    return {name: value for name, value in means.items() if not math.isnan(value)}


def geometric_mean(alphas: np.ndarray) -> float:
    """As `learner.mean_alpha`: 0 if one of them is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.exp(np.mean(np.log(alphas))))


def spread_of_alpha(alphas: np.ndarray) -> dict[str, float]:
    """Where nine tenths of the rates lie, when there is more than one."""
    if alphas.size < 2:
        return {}
    low, high = np.quantile(alphas, [0.05, 0.95])
    return {"alpha_low": float(low), "alpha_high": float(high)}


def validator(learner: Learner, splits: TaskSplits, key: PRNGKeyArray, num_tasks: int):
    """state -> mean validation figures, always on the same tasks."""
    judge = compile_judge(learner, learner.adapter.steps, num_tasks)
    tasks, key = replicate(learner.mesh, (splits.validation, key))

    def validate(state: TrainState) -> dict[str, float]:
        alpha = learner.rate.alpha(state.meta, state.rate_state)
        judged = judge(*replicate(learner.mesh, (state.meta.params, alpha)), tasks, key)
        losses, metrics = (np.asarray(values) for values in judged)
        result = {"loss": float(losses[:, -1].mean()), "loss_before": float(losses[:, 0].mean())}
        if learner.objective.metric is not None:
            result["accuracy"] = float(metrics[:, -1].mean())
            result["accuracy_before"] = float(metrics[:, 0].mean())
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
