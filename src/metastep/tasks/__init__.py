"""Task families: key -> Episode, as pure functions that run inside compiled code."""

from metastep.tasks.core import AbstractTaskFamily, TaskSplits, batch_of_episodes
from metastep.tasks.few_shot import FewShot
from metastep.tasks.regression import KnownSinusoid, MixedLinear, Quadratic, Sinusoid
from metastep.tasks.table import TableTasks

__all__ = [
    "AbstractTaskFamily",
    "FewShot",
    "KnownSinusoid",
    "MixedLinear",
    "Quadratic",
    "Sinusoid",
    "TableTasks",
    "TaskSplits",
    "batch_of_episodes",
]
