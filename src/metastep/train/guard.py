"""What happens when a loop leaves the finite numbers: who is to blame, and going back with a lower rate."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metastep._trees import all_finite
from metastep.metagrad import TaskOutcome
from metastep.train.learner import Learner, mean_alpha
from metastep.train.state import (
    HEALTHY,
    INNER_LOOP,
    MAX_INCIDENTS,
    OUTER_LOOP,
    Incidents,
    TrainState,
)

EXPLOSION = 1e4
"""A loss this many times that of the untrained model is as good as infinite."""
_BACK_OFF = 0.5


class Verdict(eqx.Module):
    """What became of a meta-step, and what there is to say about it if it failed.

    Attributes
    ----------
    loop : HEALTHY, or the loop to blame
    losses : (tasks,) query losses after adaptation
    """

    loop: Int[Array, ""]
    losses: Float[Array, " tasks"]

    @property
    def healthy(self) -> Array:
        """Whether the step may stand."""
        return self.loop == HEALTHY

    @classmethod
    def before_any(cls, learner: Learner, state: TrainState) -> "Verdict":
        """That of no step yet."""
        losses = jnp.zeros(learner.tasks_per_step, state.reference.dtype)
        return cls(jnp.zeros((), int), losses)


def examine(before: TrainState, after: TrainState, outcomes: TaskOutcome) -> Verdict:
    """The verdict on one meta-step."""
    losses = outcomes.loss.astype(after.reference.dtype)
    return Verdict(diagnose(before, after, outcomes).astype(int), losses)


def told(after: TrainState) -> dict[str, Any]:
    """The part of a failed state that `recover` looks at."""
    return {name: getattr(after, name) for name in ("iteration", "reference", "rate_state")}


def recover(
    learner: Learner, before: TrainState, after: TrainState, verdict: Verdict
) -> TrainState:
    """The state to go on from when the meta-step from `before` to `after` failed.

    The step is undone. While there are back-offs left, the run goes back to its anchor and on with half the rate that
    is to blame; the failed meta-step counts as done, so that other tasks follow. After that the run stops at the last
    finite state.
    """
    allowed = min(learner.back_offs, MAX_INCIDENTS)
    stopped = dataclasses.replace(before, failure=verdict.loop.astype(before.failure.dtype))
    if not allowed:
        return stopped
    return jax.lax.cond(
        before.incidents.count < allowed,
        lambda: _back_off(learner, before, after, verdict),
        lambda: stopped,
    )


def diagnose(before: TrainState, after: TrainState, outcomes: TaskOutcome) -> Array:
    """HEALTHY, or the loop to blame.

    The inner loop is to blame when the parameters were still good before adaptation and no longer after it;
    otherwise meta-training itself has driven them away.
    """
    limit = EXPLOSION * after.reference
    unadapted, adapted = jnp.mean(outcomes.loss_before), jnp.mean(outcomes.loss)
    start_is_good = jnp.isfinite(unadapted) & (unadapted <= limit)
    is_good = start_is_good & (adapted <= limit) & all_finite((after.meta, adapted))
    blame = jnp.where(start_is_good & ~(adapted <= limit), INNER_LOOP, OUTER_LOOP)
    return jnp.where(is_good, HEALTHY, blame)


def _back_off(
    learner: Learner, before: TrainState, after: TrainState, verdict: Verdict
) -> TrainState:
    anchor, inner = before.anchor, verdict.loop == INNER_LOOP
    alpha_factor = jnp.where(inner, _BACK_OFF, 1.0)
    meta, rate_state = learner.rate.scaled(anchor.meta, anchor.rate_state, alpha_factor)
    return dataclasses.replace(
        before,
        iteration=after.iteration,
        reference=after.reference,
        meta=meta,
        rate_state=rate_state,
        optimizer_state=anchor.optimizer_state,
        meta_lr=before.meta_lr * jnp.where(inner, 1.0, _BACK_OFF),
        # Going back there again must not undo what was learned about the rate.
        anchor=dataclasses.replace(anchor, meta=meta, rate_state=rate_state),
        incidents=_noted(learner, before, after, verdict),
    )


def _noted(learner: Learner, before: TrainState, after: TrainState, verdict: Verdict) -> Incidents:
    """One more row: when, which loop, which task, at which rates."""
    seen, row, losses = before.incidents, before.incidents.count, verdict.losses
    worst = jnp.argmax(jnp.where(jnp.isfinite(losses), losses, jnp.inf))
    new = {
        "iteration": after.iteration,
        "loop": verdict.loop,
        "task": worst,
        "loss": losses[worst],
        "alpha": mean_alpha(learner, before.meta, after.rate_state),
        "meta_lr": before.meta_lr,
    }
    columns = {
        name: getattr(seen, name).at[row].set(value.astype(getattr(seen, name).dtype))
        for name, value in new.items()
    }
    return Incidents(count=seen.count + 1, **columns)


def incident_rows(state: TrainState, since: int = 0) -> list[dict]:
    """What happened, as records: rows `since` and later."""
    seen = jax.device_get(state.incidents)
    return [_incident_row(seen, i) for i in range(since, int(seen.count))]


def _incident_row(seen: Incidents, i: int) -> dict:
    inner = int(seen.loop[i]) == INNER_LOOP
    row = {
        "iteration": int(seen.iteration[i]),
        "loop": "inner" if inner else "outer",
        "task": int(seen.task[i]),
        "loss": float(seen.loss[i]),
        "alpha": float(seen.alpha[i]),
        "meta_lr": float(seen.meta_lr[i]),
        "action": (
            f"went back to the last good state and halved {'alpha' if inner else 'the meta rate'}"
        ),
    }
    text = (
        f"meta-step {row['iteration']}: the {row['loop']} loop left the finite numbers at task {row['task']} "
        f"(alpha {row['alpha']:.3g}, meta rate {row['meta_lr']:.3g}); {row['action']}"
    )
    return row | {"text": text}
