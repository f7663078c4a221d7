"""d(query loss)/d(MetaParams): each meta-gradient is handed the adapter it differentiates."""

from metastep.metagrad.algorithms import ALGORITHMS, Algorithm, algorithm
from metastep.metagrad.baselines import JointTraining, Reptile
from metastep.metagrad.core import AbstractMetaGradient, TaskOutcome
from metastep.metagrad.mapping import mean_over_tasks
from metastep.metagrad.through import Exact, FirstOrder, HessianFree

__all__ = [
    "ALGORITHMS",
    "AbstractMetaGradient",
    "Algorithm",
    "Exact",
    "FirstOrder",
    "HessianFree",
    "JointTraining",
    "Reptile",
    "TaskOutcome",
    "algorithm",
    "mean_over_tasks",
]
