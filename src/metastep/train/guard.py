"""What happens when a loop leaves the finite numbers: who is to blame, and going back with a lower rate."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array

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

# A loss this many times that of the untrained model is as good as infinite.
_EXPLOSION = 1e4
_BACK_OFF = 0.5


def guard(
    learner: Learner, before: TrainState, after: TrainState, outcomes: TaskOutcome
) -> TrainState:
    """The state to go on from: `after` where the meta-step went well, else what is left of the run.

    A failed step is undone. While there are back-offs left, the run goes back to its anchor and on with half
    the rate that is to blame; the failed meta-step counts as done, so that other tasks follow. After that the
    run stops at the last finite state.
    """
    verdict = diagnose(before, after, outcomes)

    def fail() -> TrainState:
        allowed = min(learner.back_offs, MAX_INCIDENTS)
        stopped = dataclasses.replace(before, failure=verdict.astype(before.failure.dtype))
        if not allowed:
            return stopped
        mended = _back_off(learner, before, after, outcomes, verdict)
        return jax.lax.cond(before.incidents.count < allowed, lambda: mended, lambda: stopped)

    return jax.lax.cond(verdict == HEALTHY, lambda: after, fail)


def diagnose(before: TrainState, after: TrainState, outcomes: TaskOutcome) -> Array:
    """HEALTHY, or the loop to blame.

    The inner loop is to blame when the parameters were still good before adaptation and no longer after it;
    otherwise meta-training itself has driven them away.
    """
    limit = _EXPLOSION * after.reference
    unadapted, adapted = jnp.mean(outcomes.loss_before), jnp.mean(outcomes.loss)
    start_is_good = jnp.isfinite(unadapted) & (unadapted <= limit)
    is_good = start_is_good & (adapted <= limit) & all_finite((after.meta, adapted))
    blame = jnp.where(start_is_good & ~(adapted <= limit), INNER_LOOP, OUTER_LOOP)
    return jnp.where(is_good, HEALTHY, blame)


def _back_off(
    learner: Learner, before: TrainState, after: TrainState, outcomes: TaskOutcome, verdict: Array
) -> TrainState:
    anchor, inner = before.anchor, verdict == INNER_LOOP
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
        incidents=_noted(learner, before, after, outcomes, verdict),
    )


def _noted(
    learner: Learner, before: TrainState, after: TrainState, outcomes: TaskOutcome, verdict: Array
) -> Incidents:
    """One more row: when, which loop, which task, at which rates."""
    seen, row = before.incidents, before.incidents.count
    worst = jnp.argmax(jnp.where(jnp.isfinite(outcomes.loss), outcomes.loss, jnp.inf))
    new = {
        "iteration": after.iteration,
        "loop": verdict,
        "task": worst,
        "loss": outcomes.loss[worst],
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
