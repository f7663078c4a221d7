"""No task owns a meta-step: how long a task's meta-gradient may be, and what becomes of the few that blow up."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from metastep.metagrad import TaskOutcome
from metastep.theory.citations import source

_MEMORY = 0.9
"""Weight of the past in the usual length: that of some ten meta-steps."""
_LONE = 10
"""Of so many tasks, one may blow up without the meta-step being undone."""
_GROWTH = 1 / 4
"""Power of the meta-steps done that the bound grows with."""
_FALL = 1 / 2
"""Power of the meta-steps done that the usual length may fall with."""


@source("cutkosky2021", "clipped, averaged and normalised gradients", "derived", "for each task")
def longest(
    times: float | None, usual: Float[Array, ""], iteration: Int[Array, ""]
) -> Float[Array, ""] | None:
    """The length that the meta-gradients of tasks are cut to at a meta-step; None for no bound.

        times (iteration + 1)^(1/4) usual

    What is cut off is lost to the meta-objective: tasks that are truly harder than others get less than their share.
    In a short run that is little against what one task's noise would do to it; the longer the run, the more averaging
    does the same for nothing. For noise with a finite variance, a bound that grows with this power loses as
    much to bias as to noise.

    Parameters
    ----------
    times : the learner's `clip_tasks`
    usual : the usual length, infinite before the first meta-step
    iteration : meta-steps done
    """
    if times is None:
        return None
    return jnp.asarray(times, usual.dtype) * (iteration + 1).astype(usual.dtype) ** _GROWTH * usual


def usual_length(
    before: Float[Array, ""], lengths: Float[Array, " tasks"], iteration: Int[Array, ""]
) -> Float[Array, ""]:
    """The usual length of a task's meta-gradient: a running mean, in logarithms, of the median over tasks.

    It falls no faster than the root of the number of the meta-step. Where classes can be told apart without error,
    most tasks are solved sooner or later, and what is left of their gradients is next to nothing: measured by it, the
    few tasks that are not solved yet, which are all there is to learn from, would be cut to nothing too.

    Parameters
    ----------
    before : what it was; infinite before the first meta-step
    lengths : of the tasks of a meta-step; infinite for those that blew up
    iteration : meta-steps done
    """
    now = jnp.median(lengths).astype(before.dtype)
    mixed = jnp.exp(_MEMORY * jnp.log(before) + (1 - _MEMORY) * jnp.log(now))
    done = iteration.astype(before.dtype)
    least = before * (done / (done + 1)) ** _FALL
    following = jnp.where(jnp.isfinite(before), jnp.maximum(mixed, least), now)
    return jnp.where(jnp.isfinite(now) & (now > 0), following, before)


def without_lone_failures(
    outcomes: TaskOutcome, limit: Float[Array, ""]
) -> tuple[TaskOutcome, Int[Array, ""]]:
    """Outcomes in which tasks that blew up are counted as the mean of the others, and how many there were.

    An inner loop that lives near its edge of stability will throw a task over it now and then. To undo the meta-step
    and halve the rates of all tasks for it would cost the run far more than that one task. Where more than a tenth of
    the tasks blow up, they are no exception, and the outcomes are handed back for the guard to see: infinite where a
    loss has no gradient.

    Parameters
    ----------
    outcomes : with the lengths of meta-gradients
    limit : the loss that a task has blown up at
    """
    assert outcomes.length is not None
    # A comparison with NaN is false.
    sound = jnp.isfinite(outcomes.length) & (outcomes.loss <= limit)
    sound &= outcomes.loss_before <= limit
    count = jnp.sum(~sound)
    alone = count * _LONE <= sound.size

    def others(values: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
        kept = jnp.where(sound, values, jnp.zeros_like(values))
        mean = jnp.sum(kept) / jnp.maximum(jnp.sum(sound), 1).astype(values.dtype)
        return jnp.where(sound | ~alone, values, mean)

    without_gradient = ~alone & ~jnp.isfinite(outcomes.length)
    mended = dataclasses.replace(
        outcomes,
        loss=jnp.where(without_gradient, jnp.inf, others(outcomes.loss)),
        loss_before=others(outcomes.loss_before),
        metric=jax.tree.map(others, outcomes.metric),
    )
    return mended, jnp.where(alone, count, 0)
