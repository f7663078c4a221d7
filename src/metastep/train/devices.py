"""One meta-step on several devices: each takes its share of the tasks, and they share the mean gradient.

State and examples are replicated, tasks are dealt out along a one-dimensional mesh. Every device samples, adapts and
differentiates its own tasks as one device would; then the gradients are averaged, one all-reduce for each array of
parameters, and the outcomes gathered. All that follows (optimiser, guard, records) is computed by every device from
the same numbers. Without a mesh, these functions are what they stand for on one device, and add nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray

from metastep._errors import InputError, check_count
from metastep._types import Episode, MetaParams
from metastep.metagrad import TaskGradient, TaskOutcome, mean_over_tasks
from metastep.tasks import AbstractTaskFamily, batch_of_episodes
from metastep.train.learner import map_tasks

TASKS = "tasks"
Tree = TypeVar("Tree")


def make_mesh(
    devices: int | None, tasks_per_step: int, among: Sequence[Any] | None = None
) -> Mesh | None:
    """The devices of a run as a mesh with the axis "tasks"; None where there is only one.

    Parameters
    ----------
    devices : of each process. None takes one on CPU; elsewhere the most that deal out the tasks evenly.
    tasks_per_step : tasks of a meta-step
    among : devices to choose from; those of all processes by default

    Raises
    ------
    InputError
        When a process has fewer devices, or the tasks of a meta-step cannot be dealt out evenly.
    """
    everywhere = list(jax.devices() if among is None else among)
    processes = sorted({device.process_index for device in everywhere})
    groups = [[d for d in everywhere if d.process_index == process] for process in processes]
    fewest = min(len(group) for group in groups)
    if devices is None:
        devices = _default_devices(everywhere[0].platform, fewest, len(groups), tasks_per_step)
    check_count("--devices", devices)
    if devices > fewest:
        raise InputError(_too_many(devices, fewest, everywhere[0].platform))
    total = devices * len(groups)
    if tasks_per_step % total:
        raise InputError(
            f"--tasks-per-step {tasks_per_step} cannot be dealt out evenly to {_count(devices, len(groups))}; "
            f"make it a multiple of {total}, or change --devices"
        )
    if total == 1:
        return None
    return Mesh(np.array([device for group in groups for device in group[:devices]]), (TASKS,))


def _default_devices(platform: str, fewest: int, processes: int, tasks_per_step: int) -> int:
    if platform == "cpu":
        return 1
    even = [n for n in range(1, fewest + 1) if tasks_per_step % (n * processes) == 0]
    return max(even, default=1)


def _too_many(devices: int, fewest: int, platform: str) -> str:
    found = f"--devices is {devices}, but there {'is' if fewest == 1 else 'are'} only {fewest} here"
    if platform != "cpu":
        return f"{found}; lower it, or start more processes"
    return (
        f"{found}; a CPU counts as one, whatever its cores. For virtual devices, set "
        f"XLA_FLAGS=--xla_force_host_platform_device_count={devices} in the environment"
    )


def _count(devices: int, processes: int) -> str:
    if processes == 1:
        return f"{devices} devices"
    return f"{devices} device{'s' * (devices > 1)} in each of {processes} processes"


def replicate(mesh: Mesh | None, tree: Tree) -> Tree:
    """Put a copy of every array on every device; the processes of a run all give the same values."""
    if mesh is None:
        return tree
    everywhere = NamedSharding(mesh, P())

    def put(leaf: Any) -> Any:
        if isinstance(leaf, int):
            leaf = jnp.asarray(leaf)
        if isinstance(leaf, jax.Array) and leaf.sharding == everywhere:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, everywhere, lambda index: values[index])

    return jax.tree.map(put, tree)


def local(mesh: Mesh | None, tree: Tree) -> Tree:
    """The same values as arrays of this process alone, for what is not computed together."""
    return tree if mesh is None else jax.tree.map(jnp.asarray, jax.device_get(tree))


def draw_episodes(
    mesh: Mesh | None, family: AbstractTaskFamily, key: PRNGKeyArray, num_tasks: int
) -> Episode:
    """The tasks of a meta-step, each drawn where it will be used; the same tasks on any mesh."""
    if mesh is None:
        return batch_of_episodes(family, key, num_tasks)

    def sample(family: AbstractTaskFamily, keys: PRNGKeyArray) -> Episode:
        return jax.vmap(family.sample)(keys)

    keys = jax.random.split(key, num_tasks)
    return _on_each(mesh, sample, (P(), P(TASKS)), P(TASKS))(family, keys)


def gathered(mesh: Mesh | None, tree: Tree) -> Tree:
    """What all devices have on each of them, such as episodes for what looks at several tasks at once.

    A rate that does not look costs nothing: what nobody uses is never sent.
    """
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def mean_over_devices(
    mesh: Mesh | None,
    task_gradient: Callable[..., TaskGradient],
    shared: tuple[Any, ...],
    episodes: Episode,
    tasks_at_once: int | None,
) -> tuple[TaskOutcome, MetaParams]:
    """`mean_over_tasks` with the tasks dealt out: all outcomes and the mean meta-gradient, on every device.

    Parameters
    ----------
    mesh : the devices; None for one
    task_gradient : `shared` -> what computes the gradient of a task
    shared : arrays that all tasks use; inside, each device refers to its own copy
    episodes : every array with a leading task axis
    tasks_at_once : of those of one device; lowered to a number that divides its share
    """
    if mesh is None:
        return mean_over_tasks(task_gradient(*shared), episodes, tasks_at_once)

    def share(episodes: Episode, *shared: Any) -> tuple[TaskOutcome, MetaParams]:
        mine = jax.tree.leaves(episodes)[0].shape[0]
        width = None if tasks_at_once is None else math.gcd(tasks_at_once, mine)
        outcomes, gradient = mean_over_tasks(task_gradient(*shared), episodes, width)
        return jax.lax.all_gather(outcomes, TASKS, tiled=True), jax.lax.pmean(gradient, TASKS)

    specs = (P(TASKS), *(P() for _ in shared))
    return _on_each(mesh, share, specs, P())(episodes, *shared)


def map_over_devices(
    mesh: Mesh | None,
    function: Callable[..., Any],
    shared: tuple[Any, ...],
    keys: PRNGKeyArray,
    tasks_at_once: int | None,
) -> Any:
    """function(*shared, key) for each key, the keys dealt out; the last twice where they do not come out even."""
    if mesh is None:
        return map_tasks(lambda key: function(*shared, key), keys, tasks_at_once)

    def share(keys: PRNGKeyArray, *shared: Any) -> Any:
        results = map_tasks(lambda key: function(*shared, key), keys, tasks_at_once)
        return jax.lax.all_gather(results, TASKS, tiled=True)

    num_tasks = keys.shape[0]
    padded = keys[jnp.arange(num_tasks + -num_tasks % mesh.size) % num_tasks]
    specs = (P(TASKS), *(P() for _ in shared))
    results = _on_each(mesh, share, specs, P())(padded, *shared)
    return jax.tree.map(lambda leaf: leaf[:num_tasks], results)


def _on_each(mesh: Mesh, function: Callable, inputs: Any, outputs: Any) -> Callable[..., Any]:
    """Run `function` on every device with its own part of the inputs.

    Types that tell what varies between devices are off: users' models may start loops from constants, which those
    types would refuse.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
