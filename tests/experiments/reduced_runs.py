"""Reduced quick runs of the experiments on Takagi, Fallah, Finn and Raghu, and what holds for the records of all."""

import dataclasses
import functools
import json
import math
from typing import Any

import jax

from metastep import experiments
from metastep._records import to_plain
from metastep.experiments.core import Report
from metastep.report import style

SIZES: dict[str, dict[str, Any]] = {
    "takagi-linear": {"alphas": 9, "betas": 5},
    "takagi-sinusoid": {
        "alphas": (0.003, 0.03, 0.9), "betas": (0.03, 0.3, 9.0), "iterations": 20, "tasks_per_step": 4,
        "edge_tasks": 3, "lanczos": 25, "warm_up": 0, "hidden": (8,),
    },
    "fallah-fosp": {"alphas": 3},
    "fallah-floors": {"steps": 100, "floor_steps": 100, "repeats": 2},
    "fallah-surrogate": {"supports": (1, 2, 8), "draws": 500},
    "fallah-step-size": {"pairs": 50, "steps": 600, "samples": 10},
    "anil-omniglot": {"iterations": 3, "test_tasks": 4, "evaluations": 1, "hidden": (8,)},
    "takagi-omniglot": {
        "iterations": 2, "alphas": (0.9, 9.0), "betas": (0.9, 90.0), "edge_tasks": 0, "hidden": (8,),
    },
}  # fmt: skip


@functools.cache
def reduced_run(name: str, data: str | None = None) -> dict[str, Any]:
    """Records of a reduced quick run."""
    experiment = experiments.load(name)
    config = dataclasses.replace(experiment.quick, **SIZES[name])
    if data is not None:
        config = dataclasses.replace(config, data=data)
    with jax.enable_x64(experiment.float64):
        return read_back(experiment.run(config, 0, Report()))


def read_back(records: dict[str, Any]) -> dict[str, Any]:
    """As a file would give them back."""
    return json.loads(json.dumps(to_plain(records), allow_nan=False))


def verdicts_of(name: str, records: dict[str, Any]) -> list[str]:
    found = experiments.load(name).claims(records)
    assert found
    assert all(claim.text and claim.source and claim.test and claim.evidence for claim in found)
    return [claim.verdict for claim in found]


def check_records(name: str, records: dict[str, Any]) -> None:
    """They hold finite numbers alone, and can be drawn."""
    numbers = list(numbers_in(records))
    assert numbers
    assert all(map(math.isfinite, numbers))
    assert style.render(experiments.load(name).plot(records), "svg").startswith(b"<?xml")


def numbers_in(record: Any):
    if isinstance(record, dict):
        for value in record.values():
            yield from numbers_in(value)
    elif isinstance(record, list):
        for value in record:
            yield from numbers_in(value)
    elif isinstance(record, float):
        yield record
