"""The rates by name: where alpha starts is one question, what becomes of it in training another."""

import dataclasses
from collections.abc import Callable

from metastep._errors import check_choice
from metastep.rates.core import AbstractRate, FactoredRate, FixedRate, LearnedRate, Mask
from metastep.rates.online import EdgeRate, EstimatedRate, Restrict, everything


@dataclasses.dataclass(frozen=True)
class RateKind:
    """A way for alpha to go on from where it starts.

    Attributes
    ----------
    make : (starting value, restriction to what adapts, where that is) -> rate
    summary : what it does, for reports
    learned : whether the outer optimiser moves it on from there
    may_fall : whether it may end below where it starts
    """

    make: Callable[[float, Restrict, Mask | None], AbstractRate]
    summary: str
    learned: bool = False
    may_fall: bool = True


RATES: dict[str, RateKind] = {
    "shared-meta-sgd": RateKind(
        lambda start, restrict, adapts: FactoredRate(start, adapts=adapts),
        "each parameter has an alpha of its own, a shared rate times a factor, all learned with the initialisation "
        "by the outer optimiser",
        learned=True,
    ),
    "rising-meta-sgd": RateKind(
        lambda start, restrict, adapts: FactoredRate(start, may_fall=False, adapts=adapts),
        "each parameter has an alpha of its own, a shared rate that does not fall below its start times a factor, "
        "all learned with the initialisation by the outer optimiser",
        learned=True,
        may_fall=False,
    ),
    "meta-sgd": RateKind(
        lambda start, restrict, adapts: LearnedRate(start, "parameter", adapts),
        "each parameter has an alpha of its own, learned with the initialisation by the outer optimiser",
        learned=True,
    ),
    "per-layer": RateKind(
        lambda start, restrict, adapts: LearnedRate(start, "layer", adapts),
        "each array of parameters has an alpha of its own, learned with the initialisation",
        learned=True,
    ),
    "learned": RateKind(
        lambda start, restrict, adapts: LearnedRate(start),
        "one alpha, learned with the initialisation by the outer optimiser",
        learned=True,
    ),
    "fixed": RateKind(
        lambda start, restrict, adapts: FixedRate(start),
        "alpha stays where it starts",
        may_fall=False,
    ),
    "label-free": RateKind(
        lambda start, restrict, adapts: EstimatedRate(start, restrict=restrict),
        "(H.6) at the current parameters, in a running mean",
    ),
    "label-free-max": RateKind(
        lambda start, restrict, adapts: EstimatedRate(
            start, never_decreasing=True, restrict=restrict
        ),
        "(H.6) at the current parameters, in a running mean that never decreases",
    ),
    "label-aware": RateKind(
        lambda start, restrict, adapts: EstimatedRate(
            start, estimate="label-aware", restrict=restrict
        ),
        "the greedy optimum of one step at the current parameters, in a running mean; known to collapse in long runs",
    ),
    "edge": RateKind(
        lambda start, restrict, adapts: EdgeRate(start, restrict=restrict),
        "half of the largest rate at which the inner loop is stable, followed during training",
    ),
}


def make_rate(
    kind: str, start: float, restrict: Restrict = everything, adapts: Mask | None = None
) -> AbstractRate:
    """The rate of a name in `RATES`, starting at `start`.

    Parameters
    ----------
    kind : a name in `RATES`
    start : the rate to begin with, above 0
    restrict : zeroes the gradient of parameters the inner loop leaves alone (ANIL)
    adapts : parameters -> True where the inner loop steps; None for everywhere
    """
    check_choice("rate", kind, RATES)
    return RATES[kind].make(start, restrict, adapts)
