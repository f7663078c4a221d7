"""A trained run, loaded again: to be evaluated, and to adapt to new tasks."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from metastep._errors import InputError, check_count
from metastep._records import read_json
from metastep._types import Batch, Episode, Params, Rate
from metastep.tasks.core import as_default_float
from metastep.train.build import build_learner
from metastep.train.checkpoint import Checkpoints
from metastep.train.config import TrainConfig
from metastep.train.evaluate import Evaluation, evaluate, predict
from metastep.train.examples import example_tasks
from metastep.train.folder import RunFolder
from metastep.train.learner import Learner
from metastep.train.own import with_own
from metastep.train.problem import as_float, load_tasks, split_keys
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
) -> tuple[Evaluation, dict[str, Any]]:
    """Evaluate on held-out tasks; also the example arrays for the report.

    `shots`, `queries`, `alpha` and `steps` are those of training by default; `seed` draws other tasks of the
    same held-out split.
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
    )
    return evaluation, example_tasks(run.learner, run.params, rate, family, keys["examples"])


def adapt_and_predict(
    run: TrainedRun,
    support_x: np.ndarray,
    support_y: np.ndarray,
    query_x: np.ndarray,
    *,
    steps: int | None = None,
    alpha: float | None = None,
    transductive: bool = False,
) -> dict[str, np.ndarray]:
    """Adapt to one new task and predict, in the units of the data.

    Parameters
    ----------
    support_x, support_y : labelled examples of the new task, as `datasets.load_rows` reads them
    query_x : examples to predict
    steps, alpha : those of training by default
    transductive : let batch normalisation see the whole query; off by default here, so that a prediction
        does not depend on what else is asked

    Returns
    -------
    predictions, and predictions_before adaptation; for classification also probabilities.
    """
    steps = run.learner.adapter.steps if steps is None else steps
    check_count("--steps", steps, minimum=0)
    prepare = run.scaling.inputs if run.scaling else as_float
    targets = run.scaling.targets(support_y) if run.scaling else support_y
    classes = run.description["output_size"]
    is_classification = run.description["kind"] == "classification"
    if is_classification and int(targets.max(initial=0)) >= classes:
        raise InputError(
            f"the support set has a class {int(targets.max())}, but the model tells {classes} classes apart "
            f"(0 to {classes - 1})"
        )
    episode = Episode(
        Batch(as_default_float(prepare(support_x)), as_default_float(targets)),
        Batch(as_default_float(prepare(query_x)), jnp.zeros(len(query_x))),
    )
    adapter = dataclasses.replace(run.learner.adapter, steps=steps)
    gradient = jax.value_and_grad(run.learner.objective.on(episode.support))
    rate = run.alpha if alpha is None else jnp.asarray(alpha)
    adapted, _ = adapter(gradient, run.params, rate)
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(adapted)):
        raise InputError(
            f"adapting at alpha = {float(jnp.mean(jnp.asarray(rate))):.3g} left the finite numbers: check the "
            f"support set for huge values, or lower --alpha"
        )
    outputs = {
        name: np.asarray(predict(run.learner, params, episode, transductive=transductive))
        for name, params in (("predictions", adapted), ("predictions_before", run.params))
    }
    if is_classification:
        probabilities = np.asarray(jax.nn.softmax(outputs["predictions"]))
        labels = {name: values.argmax(axis=-1) for name, values in outputs.items()}
        return labels | {"probabilities": probabilities}
    turn_back = run.scaling.predictions if run.scaling else lambda values: values
    return {name: turn_back(values) for name, values in outputs.items()}
