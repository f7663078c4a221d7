"""Sampling without replacement when the number of things to choose from is only known at run time."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from metastep._errors import InputError


def distinct(
    key: PRNGKeyArray, among: int | Int[Array, ""], count: int, at_most: int | None = None
) -> Int[Array, " count"]:
    """`count` different indices below `among`, uniformly, in random order.

    Parameters
    ----------
    among : how many there are; an array when it differs from task to task
    count : how many to draw; the caller checks that count <= among
    at_most : upper bound on `among` known when compiling; `among` itself when that is a number
    """
    if at_most is None and not isinstance(among, int):
        raise InputError("distinct: at_most must be given when `among` is an array")
    width = int(among if at_most is None else at_most)
    scores = jax.random.uniform(key, (width,))
    scores = jnp.where(jnp.arange(width) < among, scores, -1.0)
    return jax.lax.top_k(scores, count)[1].astype(jnp.result_type(int))
