"""How much one task may weigh in a meta-step: a meta-gradient longer than the bound is cut to it."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metastep._trees import sums
from metastep._types import MetaParams, Scalar
from metastep.metagrad.core import TaskOutcome
from metastep.theory.citations import source


@source("andrew2021", "a user's update is cut to the median length", "derived", "a task for a user")
def bounded_sum(
    outcomes: TaskOutcome, gradients: MetaParams, longest: Scalar
) -> tuple[TaskOutcome, MetaParams]:
    """The sum of the tasks' meta-gradients, each at a length of at most `longest`, and outcomes with their lengths.

    Where the meta-gradients of tasks are heavy-tailed, their mean is that of the longest: through twenty inner steps
    the length of one can be a hundred times that of the median task, and then the meta-step is that one task's alone.
    Cut, every task has a say. A task whose loss or gradient is not finite has none: it contributes zero.

    Parameters
    ----------
    outcomes, gradients : of tasks, along a leading axis
    longest : positive; infinite leaves all that is finite as it is
    """
    lengths = _lengths(gradients)
    sound = jnp.isfinite(lengths) & jnp.isfinite(outcomes.loss)
    cut = jnp.minimum(1, longest / jnp.maximum(lengths, jnp.finfo(lengths.dtype).tiny))
    weights = jnp.where(sound, cut, jnp.zeros_like(cut))

    def without_unsound() -> MetaParams:
        # Zero times infinity is no zero.
        return _weighted(weights, jax.tree.map(lambda leaf: _where(sound, leaf), gradients))

    # Tasks that blow up are rare, and looking for what they leave behind would be a pass over everything.
    total = jax.lax.cond(jnp.all(sound), lambda: _weighted(weights, gradients), without_unsound)
    return dataclasses.replace(outcomes, length=jnp.where(sound, lengths, jnp.inf)), total


def _lengths(gradients: MetaParams) -> Float[Array, " tasks"]:
    """Euclidean lengths over all leaves, in JAX's default precision."""
    leaves = filter(eqx.is_inexact_array, jax.tree.leaves(gradients))
    rows = [leaf.reshape(leaf.shape[0], -1).astype(jnp.result_type(float)) for leaf in leaves]
    return jnp.sqrt(sum(sums(jnp.square(row)) for row in rows))


def _weighted(weights: Float[Array, " tasks"], gradients: MetaParams) -> MetaParams:
    """The weighted sum over tasks: as a product, which is one pass over the gradients."""

    def total(leaf: Array) -> Array:
        exact = jax.lax.Precision.HIGHEST  # a sum, whatever the device takes for a product
        return jnp.tensordot(weights.astype(leaf.dtype), leaf, axes=1, precision=exact)

    return jax.tree.map(total, gradients)


def _where(sound: Array, leaf: Array) -> Array:
    along = sound.reshape(-1, *(1,) * (leaf.ndim - 1))
    return jnp.where(along, leaf, jnp.zeros_like(leaf))
