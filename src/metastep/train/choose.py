"""The rates of a run before it starts: measured where they were not given, each with its reason."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metastep._errors import InputError
from metastep._records import to_plain
from metastep._types import Kind
from metastep.adapt import GradientAdapter
from metastep.models import has_plain_relu
from metastep.rates import (
    RATES,
    RateAdvice,
    advise_rates,
    default_meta_lr,
    learned_start,
    meta_edge,
    no_higher_than_tried,
)
from metastep.tasks import batch_of_episodes
from metastep.train.config import ProblemConfig, TrainConfig, check_config, has_curved_relu
from metastep.train.learner import loss_after, side_by_side
from metastep.train.problem import (
    TaskSet,
    build_inner_loop,
    build_model,
    split_keys,
    starting_parameters,
)
from metastep.train.references import is_own
from metastep.train.rehearse import Announce, Rehearsals, rehearsal_length, rehearse
from metastep.train.sharpness import SHARE_OF_EDGE
from metastep.train.units import remarks_on_units, width_to_grow_to

_EDGE_TASKS, _LANCZOS = 32, 20
_REPTILE_ON_CLASSES = 1 / 3
"""Of the measured rate. Weights of classifiers grow early, with them the curvature, and Reptile does not teach a
model to stay fit for its rate."""


def measure_rates(config: ProblemConfig, task_set: TaskSet, *, num_tasks: int = 128) -> RateAdvice:
    """Estimate the adaptation rate for the tasks, the model and the algorithm of a configuration."""
    check_config(config)
    keys = split_keys(config.seed)
    model = build_model(config, task_set.description)
    objective, adapter = build_inner_loop(config, model, task_set.description)

    return advise_rates(
        objective,
        starting_parameters(model, config.seed),
        task_set.splits.train,
        keys["rates"],
        partial(loss_after, objective, adapter),
        num_tasks=num_tasks,
        restrict=adapter.restrict,
        tasks_at_once=side_by_side(model, config.tasks_at_once),
        label_width=width_to_grow_to(config, task_set.description.get("units", {})),
    )


def choose_rates(
    config: TrainConfig,
    task_set: TaskSet,
    announce: Announce = lambda stage, record: None,
    advice: RateAdvice | None = None,
) -> dict[str, Any]:
    """The rates of a run, with the reason for each: the record of `rates.json`.

    `announce` is told of rehearsals; `advice` is what `measure_rates` found, if that is known.
    """
    if config.alpha == "auto":
        record = _measured(
            config, task_set.description["kind"], advice or measure_rates(config, task_set)
        )
    else:
        record = {"alpha_chosen": config.alpha, "alpha_reason": "given by the user"}
    alpha = float(record["alpha_chosen"])
    meta_lr, meta_reason = choose_meta_lr(config, task_set, alpha)
    rehearsals = rehearse(config, task_set, alpha, meta_lr, announce)
    if rehearsals is not None:
        record |= _after_rehearsals(config, rehearsals, record["alpha_reason"])
        if record["alpha_chosen"] != alpha:
            meta_lr, meta_reason = choose_meta_lr(config, task_set, record["alpha_chosen"])
    remarks = remarks_on_units(config, task_set.description.get("units", {}))
    on_kinks = _remarks_on_kinks(config, task_set)
    return record | {
        "notes": remarks["notes"] + on_kinks["notes"],
        "warnings": remarks["warnings"] + on_kinks["warnings"] + record.get("warnings", []),
        "rate": config.rate,
        "rate_reason": RATES[config.rate].summary,
        "meta_lr": meta_lr,
        "meta_lr_reason": meta_reason,
        "optimizer": config.optimizer,
        "schedule": config.schedule,
    }


def _remarks_on_kinks(config: TrainConfig, task_set: TaskSet) -> dict[str, list[str]]:
    """What is done, or is to be done, about ReLUs of the user's own that meta-gradients go through."""
    nothing: dict[str, list[str]] = {"notes": [], "warnings": []}
    images = len(task_set.description["input_shape"]) >= 3
    is_curved = has_curved_relu(config, task_set.description)
    if config.algorithm != "maml" or not is_own(config.model) or images or not is_curved:
        return nothing
    support = jax.eval_shape(task_set.splits.train.sample, jax.random.key(0)).support

    def has_plain(config: TrainConfig) -> bool:
        model = build_model(config, task_set.description)
        return has_plain_relu(model.apply, jax.eval_shape(model.init, jax.random.key(0)), support.x)

    if has_plain(config):
        text = (
            "the model has jax.nn.relu in a function with a derivative of its own: meta-gradients through it may "
            "point elsewhere than the mean loss falls, which metastep.models.relu in its place mends"
        )
        return nothing | {"warnings": [text]}
    if has_plain(dataclasses.replace(config, curved_relu=False)):
        text = (
            "jax.nn.relu has no second derivative: the model has metastep.models.relu in its place, with the same "
            "outputs (--curved-relu False: as it is)"
        )
        return nothing | {"notes": [text]}
    return nothing


