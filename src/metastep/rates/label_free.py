"""The label-free adaptation rate (H.6) of any model: traces of its tangent kernel, weighted by the loss."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metastep._types import Episode, Params
from metastep.models import Objective
from metastep.rates.label_aware import bend, ggn_product, inner, pull_back
from metastep.theory.citations import source

# With at most this many support outputs the traces are exact, one basis vector at a time.
_EXACT_OUTPUTS = 40
_PROBES = 8


class FreeTerms(eqx.Module):
    """Traces of the curvatures U (support) and T (query) of one task.

    Attributes
    ----------
    first : tr T
    second : tr U T
    third : tr U T U, not negative
    """

    first: Float[Array, "..."]
    second: Float[Array, "..."]
    third: Float[Array, "..."]


@source("zou2022", "equation (H.6), on the loss-weighted tangent kernel", "corrected")
def label_free_terms(
    objective: Objective,
    params: Params,
    episode: Episode,
    key: PRNGKeyArray,
    restrict: Callable[[Params], Params] = lambda gradient: gradient,
    *,
    probes: int | None = None,
) -> FreeTerms:
    """tr T, tr UT and tr UTU, with U and T the Gauss-Newton matrices on support and query.

    alpha = sum tr UT / sum tr UTU. For squared error U = (2/K) G, which is (H.6) on the tangent-kernel Gram;
    for other losses the Gram is weighted by the Hessian of the loss in the outputs. No matrix of the size of
    the parameters is formed: with z over the support outputs, v = J' z and w = J' H z have E v w' = U. The
    sum over a basis is exact and taken when there are few outputs, else eight random sign vectors are used.

    Parameters
    ----------
    objective, params, episode, restrict : as in `label_aware_terms`
    key : for the random signs
    probes : random sign vectors; None is exact with few outputs and takes eight with many
    """

    def products(z: Array) -> tuple[Array, Array]:
        v = restrict(pull_back(objective, params, episode.support, z))
        bent = bend(objective, params, episode.support, z)
        w = restrict(pull_back(objective, params, episode.support, bent))
        on_query = ggn_product(objective, params, episode.query, v)
        on_support = ggn_product(objective, params, episode.support, w)
        return inner(on_query, w), inner(restrict(on_query), on_support)

    def query_trace(z: Array) -> Array:
        v = restrict(pull_back(objective, params, episode.query, z))
        bent = bend(objective, params, episode.query, z)
        return inner(v, pull_back(objective, params, episode.query, bent))

    support_key, query_key = jax.random.split(key)
    second, third = _trace(
        products, _outputs(objective, params, episode.support.x), support_key, probes
    )
    first = _trace(query_trace, _outputs(objective, params, episode.query.x), query_key, probes)
    return FreeTerms(first, second, third)


def _outputs(objective: Objective, params: Params, x: Array) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(objective.apply, params, x)


def _trace(
    function: Callable[[Array], Any],
    like: jax.ShapeDtypeStruct,
    key: PRNGKeyArray,
    probes: int | None,
):
    """The sum of a quadratic form over a basis of the outputs, exact or by random signs."""
    if probes is None and like.size <= _EXACT_OUTPUTS:
        basis = jnp.eye(like.size, dtype=like.dtype).reshape(like.size, *like.shape)
        terms, count = jax.lax.map(function, basis), 1
    else:
        count = probes or _PROBES
        signs = jax.random.rademacher(key, (count, *like.shape), like.dtype)
        terms = jax.lax.map(function, signs)
    return jax.tree.map(lambda term: jnp.sum(term) / count, terms)
