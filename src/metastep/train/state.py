"""The state of a run: all that the next meta-step depends on, and nothing else."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metastep._kept import kept_jit
from metastep._trees import as_array
from metastep._types import MetaParams, Params
from metastep.rates import AbstractRate, Trend
from metastep.train.learner import Learner, first_parameters

HEALTHY, INNER_LOOP, OUTER_LOOP = 0, 1, 2

# A run that fails more often than this is beyond help, whatever it is allowed.
MAX_INCIDENTS = 32


class Window(eqx.Module):
    """Sums over the meta-steps since the last row of metrics."""

    steps: Int[Array, ""]
    loss: Float[Array, ""]
    loss_before: Float[Array, ""]
    metric: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    left_out: Int[Array, ""]

    @classmethod
    def empty(cls) -> "Window":
        zero, none = jnp.zeros(()), jnp.zeros((), int)
        return cls(none, zero, zero, zero, zero, none)


class Best(eqx.Module):
    """What validated best so far; kept in the state, so that every checkpoint holds it too.

    Attributes
    ----------
    score : accuracy, or minus the loss where there is none; minus infinity before the first validation
    iteration : meta-steps behind it
    meta, rate_state : what it was
    """

    score: Float[Array, ""]
    iteration: Int[Array, ""]
    meta: MetaParams
    rate_state: Any


class Anchor(eqx.Module):
    """Where a run goes back to when it fails: the last state that was in order.

    Attributes
    ----------
    meta, optimizer_state, rate_state : what it was
    loss : the lowest mean loss of a logging window so far
    """

    meta: MetaParams
    optimizer_state: Any
    rate_state: Any
    loss: Float[Array, ""]


class Incidents(eqx.Module):
    """What went wrong and was mended, in order; `count` rows are in use.

    Attributes
    ----------
    iteration : the meta-step that failed, from 1
    loop : INNER_LOOP or OUTER_LOOP
    task : the worst task of that meta-step
    loss : its query loss after adaptation
    alpha, meta_lr : the rates that were in force
    """

    count: Int[Array, ""]
    iteration: Int[Array, " incidents"]
    loop: Int[Array, " incidents"]
    task: Int[Array, " incidents"]
    loss: Float[Array, " incidents"]
    alpha: Float[Array, " incidents"]
    meta_lr: Float[Array, " incidents"]

    @classmethod
    def none(cls) -> "Incidents":
        whole, real = jnp.zeros(MAX_INCIDENTS, int), jnp.zeros(MAX_INCIDENTS)
        return cls(jnp.zeros((), int), whole, whole, whole, real, real, real)


class TrainState(eqx.Module):
    """A pytree of arrays: checkpointed whole, so that a resumed run cannot tell it was interrupted.

    Attributes
    ----------
    iteration : meta-steps done
    meta, optimizer_state, rate_state : what is trained, and what trains it
    window : sums for the next row of metrics
    trend : whether the loss still falls, which the schedule of the meta rate may ask
    best : what validated best
    reference : unadapted loss of the first meta-step, the scale that divergence is judged by
    usual_length : of a task's meta-gradient, which those that are cut are measured by; infinite until it is known
    meta_lr, horizon : peak meta rate, and the meta-steps it is spread over
    failure : HEALTHY, or the loop that left the finite numbers for good
    anchor, incidents : where to go back to, and how often that was needed
    """

    iteration: Int[Array, ""]
    meta: MetaParams
    optimizer_state: Any
    rate_state: Any
    window: Window
    trend: Trend
    best: Best
    reference: Float[Array, ""]
    usual_length: Float[Array, ""]
    meta_lr: Float[Array, ""]
    horizon: Int[Array, ""]
    failure: Int[Array, ""]
    anchor: Anchor
    incidents: Incidents


MOVING = (
    "iteration", "meta", "optimizer_state", "rate_state", "window", "trend", "reference", "usual_length",
)  # fmt: skip
"""What a meta-step changes; the rest of the state changes only when something is amiss, or between dispatches."""


def moving(state: TrainState) -> dict[str, Any]:
    """The part of the state that a meta-step changes."""
    return {name: getattr(state, name) for name in MOVING}


def initial_state(learner: Learner, key: PRNGKeyArray, horizon: int = 0) -> TrainState:
    """The state before the first meta-step.

    Parameters
    ----------
    learner : what is trained
    key : of the initial parameters
    horizon : meta-steps that the schedule of the meta rate is spread over; of no account if that is constant
    """
    params = first_parameters(learner.model, key)
    # What differs from run to run is handed over: written into the program it would make another one of it.
    start, rate = eqx.partition(learner.rate, eqx.is_array)
    parts = dataclasses.replace(learner, rate=rate, meta_lr=None)
    meta_lr = None if learner.meta_lr is None else as_array(learner.meta_lr)

    @kept_jit
    def begin(params: Params, start: AbstractRate, meta_lr: Array | None, horizon: Array):
        learner = dataclasses.replace(parts, rate=eqx.combine(start, rate))
        return without_weak_types(_initial_state(learner, params, meta_lr, horizon))

    return begin(params, start, meta_lr, as_array(horizon))


def _initial_state(
    learner: Learner, params: Params, meta_lr: Array | None, horizon: Array
) -> TrainState:
    rates, rate_state = learner.rate.init(params)
    meta = MetaParams(params, rates)
    with jax.numpy_dtype_promotion("standard"):
        optimizer_state: Any = learner.optimizer.init(meta)  # pyright: ignore[reportArgumentType]
    if meta_lr is not None:
        optimizer_state = at_meta_lr(optimizer_state, meta_lr)
    hyperparams = getattr(optimizer_state, "hyperparams", {})
    return TrainState(
        iteration=jnp.zeros((), int),
        meta=meta,
        optimizer_state=optimizer_state,
        rate_state=rate_state,
        window=Window.empty(),
        trend=Trend.begin(horizon),
        best=Best(jnp.full((), -jnp.inf), jnp.zeros((), int), meta, rate_state),
        reference=jnp.full((), jnp.nan),
        usual_length=jnp.full((), jnp.inf),
        meta_lr=jnp.asarray(hyperparams.get("learning_rate", jnp.nan), float),
        horizon=horizon.astype(int),
        failure=jnp.zeros((), int),
        anchor=Anchor(meta, optimizer_state, rate_state, jnp.full((), jnp.inf)),
        incidents=Incidents.none(),
    )


def without_weak_types(state: TrainState) -> TrainState:
    """Plain dtypes on every leaf: a weakly typed one would compile the first dispatch twice."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), state)


