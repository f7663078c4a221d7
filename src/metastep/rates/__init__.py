"""Which alpha (and beta) now: prescribed and learned rates, and what theory and measurement advise."""

from metastep.rates.advice import RateAdvice, advise_rates
from metastep.rates.core import AbstractRate, FixedRate, LearnedRate
from metastep.rates.curvature import Extremes, extreme_eigenvalues
from metastep.rates.edges import StabilityEdge, TaskCurvature, stability_edge, task_curvature
from metastep.rates.estimates import RatioEstimate, ratio_estimate
from metastep.rates.label_aware import AwareTerms, label_aware_terms
from metastep.rates.label_free import FreeTerms, label_free_terms
from metastep.rates.meta import OPTIMIZERS, default_meta_lr, make_optimizer
from metastep.rates.meta_edge import (
    MetaEdge,
    largest_stable_rate,
    meta_curvature,
    meta_edge,
    second_moments,
)

__all__ = [
    "OPTIMIZERS",
    "AbstractRate",
    "AwareTerms",
    "Extremes",
    "FixedRate",
    "FreeTerms",
    "LearnedRate",
    "MetaEdge",
    "RateAdvice",
    "RatioEstimate",
    "StabilityEdge",
    "TaskCurvature",
    "advise_rates",
    "default_meta_lr",
    "extreme_eigenvalues",
    "label_aware_terms",
    "label_free_terms",
    "largest_stable_rate",
    "make_optimizer",
    "meta_curvature",
    "meta_edge",
    "ratio_estimate",
    "second_moments",
    "stability_edge",
    "task_curvature",
]
