"""Rates for several inner steps of any model: one that serves all of them, or one for each."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from metastep._errors import InputError, check_count
from metastep._types import Params, PerStep
from metastep.models import Objective
from metastep.rates.edges import _everything
from metastep.rates.krylov import (
    KrylovTerms,
    SpectralMeasure,
    krylov_terms,
    label_free_measure,
    loss_after,
)
from metastep.tasks import AbstractTaskFamily
from metastep.theory.citations import source

_RESAMPLES = 200
_BISECTIONS = 60
_NEWTON_STEPS = 100
_SETTLED = 1e-7
# Below this share of the largest node the residual of a measure is rounding, of float32 as well.
_EXHAUSTED = 1e-6


@dataclasses.dataclass(frozen=True)
class MultiStepRates:
    """Rates for several inner steps, with 95 % intervals over tasks.

    Attributes
    ----------
    steps : inner steps
    alpha, alpha_interval : the best single rate for all of them
    schedule, schedule_intervals : the best rate for each, ascending; the order does not matter to the quadratic
    alpha_gain, schedule_gain : predicted share of the loss that each removes; of the query loss with labels, of
        its part that adaptation can reach without
    labels : whether the labels were used
    num_tasks : tasks measured
    """

    steps: int
    alpha: float
    alpha_interval: list[float]
    schedule: list[float]
    schedule_intervals: list[list[float]]
    alpha_gain: float
    schedule_gain: float
    labels: bool
    num_tasks: int

    @property
    def per_step(self) -> PerStep:
        """The schedule as a rate for an adapter."""
        return PerStep(jnp.asarray(self.schedule))


@source("zou2022", "equations 3.3 and H.6 for several steps of any model", "derived")
def multi_step_rates(
    objective: Objective,
    params: Params,
    family: AbstractTaskFamily,
    key: PRNGKeyArray,
    steps: int,
    *,
    labels: bool = True,
    num_tasks: int = 64,
    restrict: Callable[[Params], Params] = _everything,
    tasks_at_once: int | None = None,
) -> MultiStepRates:
    """Measure the rates for `steps` inner steps on fresh tasks.

    Without labels, for isotropic task optima: with the measure mu of `label_free_measure`,

        alpha     = argmin of the integral of (1 - alpha u)^(2 steps) d mu(u)
        alpha_s   = 1 / r_s,   r_s the Gauss nodes of the measure u d mu(u)

    which for a linear model, judged on its support set, are `theory.multi_step_rate` and `theory.step_schedule`.
    With labels, both minimise the mean predicted query loss of `loss_after`, the schedule by Newton's method from
    the Gauss nodes of the inner gradients' measure. Models are taken as linear from where they start: the
    further the steps move, the less this holds, most of all for the large rates of a schedule.

    Parameters
    ----------
    objective, params, family, key : as for `advise_rates`
    steps : inner steps, at least 1
    labels : use the labels, or the inputs alone
    num_tasks : at least 2
    restrict : zeroes what the inner loop leaves alone (ANIL)
    tasks_at_once : tasks computed side by side; None for all

    Raises
    ------
    InputError
        For counts out of range, derivatives that are not finite, or a loss without curvature; with labels, also
        when no positive rate helps.
    """
    check_count("steps", steps)
    check_count("num_tasks", num_tasks, minimum=2)
    found = jax.device_get(
        _over_tasks(
            objective, restrict, params, family, key, steps, labels, num_tasks, tasks_at_once
        )
    )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)):
        raise InputError(
            "the loss or its derivatives are not finite at these parameters; check the data for huge values"
        )
    rates = _with_labels(found, steps) if labels else _without_labels(found, steps)
    return MultiStepRates(steps=int(steps), labels=labels, num_tasks=int(num_tasks), **rates)


@eqx.filter_jit
def _over_tasks(
    objective,
    restrict,
    params,
    family,
    key,
    steps: int,
    labels: bool,
    num_tasks: int,
    tasks_at_once,
) -> KrylovTerms | SpectralMeasure:
    def one(of_task: tuple[PRNGKeyArray, PRNGKeyArray]):
        episode = family.sample(of_task[0])
        if labels:
            return krylov_terms(objective, params, episode, steps, restrict)
        return label_free_measure(objective, params, episode, of_task[1], steps, restrict)

    task_key, probe_key = jax.random.split(key)
    keys = jax.random.split(task_key, num_tasks), jax.random.split(probe_key, num_tasks)
    return jax.lax.map(one, keys, batch_size=tasks_at_once or num_tasks)


def _without_labels(found: SpectralMeasure, steps: int) -> dict[str, Any]:
    nodes, weights = np.asarray(found.nodes, float), np.asarray(found.weights, float)
    if not (nodes * weights).sum() > 0:
        raise InputError(
            "the loss has no curvature on these tasks, so its quadratic has no minimum"
        )
    draws = np.random.default_rng(0).integers(0, len(nodes), (_RESAMPLES, len(nodes)))
    samples = [(nodes, weights), *((nodes[draw], weights[draw]) for draw in draws)]
    alphas = np.array([best_rate(*sample, steps) for sample in samples])
    schedules = np.array([gauss_schedule(n, n * w, steps) for n, w in samples])
    reached = weights[nodes > 0].sum()

    def gain(rates: np.ndarray) -> float:
        factors = np.prod(1 - rates[:, None, None] * nodes, axis=0) ** 2
        return float(1 - (weights * factors)[nodes > 0].sum() / reached)

    return {
        "alpha": float(alphas[0]),
        "alpha_interval": np.percentile(alphas[1:], [2.5, 97.5]).tolist(),
        "schedule": schedules[0].tolist(),
        "schedule_intervals": np.percentile(schedules[1:], [2.5, 97.5], axis=0).T.tolist(),
        "alpha_gain": gain(np.full(steps, alphas[0])),
        "schedule_gain": gain(schedules[0]),
    }


def best_rate(nodes: np.ndarray, weights: np.ndarray, steps: int) -> float:
    """argmin over alpha of sum weights (1 - alpha nodes)^(2 steps): a convex problem, by bisection of its slope."""
    largest = nodes.max()
    unit, pull = nodes / largest, nodes / largest * weights
    low, high = 0.0, 2.0
    while np.sum(pull * (1 - high * unit) ** (2 * steps - 1)) > 0:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        rises = np.sum(pull * (1 - middle * unit) ** (2 * steps - 1)) > 0
        low, high = (middle, high) if rises else (low, middle)
    return float((low + high) / 2 / largest)


def gauss_schedule(nodes: np.ndarray, weights: np.ndarray, steps: int) -> np.ndarray:
    """1 / the Gauss nodes of a discrete measure, ascending; 0 for steps beyond its number of distinct points."""
    scale = nodes.max()
    nodes, weights = nodes.ravel() / scale, weights.ravel() / weights.sum()
    basis, diagonal, below = [np.sqrt(weights)], [], []
    for _ in range(steps):
        image = nodes * basis[-1]
        diagonal.append(basis[-1] @ image)
        for _ in range(2):  # orthogonal to working precision only the second time
            image = image - sum(vector * (vector @ image) for vector in basis)
        below.append(np.linalg.norm(image))
        if below[-1] < _EXHAUSTED:
            break
        basis.append(image / below[-1])
    count = len(diagonal)
    jacobi = np.diag(diagonal) + np.diag(below[: count - 1], -1)
    found = np.linalg.eigvalsh(jacobi)[::-1]  # of the lower triangle
    positive = np.where(found > 0, found, np.inf)
    return np.concatenate([1 / positive / scale, np.zeros(steps - count)])


def _with_labels(found: KrylovTerms, steps: int) -> dict[str, Any]:
    """Minimise the mean predicted query loss, over one log rate and over one for each step."""
    nodes, weights = _gradient_measure(found)
    if not (nodes * weights).sum() > 0:
        raise InputError(
            "the loss has no curvature on these tasks, so its quadratic has no minimum"
        )
    before = float(np.mean(found.loss))
    grid = np.log(np.geomspace(1e-3, 4.0, 60) / nodes.max())
    losses = [float(np.mean(_task_losses(found, jnp.asarray([log]), steps))) for log in grid]
    if not min(losses) < before:
        raise InputError(
            "no adaptation rate lowers the predicted query loss at these parameters; train first, or use "
            "labels=False"
        )
    one = _minimum(found, grid[[int(np.argmin(losses))]], steps)
    gauss = gauss_schedule(nodes, weights, steps)
    spread = np.exp(one.logs) * np.geomspace(0.5, 2.0, steps)
    starts = (np.maximum(gauss, np.exp(grid[0])), spread, np.repeat(np.exp(one.logs), steps))
    many = min((_minimum(found, np.log(s), steps) for s in starts), key=lambda m: m.loss)
    order = np.argsort(many.logs)
    return {
        "alpha": float(np.exp(one.logs[0])),
        "alpha_interval": one.intervals[0],
        "schedule": np.exp(many.logs[order]).tolist(),
        "schedule_intervals": [many.intervals[i] for i in order],
        "alpha_gain": 1 - one.loss / before,
        "schedule_gain": 1 - many.loss / before,
    }


def _gradient_measure(terms: KrylovTerms) -> tuple[np.ndarray, np.ndarray]:
    """The inner gradients' measure on the support curvature: |g|^2 (v'g / |g|)^2 at every Ritz value."""
    diagonal, below = np.asarray(terms.diagonal, float), np.asarray(terms.below, float)
    small = np.zeros((*diagonal.shape, diagonal.shape[-1]))
    at = np.arange(diagonal.shape[-1])
    small[:, at, at] = diagonal
    small[:, at[1:], at[:-1]] = below[:, :-1]
    nodes, vectors = np.linalg.eigh(small)
    return np.maximum(nodes, 0), np.asarray(terms.length)[:, None] ** 2 * vectors[:, 0] ** 2


@dataclasses.dataclass(frozen=True)
class _Minimum:
    """A minimum in log rates; the intervals are of the rates, from the influence of each task."""

    logs: np.ndarray
    loss: float
    intervals: list[list[float]]


def _minimum(terms: KrylovTerms, logs: np.ndarray, steps: int) -> _Minimum:
    """Newton's method, in directions of negative curvature downhill all the same, with steps of at most 1."""
    loss, gradients, hessian = _derivatives(terms, logs, steps)
    damping = 1e-3
    for _ in range(_NEWTON_STEPS):
        values, vectors = np.linalg.eigh(hessian)
        size = np.abs(values) + damping * np.abs(values).max() + np.finfo(float).tiny
        step = -vectors @ (vectors.T @ gradients.mean(axis=0) / size)
        step *= min(1.0, 1.0 / (np.abs(step).max() + np.finfo(float).tiny))
        tried = _derivatives(terms, logs + step, steps)
        if tried[0] < loss:
            logs, (loss, gradients, hessian), damping = logs + step, tried, damping / 4
        else:
            damping *= 8
        if np.abs(step).max() < _SETTLED or damping > 1e12:
            break
    influence = gradients @ np.linalg.pinv(hessian, hermitian=True)
    error = influence.std(axis=0, ddof=1) / np.sqrt(len(influence))
    low, high = (np.exp(np.clip(logs + sign * 1.959964 * error, -80, 80)) for sign in (-1, 1))
    return _Minimum(logs, loss, np.stack([low, high], axis=1).tolist())


def _derivatives(terms: KrylovTerms, logs: np.ndarray, steps: int):
    losses, gradients, hessian = jax.device_get(_differentiate(terms, jnp.asarray(logs), steps))
    return float(losses.mean()), np.asarray(gradients, float), np.asarray(hessian, float)


@partial(jax.jit, static_argnames="steps")
def _task_losses(terms: KrylovTerms, logs: Array, steps: int) -> Array:
    rates = jnp.broadcast_to(jnp.exp(logs), (steps,))
    return jax.vmap(lambda one: loss_after(one, rates))(terms)


@partial(jax.jit, static_argnames="steps")
def _differentiate(terms: KrylovTerms, logs: Array, steps: int) -> tuple[Array, Array, Array]:
    """Loss and gradient of every task, Hessian of their mean, all in log rates."""
    mean = lambda x: jnp.mean(_task_losses(terms, x, steps))  # noqa: E731
    of_tasks = partial(_task_losses, terms, steps=steps)
    return of_tasks(logs), jax.jacfwd(of_tasks)(logs), jax.hessian(mean)(logs)
