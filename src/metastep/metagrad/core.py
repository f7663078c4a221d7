"""The interface of a meta-gradient, and what one task contributes to a meta-step."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from metastep._types import Episode, MetaParams, Params, Rate, Scalar
from metastep.adapt import AbstractAdapter, AdaptInfo
from metastep.models import Objective

RateRule = Callable[[MetaParams], Rate]
"""MetaParams -> the adaptation rate in force: where learned and prescribed rates meet."""


class TaskOutcome(eqx.Module):
    """What one task looked like in a meta-step.

    Attributes
    ----------
    loss : query loss after adaptation
    loss_before : support loss before adaptation, which costs nothing extra; without inner steps, `loss`
    metric : the objective's metric on the query set after adaptation, or None
    length : Euclidean length of the meta-gradient, infinite where that or the loss is not finite; None where no task
        was to be bounded
    """

    loss: Scalar
    loss_before: Scalar
    metric: Scalar | None
    length: Scalar | None = None


class AbstractMetaGradient(eqx.Module):
    """How one task's query loss is differentiated with respect to the meta-parameters."""

    @abc.abstractmethod
    def __call__(
        self,
        objective: Objective,
        adapter: AbstractAdapter,
        rate: RateRule,
        meta: MetaParams,
        episode: Episode,
    ) -> tuple[TaskOutcome, MetaParams]:
        """The outcome of one task and its meta-gradient, shaped like `meta`."""

    def of_group(
        self,
        objective: Objective,
        adapter: AbstractAdapter,
        rate: RateRule,
        meta: MetaParams,
        episodes: Episode,
    ) -> tuple[TaskOutcome, MetaParams]:
        """The outcomes of tasks computed side by side (leading task axis), and the sum of their meta-gradients."""
        one = lambda episode: self(objective, adapter, rate, meta, episode)  # noqa: E731
        outcomes, gradients = jax.vmap(one)(episodes)
        return outcomes, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), gradients)


def judge(
    objective: Objective, adapted: Params, episode: Episode, info: AdaptInfo | None = None
) -> TaskOutcome:
    """The outcome of a task whose parameters are `adapted`."""
    outputs = objective.apply(adapted, episode.query.x)
    loss = objective.output_loss(outputs, episode.query.y)
    metric = objective.metric and objective.metric(outputs, episode.query.y)
    if info is None or info.losses.shape[0] == 0:
        return TaskOutcome(loss, loss, metric)
    return TaskOutcome(loss, info.losses[0], metric)
