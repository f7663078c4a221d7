"""How large both rates may be, by curvature: of the support loss for alpha, of the meta-objective for beta."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray

from metastep._derivatives import has_forward_mode, has_second_derivative
from metastep._errors import InputError
from metastep._types import Params
from metastep.adapt import GradientAdapter
from metastep.rates import meta_edge, stability_edge
from metastep.rates.curvature import LANCZOS_STEPS
from metastep.tasks import TaskSplits, batch_of_episodes
from metastep.theory.citations import source
from metastep.train.build import build_learner
from metastep.train.config import ProblemConfig, as_training
from metastep.train.learner import Learner
from metastep.train.problem import TaskSet, filled, split_keys, starting_parameters


@source("takagi", "conditions on alpha and beta (figure 4)", "as printed", "alpha_c, sgd")
def predict_limits(
    learner: Learner,
    splits: TaskSplits,
    params: Params,
    alphas: Sequence[float],
    key: PRNGKeyArray,
    *,
    optimizer: str = "sgd",
    num_tasks: int = 64,
    lanczos: int = LANCZOS_STEPS,
) -> dict[str, Any]:
    """alpha_c of the support loss and beta_c(alpha) of the exact meta-objective, from the curvature at `params`.

    Returns
    -------
    `alpha_c`, 1 / lambda_max of the sharpest task; `alpha_c_median`, of the median task; `beta_c`, for each
    alpha, NaN where the curvature overflows.
    """
    task_key, edge_key = jax.random.split(key)
    episodes = jax.jit(batch_of_episodes, static_argnums=2)(splits.train, task_key, num_tasks)
    sizes: Any = {"tasks_at_once": learner.tasks_at_once, "iterations": lanczos}

    def beta_c(alpha: float) -> float:
        loss = Partial(learner.query_loss, alpha=jnp.asarray(alpha))
        try:
            return meta_edge(loss, params, episodes, optimizer, edge_key, **sizes).beta_max
        except InputError:  # alpha so large that the curvature overflows
            return float("nan")

    edge = stability_edge(
        learner.objective,
        params,
        splits.train,
        edge_key,
        num_tasks=num_tasks,
        restrict=learner.adapter.restrict,
        **sizes,
    )
    return {
        "alpha_c": edge.simplified_alpha_c,
        "alpha_c_median": edge.ggn.median_alpha_c / 2,
        "beta_c": [beta_c(alpha) for alpha in alphas],
    }


def plain_learner(
    config: ProblemConfig,
    task_set: TaskSet,
    alpha: float,
    meta_lr: float,
    *,
    optimizer: str = "sgd",
    tasks_per_step: int | None = None,
) -> Learner:
    """What `config` would train, at two fixed rates; joint training (erm) takes no inner step."""
    full = as_training(
        config, optimizer=optimizer, tasks_per_step=tasks_per_step, alpha=alpha, meta_lr=meta_lr,
        rate="fixed", schedule="constant",
    )  # fmt: skip
    description = task_set.description
    learner = build_learner(filled(full, description), description, alpha, meta_lr)
    if config.algorithm == "erm":
        learner = dataclasses.replace(learner, adapter=GradientAdapter(0))
    return learner


def measure_edges(config: ProblemConfig, task_set: TaskSet, alpha: float) -> dict[str, Any]:
    """The largest stable rates at the starting parameters, each with its reason.

    Parameters
    ----------
    config, task_set : tasks, model and algorithm
    alpha : the adaptation rate that the meta-objective adapts at

    Returns
    -------
    `alpha_max`, 2 / lambda_max of the Gauss-Newton matrix of the sharpest task; `beta_max`, 2 / lambda_max of the
    Hessian of the exact meta-objective at `alpha`, the bound for SGD; `alpha_max_reason`, `beta_max_reason`. None
    where there is no bound or it can't be measured. Images are measured on fewer tasks, for time.
    """
    num_tasks, lanczos = (
        (4, 10) if task_set.description["images"] else (32, 20)
    )  # as the map: one program
    learner = plain_learner(config, task_set, alpha, 1.0)
    keys = split_keys(config.seed)
    start = starting_parameters(learner.model, config.seed)
    sizes: Any = {"tasks_at_once": learner.tasks_at_once, "iterations": lanczos}
    family = task_set.splits.train
    edge = stability_edge(
        learner.objective, start, family, keys["rates"],
        num_tasks=num_tasks, restrict=learner.adapter.restrict, **sizes,
    )  # fmt: skip
    measured = f"{num_tasks} tasks, {lanczos} Lanczos steps, at the starting parameters"
    return {
        "alpha_max": edge.alpha_c if math.isfinite(edge.alpha_c) else None,
        "alpha_max_reason": f"2 / λ_max of the support loss of the sharpest task (Gauss-Newton); {measured}",
        **_beta_max(learner, start, alpha, family, keys, num_tasks, sizes, measured),
    }


def _beta_max(
    learner: Learner,
    start: Params,
    alpha: float,
    family,
    keys,
    num_tasks: int,
    sizes,
    measured: str,
) -> dict[str, Any]:
    episodes = batch_of_episodes(family, keys["rates"], num_tasks)
    loss = Partial(learner.query_loss, alpha=jnp.asarray(alpha))
    outputs = lambda w: learner.objective.apply(w, episodes.support.x[0])  # noqa: E731
    if not (has_forward_mode(outputs, start) or has_second_derivative(outputs, start)):
        reason = "not measured: the model's own backward pass has no derivative, which the exact meta-objective needs"
        return {"beta_max": None, "beta_max_reason": reason}
    try:
        found = meta_edge(loss, start, episodes, "sgd", keys["validation"], **sizes).beta_max
    except InputError as overflow:
        return {"beta_max": None, "beta_max_reason": str(overflow)}
    reason = (
        f"for plain SGD: 2 / λ_max of the exact meta-objective at α = {alpha:.3g}; {measured}"
        if math.isfinite(found)
        else f"the meta-objective does not curve upwards, so nothing bounds β; {measured}"
    )
    return {"beta_max": found if math.isfinite(found) else None, "beta_max_reason": reason}
