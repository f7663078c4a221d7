"""A rate that is a ratio of means over tasks, with an interval that says how far to trust it."""

import dataclasses

import numpy as np

from metastep._errors import InputError

_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class RateEstimate:
    """A rate that tasks share, with a 95 % interval over tasks.

    Attributes
    ----------
    value : the rate
    low, high : the interval
    """

    value: float
    low: float
    high: float

    @property
    def interval(self) -> list[float]:
        """[low, high], as JSON wants it."""
        return [self.low, self.high]


def ratio_estimate(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0) -> RateEstimate:
    """The ratio of means, with the percentile bootstrap interval over tasks.

    The ratio of means is what (3.3) and (H.6) ask for; a mean of ratios would be another number. Tasks are
    resampled whole, so numerator and denominator of a task stay together.

    Parameters
    ----------
    numerators, denominators : (tasks,) finite, at least two tasks
    seed : of the resampling

    Raises
    ------
    InputError
        With fewer than two tasks, numbers that are not finite, or denominators that sum to zero.
    """
    numerators, denominators = np.asarray(numerators, float), np.asarray(denominators, float)
    if numerators.size < 2:
        raise InputError(f"an interval over tasks needs at least 2 tasks, not {numerators.size}")
    check_finite(numerators, denominators)
    if denominators.sum() <= 0:
        raise InputError(
            "the loss has no curvature along the inner gradient: every rate is the same"
        )
    draws = bootstrap_draws(numerators.size, seed)
    sums = denominators[draws].sum(axis=1)
    ratios = numerators[draws].sum(axis=1) / np.where(sums > 0, sums, np.nan)
    low, high = np.nanpercentile(ratios, [2.5, 97.5])
    return RateEstimate(float(numerators.sum() / denominators.sum()), float(low), float(high))


def check_finite(*terms: np.ndarray) -> None:
    """Raise an InputError where a loss or a derivative of it is not a number."""
    if not all(np.isfinite(part).all() for part in terms):
        raise InputError(
            "the loss or its derivatives are not finite at these parameters; check the data for huge values"
        )


def bootstrap_draws(num_tasks: int, seed: int = 0) -> np.ndarray:
    """(resamples, tasks) which tasks each resample is made of."""
    return np.random.default_rng(seed).integers(
        0, num_tasks, (_RESAMPLES, num_tasks), dtype=np.int32
    )
