"""Judging meta-parameters on held-out tasks, before and after adaptation."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from metastep._compiler import TunedJit
from metastep._errors import InputError, check_count
from metastep._records import Estimate
from metastep._types import Episode, Params, Rate
from metastep.adapt import HALVINGS
from metastep.tasks import AbstractTaskFamily
from metastep.train.devices import map_over_devices
from metastep.train.learner import Learner


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Mean query loss and accuracy (classification) over tasks after a number of inner steps.

    Attributes
    ----------
    steps, loss, accuracy : the accuracy is None for regression
    halved : tasks that adapted at lower rates so far, because an inner step would have raised their support loss
    unadapted : tasks whose support loss would have risen at every rate tried, and which were judged as they were
    """

    steps: int
    loss: Estimate
    accuracy: Estimate | None
    halved: int = 0
    unadapted: int = 0


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Held-out performance.

    Attributes
    ----------
    num_tasks, transductive : how it was measured
    curve : after 0, 1, ..., steps inner steps, on the same tasks
    """

    num_tasks: int
    transductive: bool
    curve: list[Judgement]

    @property
    def before(self) -> Judgement:
        """Without adaptation."""
        return self.curve[0]

    @property
    def after(self) -> Judgement:
        """After the last inner step."""
        return self.curve[-1]

    def record(self) -> dict:
        """The JSON form: the result after adaptation, with `before` and `curve` beside it."""
        judged = [_plain(judgement) for judgement in self.curve]
        before = {name: judged[0][name] for name in ("loss", "accuracy") if name in judged[0]}
        return {
            "num_tasks": self.num_tasks,
            "transductive": self.transductive,
            **judged[-1],
            "before": before,
            "curve": judged,
        }


def _plain(judgement: Judgement) -> dict:
    plain = dataclasses.asdict(judgement)
    return {name: value for name, value in plain.items() if value is not None}


class TaskCurve(eqx.Module):
    """What adaptation does for a task (or several, on the leading axes) after 0, 1, ..., steps inner steps.

    Attributes
    ----------
    losses, metrics : of the query set; metrics are NaN where the objective has none
    halvings : how often rates were halved so far
    unadapted : whether in vain, so that no step was taken so far
    """

    losses: Float[Array, "*tasks points"]
    metrics: Float[Array, "*tasks points"]
    halvings: Int[Array, "*tasks points"]
    unadapted: Bool[Array, "*tasks points"]


def predict(
    learner: Learner, params: Params, episode: Episode, *, transductive: bool = True
) -> Array:
    """Outputs on the query set.

    With `transductive`, the whole query set goes through the model at once, and batch normalisation sees all
    of it, as in most published few-shot numbers. Without, each query example goes through alone beside the
    support set, so that no prediction depends on another.
    """
    apply = learner.objective.apply
    if transductive:
        return apply(params, episode.query.x)

    def alone(example: Array) -> Array:
        return apply(params, jnp.concatenate([episode.support.x, example[None]]))[-1]

    return jax.lax.map(alone, episode.query.x)


def judge_steps(
    learner: Learner,
    params: Params,
    alpha: Rate,
    episode: Episode,
    steps: int,
    *,
    transductive: bool = True,
    halvings: int = HALVINGS,
) -> TaskCurve:
    """One task after 0, 1, ..., `steps` inner steps; `halvings` as in `adapt.adapt_halving`."""
    objective = learner.objective

    def judge(params: Params) -> tuple[Array, Array]:
        outputs = predict(learner, params, episode, transductive=transductive)
        metric = objective.metric(outputs, episode.query.y) if objective.metric else jnp.nan
        return objective.output_loss(outputs, episode.query.y), jnp.asarray(metric, outputs.dtype)

    found = learner.adapt(params, alpha, episode, halvings, steps, watch=judge)
    loss, metric = (jnp.asarray(value)[None] for value in judge(params))
    if steps:
        losses, metrics = found.watched
        loss, metric = jnp.concatenate([loss, losses]), jnp.concatenate([metric, metrics])
    counts = jnp.concatenate([jnp.zeros(1, int), found.halvings])
    unadapted = jnp.concatenate([jnp.zeros(1, bool), found.unadapted])
    return TaskCurve(loss, metric, counts, unadapted)


def compile_judge(
    learner: Learner,
    steps: int,
    num_tasks: int,
    *,
    transductive: bool = True,
    halvings: int = HALVINGS,
):
    """(params, alpha, family, key) -> `TaskCurve` of (tasks, steps + 1), compiled once; see `judge_steps`."""

    def judge(
        params: Params, alpha: Rate, family: AbstractTaskFamily, key: PRNGKeyArray
    ) -> TaskCurve:
        def one(
            params: Params, alpha: Rate, family: AbstractTaskFamily, task_key: PRNGKeyArray
        ) -> TaskCurve:
            return judge_steps(
                learner,
                params,
                alpha,
                family.sample(task_key),
                steps,
                transductive=transductive,
                halvings=halvings,
            )

        keys = jax.random.split(key, num_tasks)
        shared = (params, alpha, family)
        return map_over_devices(learner.mesh, one, shared, keys, learner.tasks_at_once)

    return TunedJit(judge)


def evaluate(
    learner: Learner,
    params: Params,
    alpha: Rate,
    family: AbstractTaskFamily,
    key: PRNGKeyArray,
    *,
    num_tasks: int = 600,
    steps: int | None = None,
    transductive: bool = True,
    halvings: int = HALVINGS,
) -> Evaluation:
    """Mean loss and accuracy over fresh tasks of a held-out family, with 95 % intervals.

    Parameters
    ----------
    learner : model, loss and which parameters adapt
    params, alpha : what is judged
    family : where tasks come from, for instance `TaskSplits.test`
    key : of the tasks
    num_tasks : at least 1
    steps : inner steps; those of training by default
    transductive : see `predict`
    halvings : how often the rates of an inner step are halved at most where it would raise the support loss of the
        task; 0 judges plain gradient steps, as published numbers do
    """
    check_count("num_tasks", num_tasks)
    check_count("halvings", halvings, minimum=0)
    steps = learner.adapter.steps if steps is None else steps
    check_count("steps", steps, minimum=0)
    judge = compile_judge(learner, steps, num_tasks, transductive=transductive, halvings=halvings)
    tasks = jax.device_get(judge(params, alpha, family, key))
    curve = [
        Judgement(
            step,
            Estimate.of(tasks.losses[:, step]),
            None if learner.objective.metric is None else Estimate.of(tasks.metrics[:, step]),
            int(np.count_nonzero(tasks.halvings[:, step])),
            int(np.count_nonzero(tasks.unadapted[:, step])),
        )
        for step in range(steps + 1)
    ]
    return Evaluation(num_tasks, transductive, curve)


def losses_at_rates(
    learner: Learner, params: Params, alphas: Float[Array, " alphas"], episodes: Episode
) -> Float[Array, "alphas tasks"]:
    """Query loss of every task after the inner loop at every rate: how one start does at rates of others.

    All rates are judged on the same tasks, so that differences between them are paired. Pure, to be compiled
    by the caller; one rate after the other, in the memory of one.

    Parameters
    ----------
    learner : model, loss and inner loop; its own rate is not used
    params : the initialisation that is judged
    alphas : (alphas,) adaptation rates, any sign
    episodes : with a leading axis of tasks, as `batch_of_episodes` gives them

    Raises
    ------
    InputError
        If `alphas` has another rank.
    """
    rates = jnp.asarray(alphas)
    if rates.ndim != 1:
        raise InputError(f"alphas has shape {rates.shape}; it must have one axis, (alphas,)")

    def at_rate(alpha: Array) -> Array:
        return jax.vmap(lambda episode: learner.query_loss(params, episode, alpha))(episodes)

    return jax.lax.map(at_rate, rates)
