"""Which alpha (and beta) now: prescribed and learned rates, and what theory and measurement advise."""

from metastep.rates.advice import RateAdvice, advise_rates, learned_start, no_higher_than_tried
from metastep.rates.core import AbstractRate, Factored, FactoredRate, FixedRate, LearnedRate
from metastep.rates.curvature import Extremes, extreme_eigenvalues
from metastep.rates.edges import StabilityEdge, TaskCurvature, stability_edge, task_curvature
from metastep.rates.estimates import RateEstimate, ratio_estimate
from metastep.rates.grown import GrownRate, grown_rate
from metastep.rates.hypergradient import hypergradient
from metastep.rates.kinds import RATES, RateKind, make_rate
from metastep.rates.label_aware import AwareTerms, label_aware_terms
from metastep.rates.label_free import FreeTerms, label_free_terms
from metastep.rates.layer_rates import LayerRates, per_layer_rates
from metastep.rates.meta import (
    OPTIMIZERS,
    SCHEDULES,
    OuterOptimizer,
    default_meta_lr,
    make_optimizer,
    schedule_factor,
)
from metastep.rates.meta_edge import (
    MetaEdge,
    largest_stable_rate,
    meta_curvature,
    meta_edge,
    second_moments,
)
from metastep.rates.multi_step import MultiStepRates, multi_step_rates
from metastep.rates.online import AnilOnlineRate, EdgeRate, EstimatedRate, ScheduledRate
from metastep.rates.searched import least_loss_rate, rates_to_search
from metastep.rates.smoothness import (
    FallahStep,
    SmoothnessConstants,
    estimate_smoothness,
    fallah_step,
)
from metastep.rates.trend import Trend

__all__ = [
    "OPTIMIZERS",
    "RATES",
    "SCHEDULES",
    "AbstractRate",
    "AnilOnlineRate",
    "AwareTerms",
    "EdgeRate",
    "EstimatedRate",
    "Extremes",
    "Factored",
    "FactoredRate",
    "FallahStep",
    "FixedRate",
    "FreeTerms",
    "GrownRate",
    "LayerRates",
    "LearnedRate",
    "MetaEdge",
    "MultiStepRates",
    "OuterOptimizer",
    "RateAdvice",
    "RateEstimate",
    "RateKind",
    "ScheduledRate",
    "SmoothnessConstants",
    "StabilityEdge",
    "TaskCurvature",
    "Trend",
    "advise_rates",
    "default_meta_lr",
    "estimate_smoothness",
    "extreme_eigenvalues",
    "fallah_step",
    "grown_rate",
    "hypergradient",
    "label_aware_terms",
    "label_free_terms",
    "largest_stable_rate",
    "learned_start",
    "least_loss_rate",
    "make_optimizer",
    "make_rate",
    "meta_curvature",
    "meta_edge",
    "multi_step_rates",
    "no_higher_than_tried",
    "per_layer_rates",
    "rates_to_search",
    "ratio_estimate",
    "schedule_factor",
    "second_moments",
    "stability_edge",
    "task_curvature",
]
