"""Meta-gradients that do not look through the inner loop: Reptile, and joint training without one."""

import jax
import jax.numpy as jnp

from metastep._types import Batch, Episode, MetaParams, Params, PerStep, Rate, Scalar
from metastep.adapt import AbstractAdapter
from metastep.metagrad.core import AbstractMetaGradient, RateRule, TaskOutcome, judge
from metastep.metagrad.through import FirstOrder
from metastep.models import Objective
from metastep.theory.citations import source


def _zero_like(meta: MetaParams) -> MetaParams:
    return jax.tree.map(jnp.zeros_like, meta)


@source("nichol2018", "algorithm 1 and section 3.1", "as printed")
class Reptile(AbstractMetaGradient):
    """(w - adapted) / alpha, after adapting on all examples of the task, support and query together.

    Dividing by alpha makes it a sum of `steps` gradients, so that the same meta rate suits it and MAML. The way moved
    says nothing about rates: theirs is the first-order gradient of MAML's loss, on the query set after adapting on
    the support set alone, which is also what is reported.
    """

    def __call__(
        self,
        objective: Objective,
        adapter: AbstractAdapter,
        rate: RateRule,
        meta: MetaParams,
        episode: Episode,
    ) -> tuple[TaskOutcome, MetaParams]:
        alpha = rate(meta)
        everything = _joined(episode.support, episode.query)
        loss = objective.on(everything)

        def after(way: Params) -> Scalar:
            return loss(jax.tree.map(jnp.add, meta.params, way))

        # From zero, so that steps at small rates are not lost in the rounding of what they are added to.
        start = jax.tree.map(jnp.zeros_like, meta.params)
        way, _ = adapter(jax.value_and_grad(after), start, alpha)
        outcome, first_order = FirstOrder()(objective, adapter, rate, meta, episode)
        gradient = MetaParams(_per_rate(way, alpha), first_order.rates)
        return outcome, gradient


def _joined(support: Batch, query: Batch) -> Batch:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), support, query)


def _per_rate(way: Params, alpha: Rate) -> Params:
    """-way / alpha, leaf by leaf; the mean over steps where alpha changes between them."""
    if isinstance(alpha, PerStep):
        alpha = jax.tree.map(lambda rates: jnp.mean(rates, axis=0), alpha.values)

    def divide(rate: Rate, part: Params) -> Params:
        return jax.tree.map(lambda leaf: -leaf / jnp.asarray(rate, leaf.dtype), part)

    return jax.tree.map(divide, alpha, way)


@source("zou2022", "equation (2.4), ERM", "as printed")
class JointTraining(AbstractMetaGradient):
    """ERM: the plain query gradient, which is MAML at alpha = 0. The baseline without an inner loop."""

    def __call__(
        self,
        objective: Objective,
        adapter: AbstractAdapter,
        rate: RateRule,
        meta: MetaParams,
        episode: Episode,
    ) -> tuple[TaskOutcome, MetaParams]:
        del adapter, rate

        def query_loss(params: Params):
            task = judge(objective, params, episode)
            return task.loss, task

        (_, task), gradient = jax.value_and_grad(query_loss, has_aux=True)(meta.params)
        return task, MetaParams(gradient, _zero_like(meta).rates)
