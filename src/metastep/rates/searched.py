"""The adaptation rate found by trying, for losses whose derivatives do not say how far a step should go."""

import numpy as np

from metastep._errors import InputError
from metastep.rates.estimates import RateEstimate, bootstrap_draws
from metastep.theory.citations import source

# From where a step does next to nothing to where it overshoots. No such rate is known better than to a factor of two.
_OF_POLYAKS = 2.0 ** np.arange(-12, 5)


@source("polyak1969", "step (f - f*) / |g|^2, with f* = 0", "derived")
def rates_to_search(loss: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """0, and rates around the one at which a straight line along the inner gradient would reach a loss of 0.

    Absolute errors, quantile losses and hinges are straight in the outputs, so no curvature tells where their minimum
    is. But the value of such a loss has a scale, and Polyak's step is that scale in units of alpha.

    Parameters
    ----------
    loss, slope : (tasks,) support loss, and the squared length of its gradient

    Returns
    -------
    (points,) rates, increasing

    Raises
    ------
    InputError
        Where the loss is 0 or does not change along its gradient.
    """
    polyak = abs(float(np.mean(loss))) / max(float(np.mean(slope)), np.finfo(float).tiny)
    if not 0 < polyak < np.inf or not np.mean(slope) > 0:
        raise InputError(
            "the loss has no curvature along the inner gradient, and no slope either: every rate is the same"
        )
    return np.concatenate([[0.0], polyak * _OF_POLYAKS])


def least_loss_rate(rates: np.ndarray, losses: np.ndarray, seed: int = 0) -> RateEstimate:
    """The rate of least mean loss, with the percentile bootstrap interval over tasks.

    Parameters
    ----------
    rates : (points,)
    losses : (tasks, points); where one is not finite, nor is the mean
    seed : of the resampling
    """
    finite = np.isfinite(losses)
    known = np.where(finite, losses, 0.0).astype(float)
    draws = bootstrap_draws(len(losses), seed)
    counts = np.stack([np.bincount(draw, minlength=len(losses)) for draw in draws])
    means = np.where(counts @ ~finite > 0, np.inf, counts @ known)
    low, high = np.percentile(rates[means.argmin(axis=1)], [2.5, 97.5])
    whole = np.where(finite.all(axis=0), known.mean(axis=0), np.inf)
    return RateEstimate(float(rates[whole.argmin()]), float(low), float(high))
