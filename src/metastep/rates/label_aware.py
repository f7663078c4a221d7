"""The label-aware adaptation rate: the minimum, along the inner gradient, of the task's own quadratic."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax.tree_utils as otu
from jaxtyping import Array, Float

from metastep._derivatives import push_forward
from metastep._types import Batch, Episode, Params
from metastep.models import Objective
from metastep.theory.citations import source


class AwareTerms(eqx.Module):
    """L_query(w - alpha g) ~ loss - alpha slope + alpha^2 curvature / 2, task by task.

    Attributes
    ----------
    loss : query loss at the parameters
    slope : <g_query, g_support>
    curvature : g_support' GGN_query g_support, not negative
    """

    loss: Float[Array, "..."]
    slope: Float[Array, "..."]
    curvature: Float[Array, "..."]


@source("metastep", "alpha = <g_query, g_support> / (g_support' GGN_query g_support)", "derived")
def label_aware_terms(
    objective: Objective,
    params: Params,
    episode: Episode,
    restrict: Callable[[Params], Params] = lambda gradient: gradient,
) -> AwareTerms:
    """The quadratic that one inner step moves along, from one vjp and one jvp.

    For a linear model with squared error this is the query loss itself, and slope / curvature, summed over
    tasks first, is the label-aware rate `theory.label_aware_rate`.

    Parameters
    ----------
    objective : model and loss
    params : where the step starts
    episode : one task
    restrict : zeroes the gradient of parameters the inner loop leaves alone (ANIL)
    """
    direction = restrict(jax.grad(objective.on(episode.support))(params))
    outputs, change = push_forward(lambda w: objective.apply(w, episode.query.x), params, direction)
    gradient, bent = jax.jvp(_output_gradient(objective, episode.query), (outputs,), (change,))
    return AwareTerms(
        loss=objective.output_loss(outputs, episode.query.y),
        slope=jnp.vdot(gradient, change),
        curvature=jnp.vdot(bent, change),
    )


def _output_gradient(objective: Objective, batch: Batch) -> Callable[[Array], Array]:
    return jax.grad(lambda outputs: objective.output_loss(outputs, batch.y))


def ggn_product(objective: Objective, params: Params, batch: Batch, vector: Params) -> Params:
    """GGN vector = J' H_outputs J vector: the curvature of the loss with the model linearised."""
    outputs, change = push_forward(lambda w: objective.apply(w, batch.x), params, vector)
    _, bent = jax.jvp(_output_gradient(objective, batch), (outputs,), (change,))
    return pull_back(objective, params, batch, bent)


def pull_back(objective: Objective, params: Params, batch: Batch, cotangent: Array) -> Params:
    """J' cotangent."""
    _, transpose = jax.vjp(lambda w: objective.apply(w, batch.x), params)
    return transpose(cotangent)[0]


def bend(objective: Objective, params: Params, batch: Batch, tangent: Array) -> Array:
    """H_outputs tangent."""
    outputs = objective.apply(params, batch.x)
    return jax.jvp(_output_gradient(objective, batch), (outputs,), (tangent,))[1]


def inner(a: Params, b: Params) -> Array:
    """<a, b> over all leaves."""
    return jnp.asarray(otu.tree_vdot(a, b))