def _measured(config: TrainConfig, tasks_kind: Kind, advice: RateAdvice) -> dict[str, Any]:
    """What was measured as a record; a rate that is learned, or stays, may start elsewhere."""
    kind = RATES[config.rate]
    chosen = advice.alpha_chosen, advice.alpha_reason
    start, reason = learned_start(advice) if kind.learned else chosen
    is_reptile, on_classes = config.algorithm == "reptile", tasks_kind == "classification"
    # With real targets Reptile ends lower at the rate of one step, which its models come to bear.
    if not kind.may_fall and (config.steps or 1) > 1 and (on_classes or not is_reptile):
        start, reason = no_higher_than_tried(advice, start, reason)
    if is_reptile and on_classes and not kind.may_fall:
        reason = f"a third, as Reptile does not teach a classifier to make use of its rate, of {start:.3g}: {reason}"
        start *= _REPTILE_ON_CLASSES
    return to_plain(advice) | {"alpha_chosen": start, "alpha_reason": reason}


def _after_rehearsals(config: TrainConfig, rehearsals: Rehearsals, reason: str) -> dict[str, Any]:
    """What the short trainings change in the record of rates."""
    measured, chosen = next(iter(rehearsals.tried)), rehearsals.chosen
    others = ", ".join(f"{alpha:.3g}" for alpha in rehearsals.tried if alpha != chosen)
    length = f"{rehearsal_length(config)} meta-steps each"
    if chosen == measured:
        text = f"{reason}; in short trainings ({length}) none of {others} did clearly better"
    else:
        text = (
            f"it did better in short trainings ({length}) than {others}, of which {measured:.3g} was measured "
            f"before training: {reason}"
        )
    return {"alpha_chosen": chosen, "alpha_reason": text, "rehearsals": to_plain(rehearsals.rows())}


def choose_meta_lr(config: TrainConfig, task_set: TaskSet, alpha: float) -> tuple[float, str]:
    """The meta rate of a run and why: given, a share of its stability edge, or the default of the optimiser."""
    known = _meta_lr_unmeasured(config)
    if known is not None:
        return known
    keys = split_keys(config.seed)
    model = build_model(config, task_set.description)
    objective, adapter = build_inner_loop(config, model, task_set.description)
    steps = 0 if config.algorithm == "erm" else adapter.steps
    adapter = GradientAdapter(steps, adapter.trainable)
    episodes = batch_of_episodes(task_set.splits.train, keys["rates"], _EDGE_TASKS)
    try:
        edge = meta_edge(
            partial(loss_after, objective, adapter, alpha=jnp.asarray(alpha)),
            starting_parameters(model, config.seed),
            episodes,
            config.optimizer,
            keys["validation"],
            tasks_at_once=side_by_side(model, config.tasks_at_once),
            iterations=_LANCZOS,
        )
    except InputError:
        edge = None
    if edge is None or not np.isfinite(edge.beta_max):
        value, reason = _default(config)
        return value, f"the meta-objective shows no curvature to measure; {reason}"
    share = SHARE_OF_EDGE[config.optimizer]
    return share * edge.beta_max, (
        f"{share:.3g} of {edge.beta_max:.3g}, the largest rate at which {config.optimizer} is stable at the starting "
        f"parameters (Lanczos on the meta-Hessian), and measured again at each validation"
    )


def _meta_lr_unmeasured(config: TrainConfig) -> tuple[float, str] | None:
    """The meta rate and why, where it is given or depends on the optimiser alone."""
    if config.meta_lr != "auto":
        return config.meta_lr, "given by the user"
    if config.optimizer not in SHARE_OF_EDGE or config.algorithm == "reptile":
        return _default(config)
    return None


def _default(config: TrainConfig) -> tuple[float, str]:
    return default_meta_lr(config.optimizer, config.iterations, config.tasks_per_step)
