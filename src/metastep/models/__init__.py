"""Models as pairs of pure functions, and the loss of a model on a batch."""

from metastep.models.activations import has_plain_relu, relu, with_curved_relu
from metastep.models.conv4 import conv4, max_pool
from metastep.models.convolution import (
    NativeConvolutionWarning,
    conv_general_dilated,
    has_native_convolution,
    warn_of_native_convolution,
)
from metastep.models.core import Model, standardised, with_unit_features
from metastep.models.dense import linear, mlp
from metastep.models.equinox import from_equinox
from metastep.models.objective import (
    Objective,
    OutputLoss,
    accuracy,
    cross_entropy,
    loss_for,
    squared_error,
)

__all__ = [
    "Model",
    "NativeConvolutionWarning",
    "Objective",
    "OutputLoss",
    "accuracy",
    "conv4",
    "conv_general_dilated",
    "cross_entropy",
    "from_equinox",
    "has_native_convolution",
    "has_plain_relu",
    "linear",
    "loss_for",
    "max_pool",
    "mlp",
    "relu",
    "squared_error",
    "standardised",
    "warn_of_native_convolution",
    "with_curved_relu",
    "with_unit_features",
]
