"""A model in less precision than its parameters, for devices that are faster that way."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from metastep._errors import InputError
from metastep._types import Params
from metastep.models.core import Model


def in_bfloat16(model: Model) -> Model:
    """The same model, computed in bfloat16: 8 bits of each number count, and the range is that of float32.

    What it is given is rounded, and so is all between; outputs are handed on in the precision of the parameters.
    Parameters, losses, inner steps and meta-gradients keep theirs, so that steps far smaller than a parameter are
    not lost. The derivatives of the model are rounded as it is, which leaves inner gradients and meta-gradients good
    to about a percent.

    Parameters
    ----------
    model : any whose parameters are floating-point; inputs that are not, such as tokens, are left as they are

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> scale_only = Model(init=lambda key: jnp.ones(()), apply=lambda scale, x: scale * x)
    >>> in_bfloat16(scale_only).apply(jnp.array(1.0), jnp.array([1.001])).tolist()
    [1.0]
    """
    raw, head = model.features, model.head

    def rounded(function):
        def apply(params: Params, x: Array) -> Array:
            return function(_lower(params), _lower(x)).astype(_precision(params, model.name))

        return apply

    return dataclasses.replace(
        model,
        apply=rounded(model.apply),
        features=None if raw is None else rounded(raw),
        head=None if head is None else rounded(head),
        name=f"{model.name}-bfloat16",
    )


def _lower(tree: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16) if _is_floating(leaf) else leaf, tree
    )


def _precision(params: Params, name: str) -> jnp.dtype:
    """That of the parameters, of which whole numbers do not count."""
    floating = [leaf for leaf in jax.tree.leaves(params) if _is_floating(leaf)]
    if not floating:
        raise InputError(
            f"bfloat16: {name} has no floating-point parameters; leave its precision as it is"
        )
    return jnp.result_type(*floating)


def _is_floating(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
