"""What a run says of itself while it goes: rows of metrics, and the figures that progress shows."""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Float

from metastep.rates.trend import FLAT
from metastep.train.guard import incident_rows
from metastep.train.learner import Learner
from metastep.train.state import TrainState
from metastep.train.step import Row


class Observer(Protocol):
    """Whoever watches a run; every method may be a no-op."""

    def start(self, iteration: int, total: int) -> None:
        """Before the first dispatch: where the run stands, and how long it is."""

    def progress(self, iteration: int, figures: dict[str, float]) -> None:
        """After each dispatch: running means of the current window."""

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """The rows of metrics since the last call, in order of iteration."""


class Journal:
    """Hands the rows of metrics to an observer, each with its time and followed by what happened in its window."""

    def __init__(self, learner: Learner, state: TrainState, log_every: int, observer: Observer):
        self._learner, self._log_every, self._observer = learner, log_every, observer
        self._started = time.monotonic()
        # Incidents are written with the rows of metrics, so those since the last row are still to come.
        written = last_row(int(state.iteration), log_every)
        self._reported = sum(row["iteration"] <= written for row in incident_rows(state))

    def add(
        self, state: TrainState, rows: Row, steps_per_second: float, first: int, began: float
    ) -> None:
        """The rows that ended within a dispatch, which began at meta-step `first` and that time, and ends now."""
        if not len(rows.iteration):
            return
        records, now = described(self._learner, rows, steps_per_second), time.monotonic()
        last = int(state.iteration)
        for record in records:  # as if all meta-steps had taken the same time
            share = (record["iteration"] - first) / (last - first)
            seconds = began + share * (now - began) - self._started
            record["seconds"] = round(seconds, 3)
        self._observer.rows(list(self._with_remarks(state, records, rows.incidents.tolist())))

    def _with_remarks(
        self, state: TrainState, records: list[dict[str, Any]], incidents: Sequence[int]
    ) -> Iterator[dict[str, Any]]:
        """Each record, and rows of what happened in its window; `incidents` counts those until its end."""
        flat = int(state.trend.flat_since) if self._learner.schedule == "until-flat" else -1
        for record, count in zip(records, incidents, strict=True):
            iteration = record["iteration"]
            yield record
            if count > self._reported:
                for incident in incident_rows(state, self._reported)[: count - self._reported]:
                    yield {"iteration": iteration, "incident": incident}
            self._reported = count
            if last_row(iteration - 1, self._log_every) < flat <= iteration:
                yield {"iteration": iteration, "decision": falling(state)}


def last_row(iteration: int, log_every: int) -> int:
    """The iteration of the last row of metrics."""
    return iteration - iteration % log_every


def falling(state: TrainState) -> dict[str, Any]:
    """What was decided when the loss was found flat, and why."""
    since = int(state.trend.flat_since)
    text = (
        f"meta-step {since}: the training loss is flat (twice the meta-steps lower it by less than {FLAT:.0%}); "
        "the meta rate falls from here on, to 0 at the end of the run"
    )
    return {"iteration": since, "text": text}


def latest(learner: Learner, rows: Row, now: Row, steps_per_second: float) -> dict[str, float]:
    """What progress shows: the open window, or the last row where it is still empty."""
    closed = not now.window.steps and len(rows.iteration)
    which, index = (rows, slice(-1, None)) if closed else (now, None)
    shown = jax.tree.map(lambda leaf: leaf[index], which)
    return described(learner, shown, steps_per_second)[-1]


def described(learner: Learner, rows: Row, steps_per_second: float) -> list[dict[str, Any]]:
    """A record for each row: means over its window, the rates in force, and where nine tenths of the alphas lie."""
    with np.errstate(
        divide="ignore", invalid="ignore"
    ):  # as `learner.mean_alpha`: 0 if one of them is
        alphas = np.exp(np.mean(np.log(rows.alphas), axis=-1))
    window, spread, records = rows.window, middle(np.asarray(rows.alphas)), []
    for n, iteration in enumerate(rows.iteration):
        count = max(int(window.steps[n]), 1)
        means = {
            "loss": float(window.loss[n]) / count,
            "loss_before": float(window.loss_before[n]) / count,
            "accuracy": float(window.metric[n]) / count if learner.objective.metric else math.nan,
            "alpha": float(alphas[n]),
            "meta_lr": float(rows.meta_lr[n]) or math.nan,
            "grad_norm": float(window.gradient_norm[n]) / count,
            "steps_per_second": round(steps_per_second, 3),
        }
        record = {name: value for name, value in means.items() if not math.isnan(value)}
        if rows.alphas.shape[-1] > 1:
            record |= {"alpha_low": float(spread[n, 0]), "alpha_high": float(spread[n, 1])}
        if left_out := int(window.left_out[n]):
            record["left_out"] = left_out
        records.append({"iteration": int(iteration)} | record)
    return records


def middle(alphas: Float[np.ndarray, "rows rates"]) -> Float[np.ndarray, "rows 2"]:
    """Two rates of each row that nine tenths of them lie between; sorting all is faster than `np.quantile`."""
    last = alphas.shape[-1] - 1
    return np.sort(alphas, axis=-1)[:, [math.floor(0.05 * last), math.ceil(0.95 * last)]]