def with_validation(state: TrainState, score: float) -> TrainState:
    """The state after a validation: remembered as the best if it beats all before it."""
    if not score > float(state.best.score):
        return state
    best = Best(
        jnp.full((), score, state.best.score.dtype), state.iteration, state.meta, state.rate_state
    )
    return dataclasses.replace(state, best=best)


@jax.jit
def next_window(state: TrainState) -> TrainState:
    """The state with its window emptied, and anchored here unless the loss has gone astray.

    A loss twice the lowest so far may be the way to divergence, and is no place to go back to.
    """
    lowest = state.anchor.loss
    loss = state.window.loss / jnp.maximum(state.window.steps, 1).astype(lowest.dtype)
    here = Anchor(state.meta, state.optimizer_state, state.rate_state, jnp.minimum(loss, lowest))
    anchor = jax.lax.cond(loss <= 2 * lowest, lambda: here, lambda: state.anchor)
    empty = jax.tree.map(jnp.zeros_like, state.window)
    return dataclasses.replace(state, window=empty, anchor=anchor)


def at_meta_lr(optimizer_state: Any, rate: Array) -> Any:
    """The optimiser's state with this rate in it, if it keeps its rate there."""
    hyperparams = getattr(optimizer_state, "hyperparams", {})
    if "learning_rate" not in hyperparams:
        return optimizer_state
    rate = rate.astype(hyperparams["learning_rate"].dtype)
    return optimizer_state._replace(hyperparams=hyperparams | {"learning_rate": rate})


def meta_lr_in_force(state: TrainState) -> Array | None:
    """The outer rate that the last meta-step took, when the optimiser keeps it in its state."""
    return getattr(state.optimizer_state, "hyperparams", {}).get("learning_rate")


def current_meta_lr(state: TrainState) -> float | None:
    """The same as a number."""
    rate = meta_lr_in_force(state)
    return None if rate is None else float(rate)
