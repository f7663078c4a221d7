"""Pytree arithmetic that optax.tree_utils does not have."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from metastep._types import Params, Rate


def scale(rate: Rate, tree: Params) -> Params:
    """Multiply a pytree by a rate: one scalar, one per layer, or one per parameter (a pytree prefix)."""

    def scale_subtree(factor: Array, subtree: Params) -> Params:
        return jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, subtree)

    return jax.tree.map(scale_subtree, rate, tree)


def descend(params: Params, rate: Rate, gradient: Params) -> Params:
    """One gradient step, params - rate * gradient; every leaf keeps its dtype."""
    return jax.tree.map(lambda leaf, step: leaf - step, params, scale(rate, gradient))


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every entry of every floating-point leaf is finite."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_inexact_array(leaf)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves] or [True]))


def select(condition: Bool[Array, ""], if_true: PyTree, if_false: PyTree) -> PyTree:
    """Leaf by leaf, `if_true` where the scalar condition holds, else `if_false`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)
