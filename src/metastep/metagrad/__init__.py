"""d(query loss)/d(MetaParams): each meta-gradient is handed the adapter it differentiates."""

from metastep.metagrad.algorithms import ALGORITHMS, Algorithm, algorithm
from metastep.metagrad.baselines import JointTraining, Reptile
from metastep.metagrad.bounded import bounded_sum
from metastep.metagrad.core import AbstractMetaGradient, TaskOutcome
from metastep.metagrad.derivatives import DERIVATIVES, Derivative, support_gradient
from metastep.metagrad.mapping import TaskGradient, mean_over_tasks
from metastep.metagrad.through import Exact, FirstOrder, HessianFree

__all__ = [
    "ALGORITHMS",
    "DERIVATIVES",
    "AbstractMetaGradient",
    "Algorithm",
    "Derivative",
    "Exact",
    "FirstOrder",
    "HessianFree",
    "JointTraining",
    "Reptile",
    "TaskGradient",
    "TaskOutcome",
    "algorithm",
    "bounded_sum",
    "mean_over_tasks",
    "support_gradient",
]
