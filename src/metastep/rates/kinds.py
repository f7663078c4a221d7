"""The rates by name: where alpha starts is one question, what becomes of it in training another."""

import dataclasses
from collections.abc import Callable

from metastep._errors import check_choice
from metastep.rates.core import AbstractRate, FixedRate, LearnedRate


@dataclasses.dataclass(frozen=True)
class RateKind:
    """A way for alpha to go on from where it starts.

    Attributes
    ----------
    make : starting value -> rate
    summary : what it does, for reports
    """

    make: Callable[[float], AbstractRate]
    summary: str


RATES: dict[str, RateKind] = {
    "meta-sgd": RateKind(
        lambda start: LearnedRate(start, "parameter"),
        "each parameter has an alpha of its own, learned with the initialisation by the outer optimiser",
    ),
    "per-layer": RateKind(
        lambda start: LearnedRate(start, "layer"),
        "each array of parameters has an alpha of its own, learned with the initialisation",
    ),
    "learned": RateKind(
        LearnedRate, "one alpha, learned with the initialisation by the outer optimiser"
    ),
    "fixed": RateKind(FixedRate, "alpha stays where it starts"),
}


def make_rate(kind: str, start: float) -> AbstractRate:
    """The rate of a name in `RATES`, starting at `start`."""
    check_choice("rate", kind, RATES)
    return RATES[kind].make(start)
