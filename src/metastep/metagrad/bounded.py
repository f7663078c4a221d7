"""How much one task may weigh in a meta-step: a meta-gradient longer than the bound is cut to it."""

import dataclasses

import jax
import jax.numpy as jnp

from metastep._trees import norm, scale
from metastep._types import MetaParams, Scalar
from metastep.metagrad.core import TaskOutcome
from metastep.theory.citations import source


@source("andrew2021", "a user's update is cut to the median length", "derived", "a task for a user")
def bounded(
    outcome: TaskOutcome, gradient: MetaParams, longest: Scalar
) -> tuple[TaskOutcome, MetaParams]:
    """The meta-gradient of one task at a length of at most `longest`, and its outcome with the length it had.

    Where the meta-gradients of tasks are heavy-tailed, their mean is that of the longest: through twenty inner steps
    the length of one can be a hundred times that of the median task, and then the meta-step is that one task's alone.
    Cut, every task has a say. A task whose loss or gradient is not finite has none: it contributes zero.

    Parameters
    ----------
    outcome, gradient : of one task
    longest : positive; infinite leaves all that is finite as it is
    """
    length = norm(gradient)
    sound = jnp.isfinite(length) & jnp.isfinite(outcome.loss)
    factor = jnp.minimum(1, longest / jnp.maximum(length, jnp.finfo(length.dtype).tiny))
    cut = jax.tree.map(
        lambda leaf: jnp.where(sound, leaf, jnp.zeros_like(leaf)), scale(factor, gradient)
    )
    return dataclasses.replace(outcome, length=jnp.where(sound, length, jnp.inf)), cut
