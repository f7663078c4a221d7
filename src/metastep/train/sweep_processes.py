"""A sweep dealt out to processes by joblib, for cells that do not fit side by side into one program."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from metastep._allocator import keep_freed_memory
from metastep._errors import check_count
from metastep.tasks import TaskSplits
from metastep.train.learner import Learner
from metastep.train.sweep import Progress, SweepResult, sweep

# What a process has to share with the one that started it, so that it compiles the same programs.
_SETTINGS = (
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_disable_most_optimizations",
    "jax_default_matmul_precision",
    "jax_compilation_cache_dir",
)
_AXES = ("alphas", "meta_lrs", "seeds")


def sweep_over_processes(
    learner: Learner,
    splits: TaskSplits,
    alphas: Sequence[float] | None,
    meta_lrs: Sequence[float],
    seeds: Sequence[int] = (0,),
    *,
    processes: int,
    keep: Path | None = None,
    progress: Progress = lambda done, total: None,
    **options: Any,
) -> SweepResult:
    """The same as `sweep`, one value of its longest axis after the other, in several processes.

    For convolutions on a CPU, whose trainings `sweep` takes one by one. Each process compiles for itself, or finds
    the program in the compiler's cache.

    Parameters
    ----------
    learner, splits, alphas, meta_lrs, seeds : see `sweep`; sent to the processes
    processes : how many run at a time
    keep : folder to save each part in, see `sweep`
    progress : called with (parts done, parts in all)
    options : others of `sweep`

    Returns
    -------
    what `sweep` finds; `seconds` is the sum over the parts. Where `sweep` computes cells side by side, the last bits
    may differ, as other programs compute them.

    Raises
    ------
    InputError
        As `sweep`, and for fewer than one process.
    """
    import joblib  # nothing else needs it

    check_count("processes", processes)
    values = dict(zip(_AXES, (alphas, meta_lrs, seeds), strict=True))
    axis = max(_AXES, key=lambda name: len(values[name] or ()))
    settings = {name: _setting(name) for name in _SETTINGS}
    jobs = [
        values | options | {axis: (value,), "keep": keep and keep / f"{axis}-{number}"}
        for number, value in enumerate(values[axis] or ())
    ]
    work = joblib.Parallel(n_jobs=processes, return_as="generator_unordered")
    done: Any = work(
        joblib.delayed(_part)(number, learner, splits, job, settings)
        for number, job in enumerate(jobs)
    )
    parts: dict[int, SweepResult] = {}
    for number, part in done:
        parts[number] = part
        progress(len(parts), len(jobs))
    return _joined([parts[number] for number in sorted(parts)], axis)


def _setting(name: str) -> Any:
    """As it is here and now; JAX keeps those that a context can change apart from the others."""
    try:
        return jax.config.read(name)
    except AttributeError:
        return getattr(jax.config, name)


def _part(
    number: int, learner: Learner, splits: TaskSplits, job: dict[str, Any], settings: dict[str, Any]
) -> tuple[int, SweepResult]:
    """One part, in a process of its own."""
    for name, value in settings.items():
        jax.config.update(name, value)
    keep_freed_memory()
    return number, sweep(learner, splits, **job)


def _joined(parts: list[SweepResult], axis: str) -> SweepResult:
    """Parts that differ in one axis, as one result."""
    place = _AXES.index(axis)
    joined: dict[str, Any] = {axis: [value for part in parts for value in getattr(part, axis)]}
    for field in dataclasses.fields(SweepResult):
        values = [getattr(part, field.name) for part in parts]
        if isinstance(values[0], np.ndarray):  # (milestones, *axes), or (*axes)
            joined[field.name] = np.concatenate(values, axis=place + values[0].ndim - len(_AXES))
    joined["seconds"] = sum(part.seconds for part in parts)
    return dataclasses.replace(parts[0], **joined)
