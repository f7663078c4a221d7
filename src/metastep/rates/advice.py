"""What alpha should be before any training: estimated on sampled tasks, then checked by trying it."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from metastep._errors import check_count
from metastep._kept import kept_jit
from metastep._trees import as_array
from metastep._types import Episode, Params
from metastep.models import Objective
from metastep.rates.estimates import RatioEstimate, ratio_estimate
from metastep.rates.grown import GrownRate, grown_rate
from metastep.rates.label_aware import AwareTerms, label_aware_terms
from metastep.rates.label_free import label_free_terms
from metastep.tasks import AbstractTaskFamily

QueryLoss = Callable[[Params, Episode, Array], Array]
"""(params, episode, alpha) -> query loss after adapting at rate alpha."""

_CHECKED_TASKS = 32
# Tasks of one kind agree on the rate to within this factor.
_WIDE = 10.0
# Of n coins, more than n / 2 + sqrt(n) times this are heads once in twenty times.
_SIGN_TEST = 0.8224
# The rates tried, relative to the estimate: close together where the minimum is expected.
_CURVE_FACTORS = np.array([0.03, 0.1, 0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0])


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


@dataclasses.dataclass(frozen=True)
class RateAdvice:
    """The adaptation rate that the tasks and the model ask for, and the evidence.

    Attributes
    ----------
    alpha, alpha_interval : label-aware estimate and its 95 % interval over tasks
    label_free_alpha, label_free_interval : (H.6), from the inputs alone
    support_alpha, support_interval : the label-aware rate if the support set were its own query set
    predicted_gain : share of the query loss one step at `alpha` removes, by the quadratic
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
    label_free_alpha: float
    label_free_interval: list[float]
    support_alpha: float
    support_interval: list[float]
    predicted_gain: float
    label_free_gain: float
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

    def over_tasks(function: Callable, keys: PRNGKeyArray, *rest, shared: tuple = ()):
        """function(params, episode, ..., *shared) for the tasks of these keys, on the host; `shared` is of all."""

        @kept_jit
        def compute(params, family, keys, rest, shared):
            def one(of_task):
                return function(params, family.sample(of_task[0]), *of_task[1:], *shared)

            return jax.lax.map(one, (keys, *rest), batch_size=tasks_at_once or keys.shape[0])

        return jax.device_get(compute(params, family, keys, rest, shared))

    def on_query_and_support(p: Params, episode: Episode) -> tuple[AwareTerms, AwareTerms]:
        terms = partial(label_aware_terms, objective, p, restrict=restrict)
        return terms(episode), terms(Episode(episode.support, episode.support))

    aware, fitted = over_tasks(on_query_and_support, keys)
    free = over_tasks(
        lambda p, episode, probe: label_free_terms(objective, p, episode, probe, restrict),
        few_keys,
        probe_keys,
    )
    estimate = ratio_estimate(aware.slope, aware.curvature)
    support = ratio_estimate(fitted.slope, fitted.curvature)
    label_free = ratio_estimate(free.second, free.third)
    centre = estimate.value if estimate.value > 0 else label_free.value
    rates = np.concatenate([[0.0], centre * _CURVE_FACTORS])
    tried = as_array(rates.astype(jnp.result_type(float)))
    losses = over_tasks(
        lambda p, episode, tried: jax.lax.map(lambda alpha: query_loss(p, episode, alpha), tried),
        few_keys,
        shared=(tried,),
    )
    checked = jax.tree.map(lambda terms: terms[:few], aware)
    curve = _curve(rates, losses, checked)
    grown = None
    if label_width is not None:
        grown = grown_rate(
            objective, params, family, few_keys, label_width, restrict, tasks_at_once
        )
    return _advice(estimate, support, label_free, aware, free, curve, grown, num_tasks)


def _keys(num_tasks: int, few: int, key: PRNGKeyArray) -> tuple[PRNGKeyArray, ...]:
    """Those of all tasks, of the first few, and of their probes."""
    task_key, probe_key = jax.random.split(key)
    keys = jax.random.split(task_key, num_tasks)
    return keys, keys[:few], jax.random.split(probe_key, few)


def _curve(rates: np.ndarray, losses: np.ndarray, aware: AwareTerms) -> AlphaCurve:
    """Measured and predicted on the same tasks; the interval is that of the change against alpha = 0."""
    slope, curvature = aware.slope.mean(), aware.curvature.mean()
    predicted = aware.loss.mean() - rates * slope + 0.5 * rates**2 * curvature
    with np.errstate(invalid="ignore", over="ignore"):
        change = losses - losses[:, :1]
        half_width = 1.959964 * change.std(axis=0, ddof=1) / np.sqrt(len(losses))
        means = losses.mean(axis=0)
    worse = np.mean(~(losses <= losses[:, :1]), axis=0)
    return AlphaCurve(*(part.tolist() for part in (rates, means, half_width, worse, predicted)))


def _advice(
    estimate: RatioEstimate,
    support: RatioEstimate,
    label_free: RatioEstimate,
    aware,
    free,
    curve: AlphaCurve,
    grown: GrownRate | None,
    num_tasks: int,
) -> RateAdvice:
    chosen, reason, warnings = _choose(estimate, label_free, curve, len(free.first))
    if grown is not None and grown.alpha < chosen:
        reason = (
            f"the label-aware rate where outputs are as wide as the labels, {grown.width:.3g}, which all parameters "
            f"{grown.factor:.3g} times as large make them, as training will; before it, {chosen:.3g} would be right"
        )
        chosen = grown.alpha
    gain = aware.slope.sum() ** 2 / (2 * aware.curvature.sum() * aware.loss.sum())
    free_gain = free.second.sum() ** 2 / (free.first.sum() * free.third.sum())
    return RateAdvice(
        alpha=estimate.value,
        alpha_interval=estimate.interval,
        label_free_alpha=label_free.value,
        label_free_interval=label_free.interval,
        support_alpha=support.value,
        support_interval=support.interval,
        predicted_gain=float(gain) if estimate.value > 0 else 0.0,
        label_free_gain=float(free_gain),
        grown=grown,
        alpha_chosen=chosen,
        alpha_reason=reason,
        num_tasks=num_tasks,
        curve=curve,
        warnings=warnings,
    )


def _choose(
    estimate: RatioEstimate, label_free: RatioEstimate, curve: AlphaCurve, num_checked: int
) -> tuple[float, str, list[str]]:
    """The estimate, unless it is not positive or adapting at that rate makes things worse."""
    warnings = []
    if estimate.value <= 0:
        chosen, reason = (
            label_free.value,
            (
                "the gradients of support and query disagree at the starting parameters, so the label-aware rate "
                "is not positive; the label-free rate (H.6) is used"
            ),
        )
        warnings.append("one inner step does not help yet at the starting parameters")
    else:
        chosen, reason = (
            estimate.value,
            (
                "the label-aware rate minimises the quadratic approximation of the query loss along the inner "
                "gradient, averaged over tasks"
            ),
        )
        if estimate.low <= 0:
            warnings.append("the interval of the label-aware rate includes 0: sample more tasks")
        elif estimate.high > _WIDE * estimate.low:
            warnings.append(
                f"the interval of the label-aware rate spans a factor of {estimate.high / estimate.low:,.0f}: a few "
                "tasks far out of the ordinary decide it; look for wrong units or broken labels among them"
            )
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
