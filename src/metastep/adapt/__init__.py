"""The inner loop: (inner gradient, params, alpha) -> (adapted, AdaptInfo)."""

from metastep.adapt.core import AbstractAdapter, AdaptInfo, InnerGradient
from metastep.adapt.gradient import GradientAdapter

__all__ = ["AbstractAdapter", "AdaptInfo", "GradientAdapter", "InnerGradient"]
