"""One new task: adapt to it, predict, and say what became of its rates."""

import dataclasses
import functools
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from metastep._compiler import TunedJit
from metastep._errors import InputError
from metastep._trees import all_finite
from metastep._types import Batch, Episode, Params, Rate
from metastep.tasks.core import as_default_float
from metastep.train.evaluate import predict
from metastep.train.learner import Learner
from metastep.train.problem import as_float
from metastep.train.scaling import Scaling


@dataclasses.dataclass(frozen=True)
class TaskPredictions:
    """Predictions for one new task, in the units of the data.

    Attributes
    ----------
    predictions, predictions_before : after and before adaptation, (queries, outputs), or class labels (queries,)
    probabilities : (queries, classes) after adaptation; None for regression
    halvings : how often rates were halved in all, because an inner step would have raised the support loss
    unadapted : whether that was in vain: the predictions are then those before adaptation
    """

    predictions: np.ndarray
    predictions_before: np.ndarray
    probabilities: np.ndarray | None
    halvings: int
    unadapted: bool

    def arrays(self) -> dict[str, np.ndarray]:
        """What is written to files."""
        names = ("predictions", "predictions_before", "probabilities")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


class Answer(eqx.Module):
    """Outputs on the query set after and before adaptation, what became of the rates, and whether all is finite."""

    after: Array
    before: Array
    halvings: Array
    unadapted: Array
    finite: Array


def _answer(
    learner: Learner,
    params: Params,
    alpha: Rate,
    episode: Episode,
    steps: int,
    transductive: bool,
    halvings: int,
) -> Answer:
    found = learner.adapt(params, alpha, episode, halvings, steps)
    after, before = (
        predict(learner, each, episode, transductive=transductive)
        for each in (found.params, params)
    )
    finite = jnp.isfinite(learner.objective(params, episode.support)) & all_finite(found.params)
    halved, unadapted = (
        (found.halvings[-1], found.unadapted[-1]) if steps else (jnp.asarray(0), jnp.asarray(False))
    )
    return Answer(after, before, halved, unadapted, finite)


def compile_answer(learner: Learner) -> Callable[..., Answer]:
    """(params, alpha, episode, steps, transductive, halvings) -> `Answer`, compiled."""
    return TunedJit(functools.partial(_answer, learner), static_argnums=(3, 4, 5))


def check_classes(support_y: np.ndarray, classes: int) -> None:
    """Raise for a label that the model has no output for."""
    if int(support_y.max(initial=0)) >= classes:
        raise InputError(
            f"the support set has a class {int(support_y.max())}, but the model tells {classes} classes apart "
            f"(0 to {classes - 1})"
        )


def new_episode(
    scaling: Scaling | None, support_x: np.ndarray, support_y: np.ndarray, query_x: np.ndarray
) -> Episode:
    """The task in the units of training; nobody knows the targets of its query set."""
    prepare = scaling.inputs if scaling else as_float
    targets = scaling.targets(support_y) if scaling else support_y
    return Episode(
        Batch(as_default_float(prepare(support_x)), as_default_float(targets)),
        Batch(as_default_float(prepare(query_x)), jnp.zeros(len(query_x))),
    )
