"""The interface of a task family, and the three families a run works with."""

import abc
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from metastep._errors import InputError, check_count
from metastep._types import Batch, Episode, Kind


class AbstractTaskFamily(eqx.Module):
    """A distribution over tasks, sampled as episodes.

    A family is a pytree: arrays it draws from (images, tables, ranges) are leaves, sizes are static. So
    `sample` can be compiled, mapped over keys and moved to a device, and other data of the same shape
    does not recompile it.
    """

    @property
    @abc.abstractmethod
    def kind(self) -> Kind:
        """What is asked: real targets or class labels."""

    @property
    @abc.abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""

    @property
    @abc.abstractmethod
    def output_size(self) -> int:
        """Number of outputs a model needs: target dimensions or classes."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray) -> Episode:
        """Draw one task and its examples."""


class TaskSplits(eqx.Module):
    """One family for each use; synthetic families are the same in all three."""

    train: AbstractTaskFamily
    validation: AbstractTaskFamily
    test: AbstractTaskFamily
    name: str = eqx.field(static=True, default="tasks")

    @classmethod
    def same(cls, family: AbstractTaskFamily, name: str) -> "TaskSplits":
        """Splits of a family that never runs out of fresh tasks."""
        return cls(family, family, family, name)


def batch_of_episodes(family: AbstractTaskFamily, key: PRNGKeyArray, num_tasks: int) -> Episode:
    """Draw `num_tasks` episodes; every array gets a leading task axis."""
    return jax.vmap(family.sample)(jax.random.split(key, num_tasks))


def check_sizes(**sizes: int) -> None:
    """Raise unless every named size is a whole number of at least 1; `curvature` may be 0."""
    for name, size in sizes.items():
        check_count(name, size, minimum=0 if name == "curvature" else 1)


def check_counts(counts: np.ndarray, total: int, group: str, members: str) -> None:
    """Raise unless `counts` cuts `total` examples into groups.

    Indices past the end are clipped on the device: other counts would mix groups in silence.
    """
    if counts.ndim != 1 or not (np.issubdtype(counts.dtype, np.integer) or counts.size == 0):
        raise InputError(f"counts must be whole numbers, one for each {group}, not {counts!r}")
    if counts.size and counts.sum() != total:
        raise InputError(
            f"counts add up to {counts.sum()}, but there are {total} {members}; give the number of each {group}"
        )


def check_groups(
    counts: np.ndarray, needed: dict[str, int], names: Sequence[str], groups: str, members: str
) -> None:
    """Raise unless there are groups, and each has enough members for one episode.

    `needed` says what an episode takes of a group, such as {"shots": 1, "queries": 15}.
    """
    if counts.size == 0:
        raise InputError(f"there are no {groups}; at least one is needed")
    total = sum(needed.values())
    short = np.flatnonzero(counts < total)
    if not short.size:
        return
    worst = int(short[np.argmin(counts[short])])
    parts = " + ".join(f"{name} {count}" for name, count in needed.items() if count)
    raise InputError(
        f"{short.size} of {counts.size} {groups} have fewer than {total} {members} ({parts}); the smallest, "
        f"{names[worst] if names else worst!r}, has {counts[worst]}: lower --shots or --queries, or leave "
        f"the small {groups} out"
    )


def as_default_float(values: np.ndarray) -> Array:
    """On the device, floating-point numbers in JAX's default precision; integers as they are."""
    array = jnp.asarray(values)
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    return array.astype(jnp.result_type(float)) if is_float else array


def split_batch(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    """Cut a batch into consecutive parts of the given sizes along the example axis."""
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    starts = [0, *stops[:-1]]
    return [
        Batch(batch.x[start:stop], batch.y[start:stop])
        for start, stop in zip(starts, stops, strict=True)
    ]
