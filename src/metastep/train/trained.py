"""A trained run, loaded again: to be evaluated, and to adapt to new tasks."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metastep._errors import InputError, check_count
from metastep._records import read_json
from metastep._types import Params, Rate
from metastep.adapt import HALVINGS
from metastep.train.build import build_learner
from metastep.train.checkpoint import Checkpoints
from metastep.train.config import TrainConfig
from metastep.train.evaluate import Evaluation, evaluate
from metastep.train.examples import example_tasks
from metastep.train.folder import RunFolder
from metastep.train.learner import Learner, mean_rate, rates_of
from metastep.train.new_task import (
    Answer,
    TaskPredictions,
    check_classes,
    compile_answer,
    new_episode,
)
from metastep.train.own import with_own
from metastep.train.problem import load_tasks, split_keys
from metastep.train.scaling import Scaling
from metastep.train.state import initial_state


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """What a run learned.

    Attributes
    ----------
    config, description : options and tasks of the run
    learner : model, loss and inner loop
    params, alpha : the initialisation and the adaptation rate it was trained for
    iteration : meta-steps behind it
    scaling : standardisation of table columns, or None
    """

    config: TrainConfig
    description: dict[str, Any]
    learner: Learner
    params: Params
    alpha: Rate
    iteration: int
    scaling: Scaling | None

    @functools.cached_property
    def answer(self) -> Callable[..., Answer]:
        """What the model says to a new task, compiled at the first one of a shape and kept; see `compile_answer`."""
        return compile_answer(self.learner)


def load_run(folder: RunFolder, checkpoint: str = "best", **own: Any) -> TrainedRun:
    """Load the state that validated best, or the latest one.

    Parameters
    ----------
    folder : of the run
    checkpoint : "best" or "latest"
    own : `tasks`, `model` and `loss` again, where the run was handed objects; adapting needs no tasks

    Raises
    ------
    DataError
        When the folder is not a run, or holds no checkpoint yet.
    """
    config, description, scaling = folder.read_config()
    config = with_own(config, **own)
    rates = read_json(folder.rates)
    learner = build_learner(
        config, description, float(rates["alpha_chosen"]), float(rates["meta_lr"])
    )
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        state = checkpoints.restore(initial_state(learner, jax.random.key(config.seed)))
    finally:
        checkpoints.close()
    validated = bool(jnp.isfinite(state.best.score))
    chosen = state.best if checkpoint == "best" and validated else state
    return TrainedRun(
        config=config,
        description=description,
        learner=learner,
        params=chosen.meta.params,
        alpha=learner.rate.alpha(chosen.meta, chosen.rate_state),
        iteration=int(chosen.iteration),
        scaling=Scaling.from_record(scaling) if scaling else None,
    )


def evaluate_run(
    run: TrainedRun,
    *,
    num_tasks: int = 600,
    steps: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    alpha: float | None = None,
    seed: int | None = None,
    transductive: bool = True,
    halvings: int = HALVINGS,
) -> tuple[Evaluation, dict[str, Any]]:
    """Evaluate on held-out tasks; also the example arrays for the report.

    `shots`, `queries`, `alpha` and `steps` are those of training by default; `seed` draws other tasks of the
    same held-out split; `halvings` : see `evaluate`.
    """
    changes = {
        name: value for name, value in (("shots", shots), ("queries", queries)) if value is not None
    }
    family = load_tasks(dataclasses.replace(run.config, **changes)).splits.test
    keys = split_keys(run.config.seed if seed is None else seed)
    rate = run.alpha if alpha is None else jnp.asarray(alpha)
    evaluation = evaluate(
        run.learner,
        run.params,
        rate,
        family,
        keys["test"],
        num_tasks=num_tasks,
        steps=steps,
        transductive=transductive,
        halvings=halvings,
    )
    examples = example_tasks(run.learner, run.params, rate, family, keys["examples"], halvings)
    return evaluation, examples


def adapt_and_predict(
    run: TrainedRun,
    support_x: np.ndarray,
    support_y: np.ndarray,
    query_x: np.ndarray,
    *,
    steps: int | None = None,
    alpha: float | None = None,
    transductive: bool = False,
    halvings: int = HALVINGS,
) -> TaskPredictions:
    """Adapt to one new task and predict, in the units of the data.

    Compiled once for each number of support and query examples.

    Parameters
    ----------
    support_x, support_y : labelled examples of the new task, as `datasets.load_rows` reads them
    query_x : examples to predict
    steps, alpha : those of training by default
    transductive : let batch normalisation see the whole query; off by default here, so that a prediction
        does not depend on what else is asked
    halvings : how often the rates of an inner step are halved at most where it would raise the support loss, see
        `adapt.adapt_halving`; 0 takes plain gradient steps

    Raises
    ------
    InputError
        For a class that the model does not know, and where the support loss is not finite before adaptation or
        anything is not after it.
    """
    steps = run.learner.adapter.steps if steps is None else steps
    check_count("--steps", steps, minimum=0)
    check_count("--halvings", halvings, minimum=0)
    is_classification = run.description["kind"] == "classification"
    if is_classification:
        check_classes(support_y, run.description["output_size"])
    episode = new_episode(run.scaling, support_x, support_y, query_x)
    rate = run.alpha if alpha is None else jnp.asarray(alpha)
    options = (steps, transductive, halvings)
    answer = jax.device_get(run.answer(run.params, rate, episode, *options))
    if not answer.finite:
        usual = float(mean_rate(rates_of(run.learner, run.params, rate)))
        raise InputError(
            f"adapting at alpha = {usual:.3g} left the finite numbers: check the support set for huge values, or "
            f"lower --alpha"
        )
    fate = {"halvings": int(answer.halvings), "unadapted": bool(answer.unadapted)}
    if is_classification:
        labels = (answer.after.argmax(axis=-1), answer.before.argmax(axis=-1))
        return TaskPredictions(*labels, np.asarray(jax.nn.softmax(answer.after)), **fate)
    turn_back = run.scaling.predictions if run.scaling else lambda values: values
    return TaskPredictions(turn_back(answer.after), turn_back(answer.before), None, **fate)
