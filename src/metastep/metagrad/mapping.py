"""From one task to a meta-batch: how many tasks are computed side by side, and their mean."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from metastep._errors import InputError, check_count
from metastep._types import Episode, MetaParams, Scalar
from metastep.adapt import AbstractAdapter
from metastep.metagrad.bounded import bounded_sum
from metastep.metagrad.core import AbstractMetaGradient, RateRule, TaskOutcome
from metastep.models import Objective

Outcome = TypeVar("Outcome")


@dataclasses.dataclass(frozen=True)
class TaskGradient:
    """A meta-gradient with all but the episodes given: of one task, or of a group at once.

    Attributes
    ----------
    rule, objective, adapter, rate, meta : as `AbstractMetaGradient` takes them
    longest : the length that a task's meta-gradient is cut to, see `bounded_sum`; None for no bound
    """

    rule: AbstractMetaGradient
    objective: Objective
    adapter: AbstractAdapter
    rate: RateRule
    meta: MetaParams
    longest: Scalar | None = None

    def __call__(self, episode: Episode) -> tuple[TaskOutcome, MetaParams]:
        """The outcome of one task and its meta-gradient."""
        found = self.rule(self.objective, self.adapter, self.rate, self.meta, episode)
        if self.longest is None:
            return found
        outcomes, gradients = jax.tree.map(lambda leaf: leaf[None], found)
        outcomes, total = bounded_sum(outcomes, gradients, self.longest)
        return jax.tree.map(lambda leaf: leaf[0], outcomes), total

    def of_group(self, episodes: Episode) -> tuple[TaskOutcome, MetaParams]:
        """The outcomes of tasks computed side by side, and the sum of their meta-gradients."""
        if self.longest is None:
            return self.rule.of_group(self.objective, self.adapter, self.rate, self.meta, episodes)
        # The gradient of the sum, which is cheaper, would not tell how long each was.
        outcomes, gradients = jax.vmap(dataclasses.replace(self, longest=None))(episodes)
        return bounded_sum(outcomes, gradients, self.longest)


def mean_over_tasks(
    task_gradient: Callable[[Episode], tuple[Outcome, MetaParams]],
    episodes: Episode,
    tasks_at_once: int | None = None,
) -> tuple[Outcome, MetaParams]:
    """All task outcomes, and the mean of the meta-gradients.

    Parameters
    ----------
    task_gradient : one episode -> (outcome, meta-gradient); a `TaskGradient` also knows a shorter way for
        tasks side by side
    episodes : every array with a leading task axis
    tasks_at_once : tasks computed side by side, a divisor of their number; the groups follow one another
        and only the sum of their gradients is kept. None takes all at once.

    Returns
    -------
    outcomes with a leading task axis, mean meta-gradient
    """
    num_tasks = jax.tree.leaves(episodes)[0].shape[0]
    width = num_tasks if tasks_at_once is None else tasks_at_once
    check_count("tasks_at_once", width)
    if num_tasks % width:
        raise InputError(
            f"tasks_at_once is {width}, which does not divide the {num_tasks} tasks of a meta-step"
        )
    if width == num_tasks:
        outcomes, total = _side_by_side(task_gradient, episodes)
    else:
        outcomes, total = _in_groups(task_gradient, episodes, num_tasks, width)
    return outcomes, jax.tree.map(lambda leaf: leaf / num_tasks, total)


def _side_by_side(
    task_gradient: Callable[[Episode], tuple[Any, MetaParams]], episodes: Episode
) -> tuple[Any, MetaParams]:
    """All outcomes, and the sum of the meta-gradients."""
    if isinstance(task_gradient, TaskGradient):
        return task_gradient.of_group(episodes)
    outcomes, gradients = jax.vmap(task_gradient)(episodes)
    return outcomes, jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), gradients)


def _in_groups(
    task_gradient: Callable[[Episode], tuple[Outcome, MetaParams]],
    episodes: Episode,
    num_tasks: int,
    width: int,
) -> tuple[Outcome, MetaParams]:
    groups = jax.tree.map(lambda leaf: leaf.reshape(-1, width, *leaf.shape[1:]), episodes)
    first = jax.tree.map(lambda leaf: leaf[0, 0], groups)
    shapes = jax.eval_shape(lambda episode: task_gradient(episode)[1], first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add_group(total: MetaParams, group: Episode) -> tuple[MetaParams, Outcome]:
        if width == 1:  # no task axis at all: a product of one is not a batched product
            outcome, gradient = task_gradient(jax.tree.map(lambda leaf: leaf[0], group))
            return jax.tree.map(jnp.add, total, gradient), jax.tree.map(lambda a: a[None], outcome)
        outcomes, gradient = _side_by_side(task_gradient, group)
        return jax.tree.map(jnp.add, total, gradient), outcomes

    total, outcomes = jax.lax.scan(add_group, zeros, groups)
    return jax.tree.map(lambda leaf: leaf.reshape(num_tasks, *leaf.shape[2:]), outcomes), total
