"""The query loss over alpha, tried out around an estimate: what is measured, and what a quadratic predicts."""

import dataclasses
from collections.abc import Callable

import numpy as np

from metastep.rates.label_aware import AwareTerms

# The rates tried, relative to the estimate: close together where the minimum is expected.
_CURVE_FACTORS = np.array([0.03, 0.1, 0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0])
# And relative to the lowest of them, where none helps: as many, so that the same program tries them.
_LOWER_FACTORS = np.geomspace(1e-4, 0.5, len(_CURVE_FACTORS))


@dataclasses.dataclass(frozen=True)
class AlphaCurve:
    """Query loss against alpha at the starting parameters.

    Attributes
    ----------
    alpha : (points,) rates tried; the first is 0
    measured : mean over tasks of the loss after adapting
    ci95 : 95 % half-width of the change against alpha = 0, task by task
    worse : share of tasks whose loss is larger than at alpha = 0, or not a number
    predicted : the quadratic the estimate is the minimum of
    """

    alpha: list[float]
    measured: list[float]
    ci95: list[float]
    worse: list[float]
    predicted: list[float]


def tried_around(
    centre: float, losses_at: Callable[[np.ndarray], np.ndarray], *, lower: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(points,) rates around an estimate, 0 first, and (tasks, points) query losses after adapting at them.

    Parameters
    ----------
    centre : the estimate
    losses_at : (points,) rates -> (tasks, points) losses
    lower : whether to try much lower rates where none of these helps. As the gradients of support and query agree,
        some rate does: curvature may be little where it is measured and more elsewhere, as of a Huber loss that most
        labels are far beyond the quadratic part of
    """
    rates = np.concatenate([[0.0], centre * _CURVE_FACTORS])
    losses = losses_at(rates)
    if not lower or _helps(losses):
        return rates, losses
    more = np.concatenate([[0.0], rates[1] * _LOWER_FACTORS])
    more_losses = losses_at(more)
    if not _helps(more_losses):
        return rates, losses
    return np.concatenate([more, rates[1:]]), np.hstack([more_losses, losses[:, 1:]])


def _helps(losses: np.ndarray) -> bool:
    """Whether any rate beside the first, which is 0, lowers the mean loss."""
    with np.errstate(invalid="ignore", over="ignore"):  # of tasks that diverge
        means = losses.mean(axis=0)
    return bool((means[1:] < means[0]).any())


def measured_curve(rates: np.ndarray, losses: np.ndarray, aware: AwareTerms) -> AlphaCurve:
    """Measured and predicted on the same tasks; the interval is that of the change against alpha = 0.

    Parameters
    ----------
    rates : (points,), 0 first
    losses : (tasks, points) query losses after adapting
    aware : (tasks,) the quadratics of the same tasks
    """
    slope, curvature = aware.slope.mean(), aware.curvature.mean()
    predicted = aware.loss.mean() - rates * slope + 0.5 * rates**2 * curvature
    with np.errstate(invalid="ignore", over="ignore"):
        change = losses - losses[:, :1]
        half_width = 1.959964 * change.std(axis=0, ddof=1) / np.sqrt(len(losses))
        means = losses.mean(axis=0)
    worse = np.mean(~(losses <= losses[:, :1]), axis=0)
    return AlphaCurve(*(part.tolist() for part in (rates, means, half_width, worse, predicted)))
