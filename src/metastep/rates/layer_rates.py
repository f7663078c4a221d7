"""One adaptation rate per array of parameters, optimal together, for any model."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metastep._derivatives import push_forward
from metastep._errors import InputError, check_count
from metastep._types import Episode, Params, Rate
from metastep.models import Objective
from metastep.rates.edges import _everything
from metastep.rates.estimates import check_finite
from metastep.rates.label_aware import bend, ggn_product, pull_back
from metastep.tasks import AbstractTaskFamily
from metastep.theory.citations import source

_EXACT_OUTPUTS = 40
_PROBES = 8
_RESAMPLES = 500
# Below this share of the largest eigenvalue, dependence of layers and rounding of float32 look the same.
_DEPENDENT = 1e-6


class LayerTerms(eqx.Module):
    """One task's query loss after an inner step with a rate per layer: loss - slope . a + a' curvature a / 2.

    Attributes
    ----------
    loss : () with labels the query loss; without, its part that adaptation can reach, by (H.6)'s assumptions
    slope : (layers,)
    curvature : (layers, layers), positive semi-definite
    """

    loss: Float[Array, "..."]
    slope: Float[Array, "... layers"]
    curvature: Float[Array, "... layers layers"]


@source("metastep", "label-aware rates of several layers together", "derived")
def label_aware_layer_terms(
    objective: Objective,
    params: Params,
    episode: Episode,
    restrict: Callable[[Params], Params] = _everything,
) -> LayerTerms:
    """slope_l = <g_query, P_l g>, curvature_lm = (P_l g)' GGN_query (P_m g): one jvp per layer.

    P_l keeps array l of the parameters, in the order of `jax.tree.leaves`; g is the inner gradient. Exact for a
    linear model with squared error.
    """
    gradient = restrict(jax.grad(objective.on(episode.support))(params))
    query = episode.query
    outputs = objective.apply(params, query.x)
    changes = _by_layer(objective, params, query.x, gradient)
    bent = jax.lax.map(lambda change: bend(objective, params, query, change), changes)
    slope = jax.grad(lambda o: objective.output_loss(o, query.y))(outputs)
    rows = changes.reshape(len(changes), -1)
    return LayerTerms(
        objective.output_loss(outputs, query.y),
        rows @ slope.ravel(),
        rows @ bent.reshape(len(bent), -1).T,
    )


@source("zou2022", "equation 3.3 with a rate per block of features, any model", "derived")
def label_free_layer_terms(
    objective: Objective,
    params: Params,
    episode: Episode,
    key: PRNGKeyArray,
    restrict: Callable[[Params], Params] = _everything,
) -> LayerTerms:
    """slope_l = tr(T P_l U), curvature_lm = tr(U P_l T P_m U), loss = tr T / 2: `theory.layer_rates` for a model.

    U and T are the Gauss-Newton matrices of support and query. U = sum of (J'z)(J'Hz)' over the support outputs
    z, or eight random sign vectors where there are more than 40.
    """
    support, query = episode.support, episode.query
    pull = lambda batch, z: restrict(pull_back(objective, params, batch, z))  # noqa: E731
    bent_pull = lambda batch, z: pull(batch, bend(objective, params, batch, z))  # noqa: E731

    def terms(z: Array) -> tuple[Array, Array]:
        v, w = pull(support, z), bent_pull(support, z)
        again = restrict(ggn_product(objective, params, support, w))
        right = _by_layer(objective, params, query.x, v)
        bent = jax.lax.map(lambda change: bend(objective, params, query, change), right)
        bent = bent.reshape(len(bent), -1)
        on_query = push_forward(lambda p: objective.apply(p, query.x), params, w)[1]
        left = _by_layer(objective, params, query.x, again).reshape(len(bent), -1)
        return bent @ on_query.ravel(), left @ bent.T

    def trace(z: Array) -> Array:
        pairs = zip(*map(jax.tree.leaves, (pull(query, z), bent_pull(query, z))), strict=True)
        return sum((jnp.vdot(a, b) for a, b in pairs), start=jnp.zeros((), z.dtype))

    support_key, query_key = jax.random.split(key)
    slopes, curvatures = jax.lax.map(terms, _starts(objective, params, support.x, support_key))
    curvature = jnp.sum(curvatures, axis=0)
    loss = jnp.sum(jax.lax.map(trace, _starts(objective, params, query.x, query_key)))
    return LayerTerms(loss / 2, jnp.sum(slopes, axis=0), (curvature + curvature.T) / 2)


def _starts(objective: Objective, params: Params, x: Array, key: PRNGKeyArray) -> Array:
    """A basis of the outputs, or scaled sign vectors whose sum of squares has the identity for its mean."""
    like = jax.eval_shape(objective.apply, params, x)
    if like.size <= _EXACT_OUTPUTS:
        return jnp.eye(like.size, dtype=like.dtype).reshape(like.size, *like.shape)
    signs = jax.random.rademacher(key, (_PROBES, *like.shape), like.dtype)
    return signs / jnp.sqrt(jnp.asarray(_PROBES, like.dtype))


def _by_layer(objective: Objective, params: Params, x: Array, vector: Params) -> Array:
    """J P_l vector for every layer l, (layers, *outputs)."""
    leaves, structure = jax.tree.flatten(vector)

    def change(kept: Array) -> Array:
        only = [jnp.where(kept == i, leaf, jnp.zeros_like(leaf)) for i, leaf in enumerate(leaves)]
        tangent = jax.tree.unflatten(structure, only)
        return push_forward(lambda p: objective.apply(p, x), params, tangent)[1]

    return jax.lax.map(change, jnp.arange(len(leaves)))


@dataclasses.dataclass(frozen=True)
class LayerRates:
    """A rate for each array of parameters, with 95 % intervals over tasks.

    Attributes
    ----------
    names : path of each array, in the order of `jax.tree.leaves`
    alphas, intervals : its rate; 0 for arrays the inner loop leaves alone
    rate : the same as a pytree like the parameters, to be handed to an adapter or a `FixedRate`
    gain, single_gain : predicted share of the loss that these rates remove, and the best single rate
    labels : whether the labels were used
    num_tasks : tasks measured
    warnings : what to know before using them
    """

    names: list[str]
    alphas: list[float]
    intervals: list[list[float]]
    rate: Rate
    gain: float
    single_gain: float
    labels: bool
    num_tasks: int
    warnings: list[str]


@source("zou2022", "equation 3.3 with a rate per block of features, any model", "derived")
def per_layer_rates(
    objective: Objective,
    params: Params,
    family: AbstractTaskFamily,
    key: PRNGKeyArray,
    *,
    labels: bool = True,
    num_tasks: int = 64,
    restrict: Callable[[Params], Params] = _everything,
    tasks_at_once: int | None = None,
) -> LayerRates:
    """Measure one rate per array of parameters on fresh tasks: mean curvature . alphas = mean slope.

    Parameters
    ----------
    objective, params, family, key : as for `advise_rates`
    labels : use the labels, or the inputs alone as (H.6) does
    num_tasks : at least 2
    restrict : zeroes what the inner loop leaves alone (ANIL)
    tasks_at_once : tasks computed side by side; None for all

    Returns
    -------
    `LayerRates`. Rates can be negative, and where arrays are linearly dependent the solution of least norm is
    taken, as in `theory.layer_rates`. The intervals are percentiles over resampled tasks.

    Raises
    ------
    InputError
        For counts out of range, derivatives that are not finite, or a loss without curvature.
    """
    check_count("num_tasks", num_tasks, minimum=2)
    found = jax.device_get(
        _over_tasks(objective, restrict, params, family, key, labels, num_tasks, tasks_at_once)
    )
    loss, slope, curvature = (
        np.asarray(leaf, float) for leaf in (found.loss, found.slope, found.curvature)
    )
    check_finite(loss, slope, curvature)
    if not curvature.any():
        raise InputError(
            "the loss has no curvature on these tasks, so its quadratic has no minimum"
        )
    alphas = _solve(curvature.mean(axis=0), slope.mean(axis=0))
    draws = np.random.default_rng(0).integers(0, num_tasks, (_RESAMPLES, num_tasks))
    resampled = [_solve(curvature[draw].mean(axis=0), slope[draw].mean(axis=0)) for draw in draws]
    paths, structure = jax.tree.flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
    negative = [name for name, alpha in zip(names, alphas, strict=True) if alpha < 0]
    single = slope.sum() ** 2 / (2 * curvature.sum() * loss.sum()) if curvature.sum() > 0 else 0.0
    return LayerRates(
        names=names,
        alphas=alphas.tolist(),
        intervals=np.percentile(resampled, [2.5, 97.5], axis=0).T.tolist(),
        rate=jax.tree.unflatten(
            structure,
            [jnp.asarray(a, leaf.dtype) for a, (_, leaf) in zip(alphas, paths, strict=True)],
        ),
        gain=float(alphas @ slope.mean(axis=0) / (2 * loss.mean())),
        single_gain=float(single),
        labels=labels,
        num_tasks=int(num_tasks),
        warnings=[f"the rate of {', '.join(negative)} is negative"] if negative else [],
    )


@eqx.filter_jit
def _over_tasks(
    objective, restrict, params, family, key, labels: bool, num_tasks: int, tasks_at_once
) -> LayerTerms:
    def one(of_task: tuple[PRNGKeyArray, PRNGKeyArray]) -> LayerTerms:
        episode = family.sample(of_task[0])
        if labels:
            return label_aware_layer_terms(objective, params, episode, restrict)
        return label_free_layer_terms(objective, params, episode, of_task[1], restrict)

    task_key, probe_key = jax.random.split(key)
    keys = jax.random.split(task_key, num_tasks), jax.random.split(probe_key, num_tasks)
    return jax.lax.map(one, keys, batch_size=tasks_at_once or num_tasks)


def _solve(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A x = b for a positive semi-definite A whose rows may differ widely in size."""
    size = np.sqrt(np.maximum(np.diagonal(matrix), 0))
    size = np.where(size > 0, size, 1)
    unit = matrix / np.outer(size, size)
    return np.linalg.pinv(unit, rcond=_DEPENDENT, hermitian=True) @ (right / size) / size
