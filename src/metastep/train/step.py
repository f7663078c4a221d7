"""One meta-step, and the compiled loop that takes many of them per dispatch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.tree_utils as otu
from jaxtyping import Array, Int, PRNGKeyArray

from metastep._types import Episode, MetaParams
from metastep.metagrad import TaskOutcome, mean_over_tasks
from metastep.rates import schedule_factor
from metastep.tasks import AbstractTaskFamily, batch_of_episodes
from metastep.train.guard import guard
from metastep.train.learner import Learner, mean_alpha
from metastep.train.state import HEALTHY, TrainState, Window


def meta_step(learner: Learner, state: TrainState, episodes: Episode) -> TrainState:
    """Sample nothing, decide nothing: rate, adapt, differentiate, update, record."""
    rate_state = learner.rate.update(state.rate_state, learner.objective, state.meta, episodes)

    def of_task(episode: Episode) -> tuple[TaskOutcome, MetaParams]:
        return learner.meta_gradient(
            learner.objective,
            learner.adapter,
            lambda meta: learner.rate.alpha(meta, rate_state),
            state.meta,
            episode,
        )

    outcomes, gradient = mean_over_tasks(of_task, episodes, learner.tasks_at_once)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes weak and strong types
        updates, optimizer_state = learner.optimizer.update(
            gradient,  # pyright: ignore[reportArgumentType]
            _at_current_rate(learner, state),
            state.meta,  # pyright: ignore[reportArgumentType]
        )
        meta = optax.apply_updates(state.meta, updates)  # pyright: ignore[reportArgumentType]
    alpha = mean_alpha(learner, state.meta, rate_state)
    advanced = dataclasses.replace(
        state,
        iteration=state.iteration + 1,
        meta=meta,
        optimizer_state=optimizer_state,
        rate_state=rate_state,
        window=_record(state.window, outcomes, alpha, otu.tree_norm(gradient)),
        reference=jnp.where(state.iteration == 0, jnp.mean(outcomes.loss_before), state.reference),
    )
    return guard(learner, state, advanced, outcomes)


def _at_current_rate(learner: Learner, state: TrainState) -> Any:
    """The optimiser's state with this step's meta rate in it, if it keeps its rate there."""
    hyperparams = getattr(state.optimizer_state, "hyperparams", {})
    if "learning_rate" not in hyperparams:
        return state.optimizer_state
    share = schedule_factor(learner.schedule, state.iteration, state.horizon)
    rate = (state.meta_lr * share).astype(hyperparams["learning_rate"].dtype)
    return state.optimizer_state._replace(hyperparams=hyperparams | {"learning_rate": rate})


def _record(window: Window, outcomes: TaskOutcome, alpha: Array, gradient_norm: Array) -> Window:
    metric = jnp.zeros(()) if outcomes.metric is None else jnp.mean(outcomes.metric)
    return Window(
        steps=window.steps + 1,
        loss=window.loss + jnp.mean(outcomes.loss),
        loss_before=window.loss_before + jnp.mean(outcomes.loss_before),
        metric=window.metric + metric,
        alpha=window.alpha + alpha,
        gradient_norm=window.gradient_norm + gradient_norm,
    )


def advance(
    learner: Learner,
    family: AbstractTaskFamily,
    key: PRNGKeyArray,
    state: TrainState,
    until: Int[Array, ""],
) -> TrainState:
    """Take meta-steps until `until` of them are done, or one fails.

    The number of steps is data, not shape: one compiled program serves every dispatch, so where a run was
    interrupted leaves no trace in its rounding. The tasks of a step depend on `key` and its number alone.
    """

    def go_on(state: TrainState) -> Array:
        return (state.iteration < until) & (state.failure == HEALTHY)

    def step(state: TrainState) -> TrainState:
        step_key = jax.random.fold_in(key, state.iteration)
        episodes = batch_of_episodes(family, step_key, learner.tasks_per_step)
        return meta_step(learner, state, episodes)

    return jax.lax.while_loop(go_on, step, state)


def compile_advance(learner: Learner):
    """`advance` for one learner, compiled: (family, key, state, until) -> state."""

    def run(
        family: AbstractTaskFamily, key: PRNGKeyArray, state: TrainState, until: Int[Array, ""]
    ) -> TrainState:
        return advance(learner, family, key, state, until)

    return jax.jit(run)
