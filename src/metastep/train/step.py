"""One meta-step, and the compiled loop that takes many of them per dispatch."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optax.tree_utils as otu
from jaxtyping import Array, Int, PRNGKeyArray

from metastep._trees import all_finite, select
from metastep._types import Episode, MetaParams
from metastep.metagrad import TaskOutcome, mean_over_tasks
from metastep.tasks import AbstractTaskFamily, batch_of_episodes
from metastep.train.learner import Learner, mean_alpha
from metastep.train.state import HEALTHY, INNER_LOOP, OUTER_LOOP, TrainState, Window

# A loss this many times that of the untrained model is as good as infinite.
_EXPLOSION = 1e6


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
            state.optimizer_state,
            state.meta,  # pyright: ignore[reportArgumentType]
        )
        meta = optax.apply_updates(state.meta, updates)  # pyright: ignore[reportArgumentType]
    alpha = mean_alpha(learner.rate.alpha(state.meta, rate_state))
    advanced = TrainState(
        iteration=state.iteration + 1,
        meta=meta,  # pyright: ignore[reportArgumentType]
        optimizer_state=optimizer_state,
        rate_state=rate_state,
        window=_record(state.window, outcomes, alpha, otu.tree_norm(gradient)),
        best=state.best,
        reference=jnp.where(state.iteration == 0, jnp.mean(outcomes.loss_before), state.reference),
        failure=state.failure,
    )
    return _guard(state, advanced, outcomes)


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


def _guard(before: TrainState, after: TrainState, outcomes: TaskOutcome) -> TrainState:
    """Keep the last finite state when a step fails, and say which loop it was.

    The inner loop is to blame when the parameters were still good before adaptation and no longer after it;
    otherwise meta-training itself has driven them away.
    """
    limit = _EXPLOSION * after.reference
    unadapted, adapted = jnp.mean(outcomes.loss_before), jnp.mean(outcomes.loss)
    start_is_good = jnp.isfinite(unadapted) & (unadapted <= limit)
    is_good = start_is_good & (adapted <= limit) & all_finite((after.meta, adapted))
    failure = jnp.where(
        is_good, HEALTHY, jnp.where(start_is_good & ~(adapted <= limit), INNER_LOOP, OUTER_LOOP)
    )
    kept = select(is_good, after, before)
    return eqx.tree_at(lambda state: state.failure, kept, failure.astype(before.failure.dtype))


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
