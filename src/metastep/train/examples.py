"""A few held-out tasks before and after adaptation, as arrays that a report can draw."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from metastep._compiler import TunedJit
from metastep._types import Episode, Params, Rate
from metastep.adapt import HALVINGS
from metastep.tasks import AbstractTaskFamily, FewShot, batch_of_episodes
from metastep.tasks.regression import AbstractRegression
from metastep.train.learner import Learner

_NUM_TASKS = 3
_CURVE_POINTS = 200


def example_tasks(
    learner: Learner,
    params: Params,
    alpha: Rate,
    family: AbstractTaskFamily,
    key: PRNGKeyArray,
    halvings: int = HALVINGS,
) -> dict[str, Any]:
    """Arrays for `examples.npz`: fitted curves, classified images, or predictions against targets."""
    is_curve = isinstance(family, AbstractRegression) and family.input_shape == (1,)
    if is_curve:
        family = dataclasses.replace(family, queries=_CURVE_POINTS)

    @TunedJit
    def compute(params: Params, alpha: Rate, family: AbstractTaskFamily, key: PRNGKeyArray):
        episodes = batch_of_episodes(family, key, _NUM_TASKS)

        def outputs(episode: Episode):
            found = learner.adapt(params, alpha, episode, halvings)
            apply = learner.objective.apply
            return apply(params, episode.query.x), apply(found.params, episode.query.x)

        return episodes, jax.lax.map(outputs, episodes)

    episodes, (before, after) = jax.device_get(compute(params, alpha, family, key))
    support, query = episodes.support, episodes.query
    if is_curve:
        return _curves(support, query, before, after)
    if isinstance(family, FewShot) and len(family.input_shape) == 3:
        return {
            "kind": "images",
            "support_x": support.x,
            "support_y": support.y,
            "query_x": query.x,
            "query_y": query.y,
            "before": np.asarray(jax.nn.softmax(before)),
            "after": np.asarray(jax.nn.softmax(after)),
        }
    if family.kind == "regression":
        flat = [values.reshape(_NUM_TASKS, -1) for values in (query.y, before, after)]
        return {"kind": "scatter", **dict(zip(("query_y", "before", "after"), flat, strict=True))}
    return {}


def _curves(support: Any, query: Any, before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    order = np.argsort(query.x[..., 0], axis=1)
    in_order = lambda values: np.take_along_axis(values[..., 0], order, axis=1)  # noqa: E731
    return {
        "kind": "curves",
        "grid": in_order(query.x),
        "truth": in_order(query.y),
        "before": in_order(before),
        "after": in_order(after),
        "support_x": support.x[..., 0],
        "support_y": support.y[..., 0],
    }
