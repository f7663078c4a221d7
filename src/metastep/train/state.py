"""The state of a run: all that the next meta-step depends on, and nothing else."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metastep._types import MetaParams
from metastep.train.learner import Learner, initial_meta

HEALTHY, INNER_LOOP, OUTER_LOOP = 0, 1, 2


class Window(eqx.Module):
    """Sums over the meta-steps since the last row of metrics."""

    steps: Int[Array, ""]
    loss: Float[Array, ""]
    loss_before: Float[Array, ""]
    metric: Float[Array, ""]
    alpha: Float[Array, ""]
    gradient_norm: Float[Array, ""]

    @classmethod
    def empty(cls) -> "Window":
        zero = jnp.zeros(())
        return cls(jnp.zeros((), int), zero, zero, zero, zero, zero)


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


class TrainState(eqx.Module):
    """A pytree of arrays: checkpointed whole, so that a resumed run cannot tell it was interrupted.

    Attributes
    ----------
    iteration : meta-steps done
    meta, optimizer_state, rate_state : what is trained, and what trains it
    window : sums for the next row of metrics
    best : what validated best
    reference : unadapted loss of the first meta-step, the scale that divergence is judged by
    failure : HEALTHY, or the loop that left the finite numbers
    """

    iteration: Int[Array, ""]
    meta: MetaParams
    optimizer_state: Any
    rate_state: Any
    window: Window
    best: Best
    reference: Float[Array, ""]
    failure: Int[Array, ""]


def initial_state(learner: Learner, key: PRNGKeyArray) -> TrainState:
    """The state before the first meta-step; `key` is that of the initial parameters."""
    return without_weak_types(jax.jit(lambda key: _initial_state(learner, key))(key))


def _initial_state(learner: Learner, key: PRNGKeyArray) -> TrainState:
    meta, rate_state = initial_meta(learner, key)
    with jax.numpy_dtype_promotion("standard"):
        optimizer_state = learner.optimizer.init(meta)  # pyright: ignore[reportArgumentType]
    return TrainState(
        iteration=jnp.zeros((), int),
        meta=meta,
        optimizer_state=optimizer_state,
        rate_state=rate_state,
        window=Window.empty(),
        best=Best(jnp.full((), -jnp.inf), jnp.zeros((), int), meta, rate_state),
        reference=jnp.full((), jnp.nan),
        failure=jnp.zeros((), int),
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


def current_meta_lr(state: TrainState) -> float | None:
    """The outer rate in force, when the optimiser keeps it in its state."""
    hyperparams = getattr(state.optimizer_state, "hyperparams", {})
    return float(hyperparams["learning_rate"]) if "learning_rate" in hyperparams else None
