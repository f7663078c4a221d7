"""One meta-step, and the compiled loop that takes many of them per dispatch."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metastep._compiler import computed_once
from metastep._kept import kept_jit
from metastep._trees import norm
from metastep._types import Episode, MetaParams
from metastep.metagrad import TaskGradient, TaskOutcome
from metastep.models import warn_of_native_convolution
from metastep.rates import AbstractRate, FactoredRate, FixedRate, LearnedRate, schedule_factor
from metastep.tasks import AbstractTaskFamily
from metastep.train.bounds import longest, usual_length, without_lone_failures
from metastep.train.devices import draw_episodes, gathered, mean_over_devices
from metastep.train.guard import EXPLOSION, Verdict, examine, recover, told
from metastep.train.learner import Learner, rates_in_force
from metastep.train.state import (
    HEALTHY,
    TrainState,
    Window,
    at_meta_lr,
    meta_lr_in_force,
    moving,
    next_window,
)


def meta_step(learner: Learner, state: TrainState, episodes: Episode) -> TrainState:
    """One meta-step on these tasks: rate, adapt, differentiate, update, record; undone and mended if it fails."""
    after, outcomes = attempt(learner, state, episodes)
    verdict = examine(state, after, outcomes)
    return jax.lax.cond(
        verdict.healthy, lambda: after, lambda: recover(learner, state, after, verdict)
    )


def attempt(
    learner: Learner, state: TrainState, episodes: Episode
) -> tuple[TrainState, TaskOutcome]:
    """The state after a meta-step, whether or not it is fit to go on from, and the outcomes of its tasks."""
    seen = gathered(learner.mesh, episodes)
    rate_state = learner.rate.update(state.rate_state, learner.objective, state.meta, seen)

    def of_task(meta: MetaParams, rate_state: Any, bound: Array | None) -> TaskGradient:
        return TaskGradient(
            learner.meta_gradient,
            learner.objective,
            learner.adapter,
            lambda meta: learner.rate.alpha(meta, rate_state),
            meta,
            bound,
        )

    bound = longest(learner.clip_tasks, state.usual_length, state.iteration)
    outcomes, gradient = mean_over_devices(
        learner.mesh, of_task, (state.meta, rate_state, bound), episodes, learner.tasks_at_once
    )
    with jax.numpy_dtype_promotion("standard"):  # optax mixes weak and strong types
        updates, optimizer_state = learner.optimizer.update(
            gradient,  # pyright: ignore[reportArgumentType]
            _at_current_rate(learner, state),
            state.meta,  # pyright: ignore[reportArgumentType]
        )
        meta = optax.apply_updates(state.meta, updates)  # pyright: ignore[reportArgumentType]
    meta = learner.rate.projected(meta, rate_state)  # pyright: ignore[reportArgumentType]
    first = state.iteration == 0
    reference = jnp.where(first, jnp.mean(outcomes.loss_before), state.reference)
    usual, left_out = state.usual_length, jnp.zeros((), int)
    if outcomes.length is not None:
        usual = usual_length(usual, outcomes.length, state.iteration)
        outcomes, left_out = without_lone_failures(outcomes, EXPLOSION * reference)
    after = dataclasses.replace(
        state,
        iteration=state.iteration + 1,
        meta=meta,
        optimizer_state=optimizer_state,
        rate_state=rate_state,
        trend=state.trend.after(
            state.iteration + 1, state.horizon, jnp.mean(outcomes.loss), reference
        ),
        window=_record(state.window, outcomes, norm(gradient), left_out),
        reference=reference,
        usual_length=usual,
    )
    return after, outcomes


def _at_current_rate(learner: Learner, state: TrainState) -> Any:
    """The optimiser's state with this step's meta rate in it, if it keeps its rate there."""
    share = schedule_factor(
        learner.schedule, state.iteration, state.horizon, state.trend.flat_since
    )
    return at_meta_lr(state.optimizer_state, state.meta_lr * share)


def _record(window: Window, outcomes: TaskOutcome, gradient_norm: Array, left_out: Array) -> Window:
    metric = jnp.zeros(()) if outcomes.metric is None else jnp.mean(outcomes.metric)
    return Window(
        steps=window.steps + 1,
        loss=window.loss + jnp.mean(outcomes.loss),
        loss_before=window.loss_before + jnp.mean(outcomes.loss_before),
        metric=window.metric + metric,
        gradient_norm=window.gradient_norm + gradient_norm,
        left_out=window.left_out + left_out,
    )


# The state, the step to go to next, and a failure yet to be mended: what it led to, and the verdict on it.
_Carry = tuple[TrainState, Array, dict[str, Any], Verdict]


def advance(
    learner: Learner,
    family: AbstractTaskFamily,
    key: PRNGKeyArray,
    state: TrainState,
    until: Int[Array, ""],
) -> TrainState:
    """Take meta-steps until `until` of them are done, or one fails.

    The number of steps is data, not shape: one compiled program serves every dispatch, so where a run was
    interrupted leaves no trace in its rounding. The tasks of a step depend on `key` and its number alone. So a step
    that fails is found at once, and undone by taking the steps before it again.
    """

    support = jax.eval_shape(family.sample, key).support
    warn_of_native_convolution(learner.objective, state.meta.params, support)

    def unfinished(carry: _Carry) -> Array:
        return (carry[0].iteration < until) & (carry[0].failure == HEALTHY)

    def stretch(carry: _Carry) -> _Carry:
        state, limit, failed, verdict = carry
        ahead, found = _while_healthy(learner, family, key, state, limit)

        def arrived() -> _Carry:
            after = dataclasses.replace(ahead, **failed)
            mended = jax.lax.cond(
                verdict.healthy, lambda: ahead, lambda: recover(learner, ahead, after, verdict)
            )
            return mended, until, failed, Verdict.before_any(learner, state)

        def again() -> _Carry:
            return state, ahead.iteration - 1, told(ahead), found

        return jax.lax.cond(found.healthy, arrived, again)

    until = jnp.asarray(until, state.iteration.dtype)
    start = state, until, told(state), Verdict.before_any(learner, state)
    return jax.lax.while_loop(unfinished, stretch, start)[0]


def _while_healthy(
    learner: Learner,
    family: AbstractTaskFamily,
    key: PRNGKeyArray,
    state: TrainState,
    limit: Int[Array, ""],
) -> tuple[TrainState, Verdict]:
    """The state after meta-steps up to `limit` or the first that fails, and the verdict on the last.

    Nothing that could be had otherwise goes round this loop: for a small model, copying the whole state, or keeping
    the one before, would cost as much as the inner loop. A failed step is undone by going the same way again.
    """

    def go_on(carry: tuple[dict[str, Any], Verdict]) -> Array:
        now, verdict = carry
        return (now["iteration"] < limit) & verdict.healthy

    def step(carry: tuple[dict[str, Any], Verdict]) -> tuple[dict[str, Any], Verdict]:
        before = dataclasses.replace(state, **carry[0])
        step_key = jax.random.fold_in(key, before.iteration)
        episodes = computed_once(
            lambda: draw_episodes(learner.mesh, family, step_key, learner.tasks_per_step),
            before.iteration >= 0,
        )
        after, outcomes = attempt(learner, before, episodes)
        return moving(after), examine(before, after, outcomes)

    start = moving(state), Verdict.before_any(learner, state)
    now, verdict = jax.lax.while_loop(go_on, step, start)
    return dataclasses.replace(state, **now), verdict


_MOST_ROWS, _MOST_NUMBERS = 32, 2**19


class Row(eqx.Module):
    """What a row of metrics is made of.

    Attributes
    ----------
    iteration : meta-steps done at its end
    window : sums over its meta-steps
    meta_lr : the outer rate of the last of them; NaN where the optimiser does not tell
    incidents : how many there were until then
    alphas : every rate in force
    """

    iteration: Int[Array, "..."]
    window: Window
    meta_lr: Float[Array, "..."]
    incidents: Int[Array, "..."]
    alphas: Float[Array, "... rates"]

    @classmethod
    def at(cls, learner: Learner, state: TrainState) -> "Row":
        """The row that would end here."""
        meta_lr = meta_lr_in_force(state)
        return cls(
            iteration=state.iteration,
            window=state.window,
            meta_lr=jnp.full((), jnp.nan) if meta_lr is None else meta_lr,
            incidents=state.incidents.count,
            alphas=rates_in_force(learner, state.meta, state.rate_state),
        )


class Rows(eqx.Module):
    """The rows of metrics that ended within a dispatch: the first `count` of `each`, which has room for more."""

    count: Int[Array, ""]
    each: Row

    @classmethod
    def none(cls, learner: Learner, state: TrainState) -> "Rows":
        """No row yet, and room for as many as a dispatch is worth, in two megabytes."""
        row = jax.eval_shape(lambda state: Row.at(learner, state), state)
        most = min(max(_MOST_NUMBERS // max(row.alphas.size, 1), 1), _MOST_ROWS)
        room = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), row)
        return cls(jnp.zeros((), int), room)

    def with_one(self, row: Row) -> "Rows":
        """One row more."""
        each = jax.tree.map(lambda rows, one: rows.at[self.count].set(one), self.each, row)
        return Rows(self.count + 1, each)

    @property
    def room(self) -> int:
        """How many rows fit."""
        return self.each.iteration.shape[0]

    def taken(self) -> Row:
        """The rows in use, on the host."""
        return jax.tree.map(lambda leaf: leaf[: int(self.count)], self.each)


def advance_with_rows(
    learner: Learner,
    family: AbstractTaskFamily,
    key: PRNGKeyArray,
    state: TrainState,
    until: Int[Array, ""],
    every: Int[Array, ""],
) -> tuple[TrainState, Rows, Row]:
    """`advance`, stopping over at each multiple of `every` to take a row and open the next window.

    Rows that each were a dispatch of their own would cost more than the meta-steps they are about, where these take a
    third of a millisecond. The caller sees to it that there is room for the rows.

    Returns
    -------
    the state, the rows that ended, and the one of the window that is still open
    """

    def unfinished(carry: tuple[TrainState, Rows]) -> Array:
        return (carry[0].iteration < until) & (carry[0].failure == HEALTHY)

    def to_next_row(carry: tuple[TrainState, Rows]) -> tuple[TrainState, Rows]:
        state, rows = carry
        end = state.iteration - state.iteration % every + every
        state = advance(learner, family, key, state, jnp.minimum(until, end))
        return jax.lax.cond(
            (state.iteration == end) & (state.failure == HEALTHY),
            lambda: (next_window(state), rows.with_one(Row.at(learner, state))),
            lambda: (state, rows),
        )

    until, every = (jnp.asarray(given, state.iteration.dtype) for given in (until, every))
    best, none = state.best, Rows.none(learner, state)
    # What only validation changes does not go round: the program is the smaller for it, and is read sooner.
    state = dataclasses.replace(state, best=None)
    state, rows = jax.lax.while_loop(unfinished, to_next_row, (state, none))
    state = dataclasses.replace(state, best=best)
    return state, *gathered(learner.mesh, (rows, Row.at(learner, state)))


@dataclasses.dataclass(frozen=True)
class Advance:
    """`advance` for one learner, compiled: (family, key, state, until) -> state.

    Attributes
    ----------
    program : `advance_with_rows`, jitted
    """

    program: Any

    def __call__(
        self, family: AbstractTaskFamily, key: PRNGKeyArray, state: TrainState, until: Any
    ) -> TrainState:
        return self.program(family, key, state, until, _NO_ROWS)[0]

    def with_rows(
        self,
        family: AbstractTaskFamily,
        key: PRNGKeyArray,
        state: TrainState,
        until: Any,
        every: Any,
    ) -> tuple[TrainState, Rows, Row]:
        """The same program, which also takes the rows that end on the way."""
        return self.program(family, key, state, until, every)

    def lower(self, *arguments: Any) -> Any:
        """As that of a jitted function."""
        return self.program.lower(*arguments, _NO_ROWS)


_NO_ROWS = 2**31 - 1
_ONLY_START = (FixedRate, LearnedRate, FactoredRate)
"""Rates whose own numbers say where a state starts, and are of no account after that."""
_RECENT: list[tuple[Learner, Advance]] = []


def without_start(rate: AbstractRate) -> AbstractRate:
    """The same rate without numbers, where these say no more than what a state starts with: so says the state."""
    return eqx.filter(rate, eqx.is_array, inverse=True) if type(rate) in _ONLY_START else rate


def compile_advance(learner: Learner) -> Advance:
    """`advance` for one learner, compiled: (family, key, state, until) -> state.

    The program of the last learner is kept, and serves again for one that differs in nothing but where its rates
    start: a run then finds what its rehearsals have traced and loaded.
    """
    parts = dataclasses.replace(learner, rate=without_start(learner.rate), meta_lr=None)
    if not (_RECENT and _same(parts, _RECENT[0][0])):

        def run(
            family: AbstractTaskFamily,
            key: PRNGKeyArray,
            state: TrainState,
            until: Int[Array, ""],
            every: Int[Array, ""],
        ) -> tuple[TrainState, Rows, Row]:
            return advance_with_rows(parts, family, key, state, until, every)

        images = learner.model.task_mapping == "sequential"
        _RECENT[:] = [(parts, Advance(kept_jit(run, long_running=images)))]
    return _RECENT[0][1]


def _same(one: Learner, other: Learner) -> bool:
    """Whether two learners are made of the same parts."""
    return all(
        bool(getattr(one, field.name) == getattr(other, field.name))
        for field in dataclasses.fields(Learner)
    )
