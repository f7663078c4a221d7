"""The inner loop: (inner gradient, params, alpha) -> (adapted, AdaptInfo)."""

from metastep.adapt.core import AbstractAdapter, AdaptInfo, InnerGradient
from metastep.adapt.gradient import GradientAdapter
from metastep.adapt.halving import HALVINGS, Halved, adapt_halving

__all__ = [
    "HALVINGS",
    "AbstractAdapter",
    "AdaptInfo",
    "GradientAdapter",
    "Halved",
    "InnerGradient",
    "adapt_halving",
]
