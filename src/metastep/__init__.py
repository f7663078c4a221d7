"""metastep: gradient-based meta-learning with learning rates from theory and measurement.

Subpackages and the nouns they share load when they are first used, so that the command line answers
`--help` at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from metastep._version import __version__

if TYPE_CHECKING:
    from metastep import (
        adapt,
        datasets,
        metagrad,
        models,
        rates,
        report,
        tasks,
        theory,
        train,
    )
    from metastep._types import Batch, Episode, MetaParams, PerStep

_SUBPACKAGES = (
    "adapt",
    "datasets",
    "metagrad",
    "models",
    "rates",
    "report",
    "tasks",
    "theory",
    "train",
)
_NOUNS = ("Batch", "Episode", "MetaParams", "PerStep")

__all__ = [
    "Batch",
    "Episode",
    "MetaParams",
    "PerStep",
    "__version__",
    "adapt",
    "datasets",
    "metagrad",
    "models",
    "rates",
    "report",
    "tasks",
    "theory",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"metastep.{name}")
    if name in _NOUNS:
        return getattr(importlib.import_module("metastep._types"), name)
    raise AttributeError(f"module 'metastep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES, *_NOUNS})
