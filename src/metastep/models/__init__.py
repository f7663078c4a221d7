"""Models as pairs of pure functions, and the loss of a model on a batch."""

from metastep.models.conv4 import conv4
from metastep.models.core import Model
from metastep.models.dense import linear, mlp
from metastep.models.objective import (
    Objective,
    accuracy,
    cross_entropy,
    loss_for,
    squared_error,
)

__all__ = [
    "Model",
    "Objective",
    "accuracy",
    "conv4",
    "cross_entropy",
    "linear",
    "loss_for",
    "mlp",
    "squared_error",
]
