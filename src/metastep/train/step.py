"""One meta-step, and the compiled loop that takes many of them per dispatch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from metastep._trees import norm
from metastep._types import Episode, MetaParams
from metastep.metagrad import TaskGradient, TaskOutcome
from metastep.models import warn_of_native_convolution
from metastep.rates import schedule_factor
from metastep.tasks import AbstractTaskFamily
from metastep.train.devices import draw_episodes, gathered, mean_over_devices
from metastep.train.guard import Verdict, examine, recover
from metastep.train.learner import Learner
from metastep.train.state import HEALTHY, TrainState, Window, moving


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

    def of_task(meta: MetaParams, rate_state: Any) -> TaskGradient:
        return TaskGradient(
            learner.meta_gradient,
            learner.objective,
            learner.adapter,
            lambda meta: learner.rate.alpha(meta, rate_state),
            meta,
        )

    outcomes, gradient = mean_over_devices(
        learner.mesh, of_task, (state.meta, rate_state), episodes, learner.tasks_at_once
    )
    with jax.numpy_dtype_promotion("standard"):  # optax mixes weak and strong types
        updates, optimizer_state = learner.optimizer.update(
            gradient,  # pyright: ignore[reportArgumentType]
            _at_current_rate(learner, state),
            state.meta,  # pyright: ignore[reportArgumentType]
        )
        meta = optax.apply_updates(state.meta, updates)  # pyright: ignore[reportArgumentType]
    first = state.iteration == 0
    reference = jnp.where(first, jnp.mean(outcomes.loss_before), state.reference)
    after = dataclasses.replace(
        state,
        iteration=state.iteration + 1,
        meta=meta,
        optimizer_state=optimizer_state,
        rate_state=rate_state,
        trend=state.trend.after(
            state.iteration + 1, state.horizon, jnp.mean(outcomes.loss), reference
        ),
        window=_record(state.window, outcomes, norm(gradient)),
        reference=reference,
    )
    return after, outcomes


def _at_current_rate(learner: Learner, state: TrainState) -> Any:
    """The optimiser's state with this step's meta rate in it, if it keeps its rate there."""
    hyperparams = getattr(state.optimizer_state, "hyperparams", {})
    if "learning_rate" not in hyperparams:
        return state.optimizer_state
    share = schedule_factor(
        learner.schedule, state.iteration, state.horizon, state.trend.flat_since
    )
    rate = (state.meta_lr * share).astype(hyperparams["learning_rate"].dtype)
    return state.optimizer_state._replace(hyperparams=hyperparams | {"learning_rate": rate})


def _record(window: Window, outcomes: TaskOutcome, gradient_norm: Array) -> Window:
    metric = jnp.zeros(()) if outcomes.metric is None else jnp.mean(outcomes.metric)
    return Window(
        steps=window.steps + 1,
        loss=window.loss + jnp.mean(outcomes.loss),
        loss_before=window.loss_before + jnp.mean(outcomes.loss_before),
        metric=window.metric + metric,
        gradient_norm=window.gradient_norm + gradient_norm,
    )


# The state, the step to go to next, and a failure yet to be mended: the state it led to, and the verdict on it.
_Carry = tuple[TrainState, Array, TrainState, Verdict]


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
            mended = jax.lax.cond(
                verdict.healthy, lambda: ahead, lambda: recover(learner, ahead, failed, verdict)
            )
            return mended, until, failed, Verdict.before_any(learner, state)

        def again() -> _Carry:
            return state, ahead.iteration - 1, ahead, found

        return jax.lax.cond(found.healthy, arrived, again)

    until = jnp.asarray(until, state.iteration.dtype)
    start = state, until, state, Verdict.before_any(learner, state)
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
        episodes = draw_episodes(learner.mesh, family, step_key, learner.tasks_per_step)
        after, outcomes = attempt(learner, before, episodes)
        return moving(after), examine(before, after, outcomes)

    start = moving(state), Verdict.before_any(learner, state)
    now, verdict = jax.lax.while_loop(go_on, step, start)
    return dataclasses.replace(state, **now), verdict


def compile_advance(learner: Learner):
    """`advance` for one learner, compiled: (family, key, state, until) -> state."""

    def run(
        family: AbstractTaskFamily, key: PRNGKeyArray, state: TrainState, until: Int[Array, ""]
    ) -> TrainState:
        return advance(learner, family, key, state, until)

    return jax.jit(run)
