"""Pytree arithmetic that optax.tree_utils does not have."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from metastep._types import Params, Rate


def as_array(value: Any) -> Array:
    """`jnp.asarray`, which of numbers and tuples of them makes an array by running a program: here it is copied.

    A program, even of one operation, has to be lowered and loaded at every start.
    """
    if isinstance(value, tuple) and all(isinstance(one, int | float) for one in value):
        value = np.asarray(value)
    return (
        jax.device_put(value) if isinstance(value, int | float | np.ndarray) else jnp.asarray(value)
    )


def scale(rate: Rate, tree: Params) -> Params:
    """Multiply a pytree by a rate: one scalar, one per layer, or one per parameter (a pytree prefix)."""

    def scale_subtree(factor: Array, subtree: Params) -> Params:
        return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, subtree)

    return jax.tree.map(scale_subtree, rate, tree)


def descend(params: Params, rate: Rate, gradient: Params) -> Params:
    """One gradient step, params - rate * gradient; every leaf keeps its dtype."""
    return jax.tree.map(lambda leaf, step: leaf - step, params, scale(rate, gradient))


def as_vectors(tree: PyTree) -> list[Array]:
    """All floating-point entries, one vector for each dtype: one operation then does for all leaves of a model."""
    by_dtype: dict[Any, list[Array]] = {}
    for leaf in filter(eqx.is_inexact_array, jax.tree.leaves(tree)):
        by_dtype.setdefault(leaf.dtype, []).append(jnp.ravel(leaf))
    return [jnp.concatenate(leaves) for leaves in by_dtype.values()]


def norm(tree: PyTree) -> Float[Array, ""]:
    """Euclidean length of all floating-point entries, in JAX's default precision."""
    squares = [(flat @ flat).astype(jnp.result_type(float)) for flat in as_vectors(tree)]
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))


def sums(rows: Float[Array, "rows columns"]) -> Float[Array, " rows"]:
    """The sum of each row, as a product with ones.

    On a CPU a product takes many numbers at a time. A sum is compiled to one addition after another, each waiting for
    the last: in the meta-step of a small model, as long as a layer takes.
    """
    ones = jnp.ones(rows.shape[1], rows.dtype)
    return jnp.dot(rows, ones, precision=jax.lax.Precision.HIGHEST)


def copies(count: int, array: Array) -> Array:
    """`count` copies along a new first axis, as a product with ones: its derivative is a product too, see `sums`."""
    ones = jnp.ones((count, 1), array.dtype)
    rows = jnp.dot(ones, array.reshape(1, -1), precision=jax.lax.Precision.HIGHEST)
    return rows.reshape(count, *array.shape)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every entry of every floating-point leaf is finite."""
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(flat)) for flat in as_vectors(tree)] or [True]))


def group_size(count: int, most: int) -> int:
    """How many of `count` rows to take at a time: the largest divisor of `count` up to `most`, and at least 1."""
    return max(size for size in range(1, max(min(most, count), 1) + 1) if count % size == 0)
