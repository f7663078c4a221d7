"""What a correction consists of: the printed formula, the correct one, and numbers that tell them apart."""

import dataclasses
from collections.abc import Callable
from typing import Literal

Relation = Literal["equals", "is at least", "is at most"]


@dataclasses.dataclass(frozen=True)
class Reading:
    """The printed and the corrected formula in one concrete case, and what is true there.

    Attributes
    ----------
    printed, corrected : values of the two formulas
    truth : the same quantity from simulation, exact arithmetic or direct computation
    relation : what a right formula does: "equals" the truth, or as a bound "is at least" or
        "is at most" it
    tolerance : relative error allowed for "equals"; covers the Monte Carlo error of the truth
    corrected_truth : the truth of the corrected statement where it speaks of another case
    """

    printed: float
    corrected: float
    truth: float
    relation: Relation = "equals"
    tolerance: float = 1e-9
    corrected_truth: float | None = None

    @property
    def printed_holds(self) -> bool:
        return self._holds(self.printed, self.truth)

    @property
    def corrected_holds(self) -> bool:
        truth = self.truth if self.corrected_truth is None else self.corrected_truth
        return self._holds(self.corrected, truth)

    def _holds(self, value: float, truth: float) -> bool:
        slack = self.tolerance * abs(truth)
        if self.relation == "is at least":
            return value >= truth - slack
        if self.relation == "is at most":
            return value <= truth + slack
        return abs(value - truth) <= slack


@dataclasses.dataclass(frozen=True)
class Erratum:
    """One printed statement that does not hold, with its correction.

    Attributes
    ----------
    where : equation, figure or section
    printed, correct : the two statements
    why : a short derivation or argument
    case : what the numbers of `read` are, and where the truth comes from
    read : computes them, with fixed seeds
    """

    where: str
    printed: str
    correct: str
    why: str
    case: str
    read: Callable[[], Reading]


@dataclasses.dataclass(frozen=True)
class Paper:
    """The corrections to one text.

    Attributes
    ----------
    key : its key in the bibliography
    title : heading on the page
    remark : what stands before its corrections
    errata : corrections with numbers
    slips : slips of notation that no number can show, as (where, printed, correct)
    """

    key: str
    title: str
    remark: str
    errata: tuple[Erratum, ...]
    slips: tuple[tuple[str, str, str], ...] = ()
