"""Tangent features d f / d params of any model, and their Gram matrix without ever holding them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from metastep._derivatives import linearize
from metastep._errors import InputError, check_count
from metastep._types import Params
from metastep.theory.citations import source

__all__ = ["tangent_features", "tangent_gram"]


@source("zou2022", "(H.16)-(H.17), neural tangent features", "as printed")
def tangent_features(
    apply: Callable[[Params, Array], Array], params: Params, x: Array
) -> Float[Array, "rows dim"]:
    """Tangent features of any model, by automatic differentiation.

        psi(x) = d f(params, x) / d params, flattened

    Parameters
    ----------
    apply : f(params, x) with outputs (examples, ...) for a batch of inputs
    params : pytree of floating-point arrays
    x : (examples, ...) inputs

    Returns
    -------
    (rows, dim): one row per output number, examples first, and one column per parameter in the
    order of `jax.tree.leaves`. For large models use `tangent_gram`, which never holds this array.

    Raises
    ------
    InputError
        When `params` has no array in it.

    References
    ----------
    Zou et al. (2022), (H.16)-(H.17), as printed.
    """
    if not jax.tree.leaves(params):
        raise InputError("params has no array in it; there is nothing to differentiate")
    jacobian = jax.jacrev(lambda weights: apply(weights, x).reshape(-1))(params)
    leaves = jax.tree.leaves(jacobian)
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)


@source("zou2022", "Gram matrix of (H.17)", "as printed")
def tangent_gram(
    apply: Callable[[Params, Array], Array],
    params: Params,
    x: Array,
    other: Array | None = None,
    *,
    chunk: int = 16,
) -> Float[Array, "rows others"]:
    """Tangent kernel of any model between two batches of inputs.

        k = Psi(x) Psi(x')^T,   column j = jvp_x(vjp_x'(e_j))

    Parameters
    ----------
    apply : f(params, x) with outputs (examples, ...) for a batch of inputs
    params : pytree of floating-point arrays
    x : (examples, ...) inputs
    other : (others, ...) x'; x itself when left out
    chunk : columns computed together; the working memory is about `chunk` copies of the parameters
        and of the model's activations

    Returns
    -------
    (rows, others): one row per output number for x, one column per output number for x', examples
    first.

    Raises
    ------
    InputError
        When `params` has no array in it or `chunk` is below 1.

    References
    ----------
    Zou et al. (2022), (H.16)-(H.17) define the features; this is their Gram matrix.
    """
    check_count("chunk", chunk)
    if not jax.tree.leaves(params):
        raise InputError("params has no array in it; there is nothing to differentiate")
    second = x if other is None else other
    outputs, pull_back = jax.vjp(lambda weights: apply(weights, second).reshape(-1), params)
    _, push_forward = linearize(lambda weights: apply(weights, x).reshape(-1), params)

    def column(unit: Array) -> Array:
        return push_forward(pull_back(unit)[0])

    units = jnp.eye(len(outputs), dtype=outputs.dtype)
    return jax.lax.map(column, units, batch_size=min(chunk, len(outputs))).T
