"""Task families: key -> Episode, as pure functions that run inside compiled code."""

from metastep.tasks.core import AbstractTaskFamily, TaskSplits, batch_of_episodes
from metastep.tasks.few_shot import FewShot
from metastep.tasks.regression import MixedLinear, Quadratic, Sinusoid
from metastep.tasks.table import TableTasks

__all__ = [
    "AbstractTaskFamily",
    "FewShot",
    "MixedLinear",
    "Quadratic",
    "Sinusoid",
    "TableTasks",
    "TaskSplits",
    "batch_of_episodes",
]
