"""The parts of a run put together: model, objective, inner loop, meta-gradient, rate and outer optimiser."""

import dataclasses
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from metastep._kept import kept_jit
from metastep._trees import group_size
from metastep._types import Episode, MetaParams, Params, Rate
from metastep.adapt import GradientAdapter, Halved, adapt_halving
from metastep.metagrad import AbstractMetaGradient
from metastep.models import Model, Objective
from metastep.rates import AbstractRate


@dataclasses.dataclass(frozen=True)
class Learner:
    """What a meta-step is made of; nothing in it changes during a run.

    Attributes
    ----------
    model, objective : the model and its loss
    adapter : the inner loop
    meta_gradient : how the query loss is differentiated
    rate : where the adaptation rate comes from
    optimizer : the outer optimiser
    meta_lr : the peak rate that a run starts with, where the optimiser keeps its rate in its state; None: as built
    tasks_per_step : tasks of a meta-step
    tasks_at_once : tasks computed side by side; None for all
    schedule : course of the meta rate over the run, a name in `rates.SCHEDULES`
    clip_tasks : how many times the usual length a task's meta-gradient may have, see `bounds.longest`; None for any
    back_offs : how often a run that leaves the finite numbers goes back and on with a lower rate
    mesh : devices that the tasks of a meta-step are dealt out to; None for one
    """

    model: Model
    objective: Objective
    adapter: GradientAdapter
    meta_gradient: AbstractMetaGradient
    rate: AbstractRate
    optimizer: optax.GradientTransformation
    tasks_per_step: int
    meta_lr: float | None = None
    tasks_at_once: int | None = None
    schedule: str = "constant"
    clip_tasks: float | None = None
    back_offs: int = 10
    mesh: Mesh | None = None

    def adapt(
        self,
        params: Params,
        alpha: Rate,
        episode: Episode,
        halvings: int,
        steps: int | None = None,
        **watch: Any,
    ) -> Halved:
        """Adapt to a task that comes after meta-training, see `adapt_halving`; `steps` are those of training."""
        steps = self.adapter.steps if steps is None else steps
        adapter = dataclasses.replace(self.adapter, steps=steps)
        gradient = jax.value_and_grad(self.objective.on(episode.support))
        return adapt_halving(adapter, gradient, params, alpha, halvings, **watch)

    def query_loss(self, params: Params, episode: Episode, alpha: Rate) -> Array:
        """Query loss after the inner loop: the meta-objective of one task."""
        return loss_after(self.objective, self.adapter, params, episode, alpha)


def loss_after(
    objective: Objective, adapter: GradientAdapter, params: Params, episode: Episode, alpha: Rate
) -> Array:
    """Query loss after the inner loop: the meta-objective of one task."""
    gradient = jax.value_and_grad(objective.on(episode.support))
    return objective(adapter(gradient, params, alpha)[0], episode.query)


# One for each model, so that whoever asks for the parameters it starts with has the same program.
_kept_init = lru_cache(maxsize=8)(kept_jit)


def first_parameters(model: Model, key: PRNGKeyArray) -> Params:
    """The parameters a model starts with."""
    return _kept_init(model.init)(key)


# On CPU, dense models lose up to half of their speed once the tasks side by side leave the cache: by their examples
# beyond 25 tasks, by their parameters beyond a megabyte. Less than five lose on two cores what they gain on one.
_GROUP_ON_CPU, _GROUP_OF_WIDE, _CACHE = 25, 5, 2**20


def side_by_side(
    model: Model, choice: int | None = None, num_tasks: int | None = None
) -> int | None:
    """How many tasks to compute side by side; None for all.

    The user's choice; else all on accelerators. On CPU one at a time for convolutions, whose intermediate arrays
    would leave the cache, and for dense models as many as stay in it: at most 25, and no more than have a megabyte of
    parameters, but 5 of any. Of these the largest divisor of `num_tasks`; all, if that is less than 5 though 5
    would fit. Where the number is not known, a power of two for models too wide for 25, and all for others.
    """
    if choice is not None:
        return choice
    if jax.default_backend() != "cpu":
        return None
    if model.task_mapping == "sequential":
        return 1
    fit = _CACHE // max(_bytes(model), 1)
    most = min(max(fit, _GROUP_OF_WIDE), _GROUP_ON_CPU)
    if num_tasks is None:
        return None if most == _GROUP_ON_CPU else 2 ** int(math.log2(most))
    if num_tasks <= most:
        return None
    width = group_size(num_tasks, most)
    return width if width >= _GROUP_OF_WIDE or fit < _GROUP_OF_WIDE else None


def _bytes(model: Model) -> int:
    """Of the parameters of one task."""
    params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))


def map_tasks(function: Callable, keys: PRNGKeyArray, tasks_at_once: int | None):
    """Apply `function` to each key, `tasks_at_once` of them side by side; results get a leading task axis."""
    return jax.lax.map(function, keys, batch_size=tasks_at_once or keys.shape[0])


def rates_in_force(learner: Learner, meta: MetaParams, rate_state: Any) -> Array:
    """Every rate of what adapts, as one vector."""
    return rates_of(learner, meta.params, learner.rate.alpha(meta, rate_state))


def rates_of(learner: Learner, params: Params, alpha: Rate) -> Array:
    """Every rate of what adapts in `alpha`, a prefix of `params` or one for each inner step, as one vector."""
    leaves, trainable = jax.tree.leaves(alpha), learner.adapter.trainable
    if trainable is not None and jax.tree.structure(alpha) == jax.tree.structure(params):
        adapts = jax.tree.leaves(trainable(params))
        leaves = [leaf for leaf, moves in zip(leaves, adapts, strict=True) if moves]
    return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])


def mean_alpha(learner: Learner, meta: MetaParams, rate_state: Any) -> Array:
    """One number for logs: `mean_rate` of the rates in force."""
    return mean_rate(rates_in_force(learner, meta, rate_state))


def mean_rate(rates: Array) -> Array:
    """The geometric mean over the rates of all that adapts, 0 if one of them is.

    Rates of parameters spread over orders of magnitude, and an arithmetic mean would show the largest alone.
    """
    return rates[0] if rates.size == 1 else jnp.exp(jnp.mean(jnp.log(rates)))
