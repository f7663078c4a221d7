"""What an experiment is: a configuration, a run that returns records, a figure and claims made from them."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from metastep._errors import check_choice

Verdict = Literal["holds", "holds with a condition", "does not hold", "not tested"]
VERDICTS: tuple[Verdict, ...] = ("holds", "holds with a condition", "does not hold", "not tested")

Scale = Literal["quick", "reduced", "paper"]
SCALES: tuple[Scale, ...] = ("quick", "reduced", "paper")

Tell = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many parts are done."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Where a run says how far it is, and where it may keep what a killed run goes on from.

    Attributes
    ----------
    tell : called with (what is being done, parts done, parts in all)
    unfinished : folder of that run, of the same configuration and seed; None to keep nothing
    """

    tell: Tell = lambda text, done, total: None
    unfinished: Path | None = None

    def __call__(self, text: str, done: int, total: int) -> None:
        """Say how far it is."""
        self.tell(text, done, total)

    def keep(self, name: str) -> Path | None:
        """A folder for one part of the work; what `sweep` takes."""
        return None if self.unfinished is None else self.unfinished / name


Records = dict[str, Any]
"""What a run found: numbers, text and arrays, which are written as lists. A dict of columns or a list of rows also
becomes a .csv."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """One statement of a paper, and what became of it.

    Attributes
    ----------
    text : what the paper says, in our words
    source : where it says so
    test : how it was tested here
    verdict : one of `VERDICTS`
    evidence : the numbers behind the verdict, computed from the records
    """

    text: str
    source: str
    test: str
    verdict: Verdict
    evidence: str

    def __post_init__(self) -> None:
        check_choice("verdict", self.verdict, VERDICTS)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A figure or table of a paper as a program. Each file of this package defines one, EXPERIMENT.

    `plot` and `claims` see the records as they are read back from records.json: plain numbers and
    lists, None where a number was not finite.

    Attributes
    ----------
    name : name on the command line, the file's own with hyphens
    title : what it shows, on one line
    paper : key of the paper in `metastep.theory.citations.BIBLIOGRAPHY`
    quick, paper_scale : configurations for seconds, and with the paper's own sizes
    reduced : less of the paper's where that takes a day and an hour can tell something; None: as the paper's
    run : (configuration, seed, report) -> records
    plot : records -> figure
    claims : records -> the paper's claims and their verdicts
    float64 : whether the run needs double precision
    needs : "omniglot" if the run reads it; the configuration then has a field `data`
    cost : what the scale of the paper takes where that is long, extrapolated from a measured part of it
    """

    name: str
    title: str
    paper: str
    quick: Any
    paper_scale: Any
    run: Callable[[Any, int, Report], Records]
    plot: Callable[[Records], Figure]
    claims: Callable[[Records], list[Claim]]
    float64: bool = True
    needs: Literal["", "omniglot"] = ""
    cost: str = ""
    reduced: Any = None

    def at(self, scale: Scale) -> tuple[Any, Scale]:
        """The configuration for a scale, and which scale that is: the paper's where nothing is reduced."""
        if scale == "reduced" and self.reduced is None:
            scale = "paper"
        configs = {"quick": self.quick, "reduced": self.reduced, "paper": self.paper_scale}
        return configs[scale], scale


def verdict_of(holds: bool, with_condition: bool = False) -> Verdict:
    """The verdict of a yes-or-no test, or of one that may hold with a condition where it does not hold outright."""
    if holds:
        return "holds"
    return "holds with a condition" if with_condition else "does not hold"


def verdict_of_cases(hold: Iterable[bool]) -> Verdict:
    """The verdict of a test made on several cases: it holds in all, in some (the condition) or in none."""
    cases = list(hold)
    return verdict_of(all(cases), any(cases))


def verdict_of_differences(differences: Sequence[float] | np.ndarray, fewest: int = 2) -> Verdict:
    """Whether paired differences, one for each independent repeat, are positive on average.

    "not tested" where their mean is within two standard errors of 0, or there are fewer than `fewest`: this
    many repeats cannot tell.
    """
    pairs = np.asarray(differences, float)
    if len(pairs) < fewest or abs(pairs.mean()) < 2 * standard_error(pairs):
        return "not tested"
    return verdict_of(bool(pairs.mean() > 0))


def log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent p of the power law y = c x^p fitted to positive numbers by least squares of logarithms."""
    return float(np.polyfit(np.log(np.asarray(x)), np.log(np.asarray(y)), 1)[0])


def lowest_point(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Place and height of the minimum of a sampled curve, by a parabola through its three lowest points."""
    middle = int(np.clip(np.argmin(y), 1, len(y) - 2))
    near = slice(middle - 1, middle + 2)
    parabola = np.polynomial.Polynomial.fit(np.asarray(x[near]), np.asarray(y[near]), 2)
    best = float(parabola.deriv().roots()[0])
    return best, float(parabola(best))


def from_to(values: Iterable[float], form: str = ".3g") -> str:
    """Smallest and largest as evidence shows them."""
    found = list(values)
    return f"{min(found):{form}} to {max(found):{form}}"


def standard_error(values: Any) -> np.ndarray:
    """Of the mean over the first axis, of independent repeats."""
    repeats = np.asarray(values, float)
    return repeats.std(0, ddof=1) / len(repeats) ** 0.5
