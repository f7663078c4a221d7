"""What several inner steps do to one task's quadratic: polynomials in its curvature, through Lanczos."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax.tree_utils as otu
from jaxtyping import Array, Float, PRNGKeyArray

from metastep._derivatives import push_forward
from metastep._types import Batch, Episode, Params
from metastep.models import Objective
from metastep.rates.curvature import tridiagonal
from metastep.rates.label_aware import bend, ggn_product, pull_back
from metastep.theory.citations import source

# With at most this many query outputs every one is a start; else random combinations of them.
_EXACT_OUTPUTS = 40
_PROBES = 8


class KrylovTerms(eqx.Module):
    """The query loss as a quadratic on the Krylov space of the inner gradient g, in an orthonormal basis Q.

    loss(w - |g| Q y) ~ loss - |g| slope . y + |g|^2 y' curvature y / 2, where inner steps on the support quadratic
    move y by polynomials in the tridiagonal matrix T = Q' U Q.

    Attributes
    ----------
    loss : query loss at the parameters
    length : |g|
    diagonal, below : T, both (steps,); the last entry of `below` is outside and 0
    slope : Q' (query gradient), (steps,)
    curvature : Q' (query Gauss-Newton matrix) Q, (steps, steps)
    """

    loss: Float[Array, "..."]
    length: Float[Array, "..."]
    diagonal: Float[Array, "... steps"]
    below: Float[Array, "... steps"]
    slope: Float[Array, "... steps"]
    curvature: Float[Array, "... steps steps"]


def krylov_terms(
    objective: Objective,
    params: Params,
    episode: Episode,
    steps: int,
    restrict: Callable[[Params], Params] = lambda gradient: gradient,
) -> KrylovTerms:
    """All that `steps` inner gradient steps can see of one task, from 2 `steps` products.

    Exact for a linear model with squared error, at any rates; else the quadratic of the Gauss-Newton matrices.

    Parameters
    ----------
    objective, params, episode, restrict : as for `label_aware_terms`
    steps : inner steps, at least 1
    """
    gradient = restrict(jax.grad(objective.on(episode.support))(params))
    length = otu.tree_norm(gradient)
    start = jax.tree.map(lambda leaf: jnp.where(length > 0, leaf, jnp.ones_like(leaf)), gradient)
    diagonal, below, _, basis = tridiagonal(
        lambda v: restrict(ggn_product(objective, params, episode.support, v)), start, steps
    )
    query = episode.query
    outputs = objective.apply(params, query.x)
    push = lambda v: push_forward(lambda w: objective.apply(w, query.x), params, v)[1]  # noqa: E731
    changes = jax.lax.map(push, basis)
    bent = jax.lax.map(lambda change: bend(objective, params, query, change), changes)
    slope = jax.grad(lambda o: objective.output_loss(o, query.y))(outputs)
    rows = lambda array: array.reshape(array.shape[0], -1)  # noqa: E731
    return KrylovTerms(
        loss=objective.output_loss(outputs, query.y),
        length=length,
        diagonal=diagonal,
        below=below,
        slope=rows(changes) @ slope.ravel(),
        curvature=rows(changes) @ rows(bent).T,
    )


def loss_after(terms: KrylovTerms, rates: Float[Array, " steps"]) -> Array:
    """Predicted query loss of one task after inner steps at `rates`, one each."""
    left = jnp.zeros_like(terms.slope).at[0].set(1)  # what the steps so far have left of g / |g|
    moved = jnp.zeros_like(left)
    for rate in rates:
        moved = moved + rate * left
        beside = terms.below[:-1]
        bent = terms.diagonal * left
        bent = bent.at[:-1].add(beside * left[1:]).at[1:].add(beside * left[:-1])
        left = left - rate * bent
    linear, square = terms.slope @ moved, moved @ terms.curvature @ moved
    return terms.loss - terms.length * linear + terms.length**2 * square / 2


class SpectralMeasure(eqx.Module):
    """A measure on the eigenvalues of the support curvature U, as a quadrature rule.

    Attributes
    ----------
    nodes, weights : (..., points), not negative
    """

    nodes: Float[Array, "... points"]
    weights: Float[Array, "... points"]


@source("zou2022", "(B.6) and (H.6) as an integral over the spectrum", "derived")
def label_free_measure(
    objective: Objective,
    params: Params,
    episode: Episode,
    key: PRNGKeyArray,
    steps: int,
    restrict: Callable[[Params], Params] = lambda gradient: gradient,
) -> SpectralMeasure:
    """The measure mu with E loss after steps at rates alpha_s = integral of prod_s (1 - alpha_s u)^2 d mu(u).

    The expectation is over isotropic task optima, as in (H.6): mu puts v' T v on the eigenvalue u of U with
    eigenvector v, T the Gauss-Newton matrix of the query. With T = sum of b b' over b = J' H^(1/2) e, one e for
    each query output, Lanczos on U started at b gives the rule that is exact for polynomials up to degree
    2 `steps` + 1, which is more than `steps` inner steps need. Beyond 40 query outputs eight random sign vectors
    take the place of the e.

    Parameters
    ----------
    objective, params, episode, restrict : as for `label_free_terms`; the output loss is a mean over examples
    key : of the random signs
    steps : inner steps, at least 1
    """
    query = episode.query
    root = _output_root(objective, params, query)
    like = jax.eval_shape(objective.apply, params, query.x)
    if like.size <= _EXACT_OUTPUTS:
        starts = jnp.eye(like.size, dtype=like.dtype).reshape(like.size, *like.shape)
    else:
        signs = jax.random.rademacher(key, (_PROBES, *like.shape), like.dtype)
        starts = signs / jnp.sqrt(jnp.asarray(_PROBES, like.dtype))

    def rule(unit: Array) -> tuple[Array, Array]:
        turned = jnp.einsum("ncd,nd->nc", root, unit.reshape(root.shape[:2])).reshape(like.shape)
        b = restrict(pull_back(objective, params, query, turned))
        length = otu.tree_norm(b)
        start = jax.tree.map(lambda leaf: jnp.where(length > 0, leaf, jnp.ones_like(leaf)), b)
        diagonal, below, _, _ = tridiagonal(
            lambda v: restrict(ggn_product(objective, params, episode.support, v)), start, steps + 1
        )
        small = jnp.diag(diagonal) + jnp.diag(below[:-1], 1) + jnp.diag(below[:-1], -1)
        nodes, vectors = jnp.linalg.eigh(small)
        return jnp.maximum(nodes, 0), length**2 * vectors[0] ** 2

    nodes, weights = jax.lax.map(rule, starts)
    return SpectralMeasure(nodes.ravel(), weights.ravel())


def _output_root(objective: Objective, params: Params, batch: Batch) -> Float[Array, "n c c"]:
    """Square root of the Hessian of the loss in the outputs, example by example.

    The Hessian is block-diagonal because the loss is a mean over examples, so one product per output column
    gives all blocks.
    """
    outputs = jax.eval_shape(objective.apply, params, batch.x)
    examples = outputs.shape[0]
    columns = outputs.size // examples

    def column(unit: Array) -> Array:
        tangent = jnp.broadcast_to(unit, (examples, columns)).reshape(outputs.shape)
        return bend(objective, params, batch, tangent).reshape(examples, columns)

    blocks = jnp.moveaxis(jax.lax.map(column, jnp.eye(columns, dtype=outputs.dtype)), 0, 2)
    values, vectors = jnp.linalg.eigh((blocks + jnp.swapaxes(blocks, 1, 2)) / 2)
    return jnp.einsum("nab,nb,ncb->nac", vectors, jnp.sqrt(jnp.maximum(values, 0)), vectors)
