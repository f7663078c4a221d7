"""What alpha should be before any training: estimated on sampled tasks, then checked by trying it."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from metastep._errors import InputError, check_count
from metastep._kept import kept_jit
from metastep._trees import as_array
from metastep._types import Episode, Params
from metastep.models import Objective
from metastep.rates.alpha_curve import AlphaCurve, measured_curve, tried_around
from metastep.rates.estimates import RateEstimate, check_finite, ratio_estimate
from metastep.rates.grown import GrownRate, grown_rate
from metastep.rates.label_aware import AwareTerms, label_aware_terms
from metastep.rates.label_free import FreeTerms, label_free_terms
from metastep.rates.searched import least_loss_rate, rates_to_search
from metastep.tasks import AbstractTaskFamily

QueryLoss = Callable[[Params, Episode, Array], Array]
"""(params, episode, alpha) -> query loss after adapting at rate alpha."""

_CHECKED_TASKS = 32
# Tasks of one kind agree on the rate to within this factor.
_WIDE = 10.0
# Of n coins, more than n / 2 + sqrt(n) times this are heads once in twenty times.
_SIGN_TEST = 0.8224


@dataclasses.dataclass(frozen=True)
class RateAdvice:
    """The adaptation rate that the tasks and the model ask for, and the evidence.

    Attributes
    ----------
    alpha, alpha_interval : label-aware estimate and its 95 % interval over tasks; of a loss without curvature along
        the inner gradient, such as an absolute error, the rate that left the least query loss of those tried
    label_free_alpha, label_free_interval : (H.6), from the inputs alone; None where the loss has no curvature
    support_alpha, support_interval : `alpha` if the support set were its own query set
    predicted_gain : share of the query loss one step at `alpha` removes, by the quadratic; None without one
    label_free_gain : the same if task optima were isotropic and labels exact, as (H.6) assumes; on real
        tasks it is optimistic, often by far
    grown : the label-aware rate where outputs are as wide as labels; None where that was not asked for
    alpha_chosen : what training should use: `alpha`, unless trying it out or `grown` said otherwise
    alpha_reason : why, in a sentence or two
    num_tasks : tasks the estimate is from
    curve : the check
    warnings : what to know before trusting the estimate
    """

    alpha: float
    alpha_interval: list[float]
    label_free_alpha: float | None
    label_free_interval: list[float] | None
    support_alpha: float
    support_interval: list[float]
    predicted_gain: float | None
    label_free_gain: float | None
    grown: GrownRate | None
    alpha_chosen: float
    alpha_reason: str
    num_tasks: int
    curve: AlphaCurve
    warnings: list[str]


def advise_rates(
    objective: Objective,
    params: Params,
    family: AbstractTaskFamily,
    key: PRNGKeyArray,
    query_loss: QueryLoss,
    *,
    num_tasks: int = 128,
    restrict: Callable[[Params], Params] = lambda gradient: gradient,
    tasks_at_once: int | None = None,
    label_width: float | None = None,
) -> RateAdvice:
    """Estimate the adaptation rate of `params` on fresh tasks.

    Parameters
    ----------
    objective : model and loss
    params : the starting parameters
    family : where tasks come from
    key : for the tasks and probes
    query_loss : adapts and judges, as training will; used to check the estimate
    num_tasks : tasks for the label-aware estimates, at least 2; the check and the label-free estimate use the
        first 32 of them
    restrict : zeroes the gradient of parameters the inner loop leaves alone (ANIL)
    tasks_at_once : tasks computed side by side; None for all
    label_width : standard deviation of labels, where the model has to grow to it and the loss is a squared error: the
        rate is then no larger than `grown_rate`'s. None where labels are of usual width

    Raises
    ------
    InputError
        When the loss or its derivatives are not finite at `params`, or nothing depends on alpha.
    """
    check_count("num_tasks", num_tasks, minimum=2)
    few = min(num_tasks, _CHECKED_TASKS)
    # Op by op, each would be compiled.
    keys, few_keys, probe_keys = kept_jit(partial(_keys, num_tasks, few))(key)

    def over_tasks(function: Callable) -> Callable:
        """Its function(params, episode, ..., *shared) for the tasks of some keys, on the host; `shared` is of all."""

        @kept_jit
        def compute(params, family, keys, rest, shared):
            def one(of_task):
                return function(params, family.sample(of_task[0]), *of_task[1:], *shared)

            return jax.lax.map(one, (keys, *rest), batch_size=tasks_at_once or keys.shape[0])

        def of_keys(keys: PRNGKeyArray, *rest: Array, shared: tuple = ()):
            return jax.device_get(compute(params, family, keys, rest, shared))

        return of_keys

    def on_query_and_support(p: Params, episode: Episode) -> tuple[AwareTerms, AwareTerms]:
        terms = partial(label_aware_terms, objective, p, restrict=restrict)
        return terms(episode), terms(Episode(episode.support, episode.support))

    def after_steps(p: Params, episode: Episode, tried: Array) -> Array:
        return jax.lax.map(lambda alpha: query_loss(p, episode, alpha), tried)

    def both_after_steps(p: Params, episode: Episode, tried: Array) -> tuple[Array, Array]:
        on_support = Episode(episode.support, episode.support)
        return after_steps(p, episode, tried), after_steps(p, on_support, tried)

    def free_terms(p: Params, episode: Episode, probe: PRNGKeyArray) -> FreeTerms:
        return label_free_terms(objective, p, episode, probe, restrict)

    aware, fitted = over_tasks(on_query_and_support)(keys)
    check_finite(*jax.tree.leaves((aware, fitted)))
    if aware.curvature.sum() > 0 and fitted.curvature.sum() > 0:
        found = _by_curvature(aware, fitted, over_tasks(free_terms)(few_keys, probe_keys))
    else:
        rates = rates_to_search(fitted.loss, fitted.slope)
        losses = over_tasks(both_after_steps)(few_keys, shared=(_as_tried(rates),))
        on_query, on_support = (least_loss_rate(rates, part) for part in losses)
        if not max(on_query.value, on_support.value) > 0:
            raise InputError(
                "the loss has no curvature along the inner gradient, and no rate tried lowers it, on support sets "
                "neither: give a rate yourself (--alpha)"
            )
        found = _Estimates(on_query, on_support)
    try_out = over_tasks(after_steps)
    rates, losses = tried_around(
        found.query.value if found.query.value > 0 else found.fallback.value,
        lambda rates: try_out(few_keys, shared=(_as_tried(rates),)),
        lower=found.query.value > 0,
    )
    curve = measured_curve(rates, losses, jax.tree.map(lambda terms: terms[:few], aware))
    grown = None
    if label_width is not None:
        grown = grown_rate(
            objective, params, family, few_keys, label_width, restrict, tasks_at_once
        )
    return _advice(found, curve, grown, num_tasks, few)


@dataclasses.dataclass(frozen=True)
class _Estimates:
    """What is known of the rate before it is tried out; the last three rest on a quadratic."""

    query: RateEstimate
    support: RateEstimate
    label_free: RateEstimate | None = None
    gain: float | None = None
    free_gain: float | None = None

    @property
    def fallback(self) -> RateEstimate:
        """The rate to use where no step helps the query set yet."""
        return self.label_free or self.support


def _by_curvature(aware: Any, fitted: Any, free: Any) -> _Estimates:
    """Minima of quadratics, by `AwareTerms` on query and support sets and `FreeTerms`, on the host."""
    query = ratio_estimate(aware.slope, aware.curvature)
    gain = aware.slope.sum() ** 2 / (2 * aware.curvature.sum() * aware.loss.sum())
    free_gain = free.second.sum() ** 2 / (free.first.sum() * free.third.sum())
    return _Estimates(
        query,
        ratio_estimate(fitted.slope, fitted.curvature),
        ratio_estimate(free.second, free.third),
        float(gain) if query.value > 0 else 0.0,
        float(free_gain),
    )


def _as_tried(rates: np.ndarray) -> Array:
    return as_array(rates.astype(jnp.result_type(float)))


def _keys(num_tasks: int, few: int, key: PRNGKeyArray) -> tuple[PRNGKeyArray, ...]:
    """Those of all tasks, of the first few, and of their probes."""
    task_key, probe_key = jax.random.split(key)
    keys = jax.random.split(task_key, num_tasks)
    return keys, keys[:few], jax.random.split(probe_key, few)


def _advice(
    found: _Estimates, curve: AlphaCurve, grown: GrownRate | None, num_tasks: int, num_checked: int
) -> RateAdvice:
    chosen, reason, warnings = _choose(found, curve, num_checked)
    if grown is not None and grown.alpha < chosen:
        reason = (
            f"the label-aware rate where outputs are as wide as the labels, {grown.width:.3g}, which all parameters "
            f"{grown.factor:.3g} times as large make them, as training will; before it, {chosen:.3g} would be right"
        )
        chosen = grown.alpha
    free = found.label_free
    return RateAdvice(
        alpha=found.query.value,
        alpha_interval=found.query.interval,
        label_free_alpha=free.value if free else None,
        label_free_interval=free.interval if free else None,
        support_alpha=found.support.value,
        support_interval=found.support.interval,
        predicted_gain=found.gain,
        label_free_gain=found.free_gain,
        grown=grown,
        alpha_chosen=chosen,
        alpha_reason=reason,
        num_tasks=num_tasks,
        curve=curve,
        warnings=warnings,
    )


def _choose(found: _Estimates, curve: AlphaCurve, num_checked: int) -> tuple[float, str, list[str]]:
    """The estimate, unless it is not positive or adapting at that rate makes things worse."""
    chosen, reason, warnings = _estimated(found)
    rates, losses = np.array(curve.alpha), np.array(curve.measured)
    tried = np.interp(chosen, rates, np.nan_to_num(losses, nan=np.inf, posinf=np.inf))
    doubt = np.interp(chosen, rates, np.nan_to_num(curve.ci95, nan=0.0))
    # Where most tasks diverge, their losses scatter so much that no mean is surely worse than another.
    worse = np.interp(chosen, rates, curve.worse)
    most_worse = worse > 0.5 + _SIGN_TEST / np.sqrt(num_checked)
    if most_worse or not tried <= losses[0] + doubt:
        usable = np.where(np.isfinite(losses), losses, np.inf)
        best = int(np.argmin(usable[1:])) + 1
        warnings.append(
            f"adapting at {chosen:.3g} makes {worse:.0%} of tasks worse, with a query loss of {tried:.4g} instead of "
            f"{losses[0]:.4g}; the best of the rates tried is {rates[best]:.3g}"
        )
        chosen = float(rates[best])
        reason += "; trying it out showed the quadratic to be too optimistic, so the best rate tried is used"
    return float(chosen), reason, warnings


def _estimated(found: _Estimates) -> tuple[float, str, list[str]]:
    """The rate to try out first, why, and what to know of it."""
    query, is_searched = found.query, found.label_free is None
    if query.value <= 0:
        reason = (
            "the loss has no curvature along the inner gradient, and of the rates tried none lowers the query loss "
            "at the starting parameters; the one that leaves the least support loss is used"
            if is_searched
            else "the gradients of support and query disagree at the starting parameters, so the label-aware rate "
            "is not positive; the label-free rate (H.6) is used"
        )
        return (
            found.fallback.value, reason, ["one inner step does not help yet at the starting parameters"]
        )  # fmt: skip
    reason = (
        "the loss has no curvature along the inner gradient, so rates were tried, powers of two times Polyak's step: "
        "this one leaves the least query loss, averaged over tasks"
        if is_searched
        else "the label-aware rate minimises the quadratic approximation of the query loss along the inner "
        "gradient, averaged over tasks"
    )
    name, warnings = "searched" if is_searched else "label-aware", []
    if query.low <= 0:
        warnings.append(f"the interval of the {name} rate includes 0: sample more tasks")
    elif query.high > _WIDE * query.low:
        warnings.append(
            f"the interval of the {name} rate spans a factor of {query.high / query.low:,.0f}: a few "
            "tasks far out of the ordinary decide it; look for wrong units or broken labels among them"
        )
    return query.value, reason, warnings


def learned_start(advice: RateAdvice) -> tuple[float, str]:
    """Where a rate that is learned with the initialisation should start, and why.

        max(alpha_chosen, support_alpha)

    The label-aware rate is small where little of what the support set teaches carries over to the query set, as with
    the features of an untrained network. Meta-training makes it carry over, and then the rate that is best for the
    query set is the one that is best for the support set itself. A learned rate gets there by itself, but a short run
    has no time for it.

    Parameters
    ----------
    advice : what was measured; the start is no larger than the largest rate tried, and stays `alpha_chosen` where
        trying the larger one out ruined the model before it is trained (a loss that more than doubles), or where
        outputs have yet to grow to wide labels
    """
    if advice.grown is not None:
        return advice.alpha_chosen, advice.alpha_reason
    rates, losses = np.array(advice.curve.alpha), np.array(advice.curve.measured)
    start = min(advice.support_alpha, float(rates[-1]))
    tried = np.interp(start, rates, np.nan_to_num(losses, nan=np.inf, posinf=np.inf))
    if start <= advice.alpha_chosen or not tried - losses[0] <= abs(losses[0]):
        return advice.alpha_chosen, advice.alpha_reason
    return start, (
        f"the best rate for the support set itself; that for the query set, {advice.alpha_chosen:.3g}, tends to it "
        "as meta-training makes more of what is learned from the support set carry over"
    )


def no_higher_than_tried(advice: RateAdvice, start: float, reason: str) -> tuple[float, str]:
    """A start and its reason or, if it is lower, the rate of least query loss of those tried.

    Estimates are those of one step. Of several, which are tried out, a lower rate may be the best; one that does not
    fall in training has to begin there.
    """
    rates, losses = np.array(advice.curve.alpha[1:]), np.array(advice.curve.measured[1:])
    best = float(rates[np.argmin(np.where(np.isfinite(losses), losses, np.inf))])
    if start <= best:
        return start, reason
    return best, (
        f"of the rates tried, that of least query loss after all inner steps; for one step it would be {start:.3g}"
    )
