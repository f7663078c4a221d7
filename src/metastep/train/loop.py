"""The training loop: dispatch compiled meta-steps, and between dispatches log, validate, save, listen."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from metastep._errors import DivergenceError
from metastep.rates.trend import FLAT
from metastep.tasks import TaskSplits
from metastep.train.checkpoint import Checkpoints
from metastep.train.crew import ALONE, Crew
from metastep.train.devices import local, replicate
from metastep.train.evaluate import compile_judge
from metastep.train.guard import incident_rows
from metastep.train.learner import Learner, mean_alpha
from metastep.train.sharpness import EdgeWatch
from metastep.train.state import (
    HEALTHY,
    INNER_LOOP,
    TrainState,
    current_meta_lr,
    with_validation,
)
from metastep.train.step import Row, compile_advance

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


class Observer(Protocol):
    """Whoever watches a run; every method may be a no-op."""

    def start(self, iteration: int, total: int) -> None:
        """Before the first dispatch: where the run stands, and how long it is."""

    def progress(self, iteration: int, figures: dict[str, float]) -> None:
        """After each dispatch: running means of the current window."""

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """The rows of metrics since the last call, in order of iteration."""


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
    pace, started = Pace(), time.monotonic()
    iteration, room = int(state.iteration), 1
    # The first checkpoint can wait for the first dispatch: until then, a run begins anew as it began.
    saved_at, patience = started, schedule.checkpoint_seconds if iteration else 0.0
    # Incidents are written with the rows of metrics, so those since the last row are still to come.
    reported = len(
        [r for r in incident_rows(state) if r["iteration"] <= last_row(iteration, schedule)]
    )
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
            if len(rows.iteration):
                span = (iteration, began - started), (until, time.monotonic() - started)
                records = timed(described(learner, rows, pace), *span)
                remarked = with_remarks(learner, state, records, rows.incidents, reported, schedule)
                observer.rows(list(remarked))
                reported = rows.incidents[-1]
            if pace.dispatches == 1 and int(state.failure) != HEALTHY:
                checkpoints.save(iteration, local(mesh, before))
            check_health(learner, state)
            iteration = until
            observer.progress(iteration, latest(learner, rows, now, pace))
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


def last_row(iteration: int, schedule: Schedule) -> int:
    """The iteration of the last row of metrics."""
    return iteration - iteration % schedule.log_every


def timed(
    records: list[dict[str, Any]], began: tuple[int, float], ended: tuple[int, float]
) -> Iterator[dict[str, Any]]:
    """The records of a dispatch with the seconds at which each ended, between those of its first and last step."""
    (first, start), (last, end) = began, ended
    for record in records:
        share = (record["iteration"] - first) / (last - first)
        yield record | {"seconds": round(start + share * (end - start), 3)}


def with_remarks(
    learner: Learner,
    state: TrainState,
    records: Iterable[dict[str, Any]],
    incidents: Sequence[int],
    reported: int,
    schedule: Schedule,
) -> Iterator[dict[str, Any]]:
    """Each record, followed by rows that say what happened in its window: incidents, and the meta rate's fall.

    Parameters
    ----------
    incidents : how many there were in all when each record ended
    reported : how many have had their row
    """
    flat = int(state.trend.flat_since) if learner.schedule == "until-flat" else -1
    for record, count in zip(records, incidents, strict=True):
        iteration = record["iteration"]
        yield record
        if count > reported:
            for incident in incident_rows(state, reported)[: count - reported]:
                yield {"iteration": iteration, "incident": incident}
            reported = count
        if last_row(iteration - 1, schedule) < flat <= iteration:
            yield {"iteration": iteration, "decision": falling(state)}


def falling(state: TrainState) -> dict[str, Any]:
    """What was decided when the loss was found flat, and why."""
    since = int(state.trend.flat_since)
    text = (
        f"meta-step {since}: the training loss is flat (twice the meta-steps lower it by less than {FLAT:.0%}); "
        "the meta rate falls from here on, to 0 at the end of the run"
    )
    return {"iteration": since, "text": text}


def latest(learner: Learner, rows: Row, now: Row, pace: Pace) -> dict[str, float]:
    """What progress shows: the open window, or the last row where it is still empty."""
    closed = not now.window.steps and len(rows.iteration)
    which, index = (rows, slice(-1, None)) if closed else (now, None)
    shown = jax.tree.map(lambda leaf: leaf[index], which)
    return described(learner, shown, pace)[-1]


def described(learner: Learner, rows: Row, pace: Pace) -> list[dict[str, Any]]:
    """A record for each row: means over its window, the rates in force, and where nine tenths of the alphas lie."""
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # as `learner.mean_alpha`: 0 if one of them is
        alphas = np.exp(np.mean(np.log(rows.alphas), axis=-1))
    spread = np.quantile(rows.alphas, [0.05, 0.95], axis=-1) if rows.alphas.shape[-1] > 1 else None
    window, records = rows.window, []
    for n, iteration in enumerate(rows.iteration):
        count = max(int(window.steps[n]), 1)
        means = {
            "loss": float(window.loss[n]) / count,
            "loss_before": float(window.loss_before[n]) / count,
            "accuracy": float(window.metric[n]) / count if learner.objective.metric else math.nan,
            "alpha": float(alphas[n]),
            "meta_lr": float(rows.meta_lr[n]) or math.nan,
            "grad_norm": float(window.gradient_norm[n]) / count,
            "steps_per_second": round(pace.per_second, 3),
        }
        record = {name: value for name, value in means.items() if not math.isnan(value)}
        if spread is not None:
            record |= {"alpha_low": float(spread[0, n]), "alpha_high": float(spread[1, n])}
        records.append({"iteration": int(iteration)} | record)
    return records


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
