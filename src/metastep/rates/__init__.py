"""Which alpha (and beta) now: prescribed and learned rates, and what theory and measurement advise."""

from metastep.rates.advice import RateAdvice, advise_rates
from metastep.rates.core import AbstractRate, FixedRate, LearnedRate
from metastep.rates.estimates import RatioEstimate, ratio_estimate
from metastep.rates.label_aware import AwareTerms, label_aware_terms
from metastep.rates.label_free import FreeTerms, label_free_terms
from metastep.rates.meta import OPTIMIZERS, default_meta_lr, make_optimizer

__all__ = [
    "OPTIMIZERS",
    "AbstractRate",
    "AwareTerms",
    "FixedRate",
    "FreeTerms",
    "LearnedRate",
    "RateAdvice",
    "RatioEstimate",
    "advise_rates",
    "default_meta_lr",
    "label_aware_terms",
    "label_free_terms",
    "make_optimizer",
    "ratio_estimate",
]
