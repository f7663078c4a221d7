"""Tasks, models and losses of the user's own: objects in Python, references where only text can be said."""

import dataclasses
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

from metastep._errors import InputError
from metastep._types import Batch, Episode
from metastep.models import Model, OutputLoss
from metastep.tasks import AbstractTaskFamily, TaskSplits
from metastep.train.config import TaskConfig
from metastep.train.references import HANDED_OVER, load_reference, telling

_SIZES = ("ways", "shots", "queries", "curvature")
_OWN = ("tasks", "model", "loss")
Config = TypeVar("Config", bound=TaskConfig)


def own_tasks(config: TaskConfig) -> TaskSplits:
    """The families that `config.tasks` is or names, with the sizes that were asked for.

    Raises
    ------
    InputError
        For what is no family, sizes that a family does not have, and episodes that are not as it says.
    """
    found = _object("tasks", config.tasks)
    if not isinstance(found, AbstractTaskFamily | TaskSplits) and callable(found):
        with telling(f"{_name(found)}()"):
            found = found()
    if isinstance(found, AbstractTaskFamily):
        found = TaskSplits.same(found, type(found).__name__)
    if not isinstance(found, TaskSplits):
        raise InputError(
            f"the tasks {in_words(config.tasks)} are of type {type(found).__name__}; hand over an "
            f"AbstractTaskFamily, TaskSplits, or a class or function that gives one without arguments"
        )
    train, validation, test = (
        _sized(part, config) for part in (found.train, found.validation, found.test)
    )
    _check_episode(train)
    return TaskSplits(train, validation, test, found.name)


def sizes_of(family: AbstractTaskFamily) -> dict[str, int]:
    """Shots and queries of an episode, and whatever other sizes the family has by name."""
    episode = _episode(family)
    counted = {"shots": len(episode.support.x), "queries": len(episode.query.x), "curvature": 0}
    named = {name: getattr(family, name, None) for name in _SIZES}
    return counted | {name: size for name, size in named.items() if isinstance(size, int)}


def _episode(family: AbstractTaskFamily) -> Any:
    """The shapes of an episode."""
    name = f"{type(family).__name__}.sample"
    with telling(name):
        episode = jax.eval_shape(lambda: family.sample(jax.random.key(0)))
    if not isinstance(episode, Episode):
        raise InputError(f"{name} gives {type(episode).__name__}; it must give an Episode")
    return episode


def _sized(family: AbstractTaskFamily, config: TaskConfig) -> AbstractTaskFamily:
    asked = {name: getattr(config, name) for name in _SIZES if getattr(config, name)}
    has = sizes_of(family) if asked else {}
    changes = {name: size for name, size in asked.items() if size != has.get(name)}
    fields = [field.name for field in dataclasses.fields(family) if field.init]
    for name, size in changes.items():
        if name not in fields:
            raise InputError(
                f"--{name} {size}: the tasks {type(family).__name__} have no field {name!r}; give them one, or leave "
                f"--{name} out"
            )
    return dataclasses.replace(family, **changes)


def _check_episode(family: AbstractTaskFamily) -> None:
    """Raise unless an episode has the shapes and kinds that its family says."""
    episode = _episode(family)
    _check_batch(family, "support", episode.support)
    _check_batch(family, "query", episode.query)


def _check_batch(family: AbstractTaskFamily, part: str, batch: Batch) -> None:
    text = f"{type(family).__name__}.sample: the {part} set"
    examples, *shape = batch.x.shape
    if tuple(shape) != tuple(family.input_shape):
        raise InputError(
            f"{text} has examples of shape {tuple(shape)}, but input_shape is {tuple(family.input_shape)}; make them "
            f"agree"
        )
    if batch.y.shape[:1] != (examples,):
        raise InputError(
            f"{text} has {examples} inputs and targets of shape {batch.y.shape}; give each its target"
        )
    is_label = batch.y.ndim == 1 and jnp.issubdtype(batch.y.dtype, jnp.integer)
    if family.kind == "classification" and not is_label:
        raise InputError(
            f"{text} has targets of shape {batch.y.shape} and type {batch.y.dtype}; classification needs one whole "
            f"number for each example, from 0 to output_size - 1"
        )


def own_model(choice: Any, input_shape: tuple[int, ...], output_size: int) -> Model:
    """The model that an option is or names: a `Model`, or a function of (input_shape, output_size) that gives one.

    Raises
    ------
    InputError
        For what is no model, or one with parameters that cannot be trained, or that does not take the examples.
    """
    found = _object("model", choice)
    if not isinstance(found, Model) and callable(found):
        with telling(f"{_name(found)}({input_shape}, {output_size})"):
            found = found(input_shape, output_size)
    if not isinstance(found, Model):
        raise InputError(
            f"the model {in_words(choice)} is of type {type(found).__name__}; hand over a Model, or a function of "
            f"(input_shape, output_size) that gives one"
        )
    _check_model(found, input_shape, output_size)
    return found


def _check_model(model: Model, input_shape: tuple[int, ...], output_size: int) -> None:
    with telling(f"init of the model {model.name}"):
        params = jax.eval_shape(model.init, jax.random.key(0))
    leaves = jax.tree.leaves(params)
    if not leaves or not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        kinds = ", ".join(sorted({str(leaf.dtype) for leaf in leaves})) or "none"
        raise InputError(
            f"the model {model.name} has parameters of type {kinds}; all must be floating-point arrays, and what is "
            f"not trained belongs into apply"
        )
    x = jax.ShapeDtypeStruct((2, *input_shape), jnp.result_type(float))
    with telling(f"apply of the model {model.name} on examples of shape {input_shape}"):
        outputs: Any = jax.eval_shape(model.apply, params, x)
    if getattr(outputs, "shape", None) != (2, output_size):
        raise InputError(
            f"the model {model.name} makes outputs of shape {getattr(outputs, 'shape', outputs)} of 2 examples; the "
            f"tasks need {(2, output_size)}: (examples, output_size)"
        )


def own_loss(choice: Any) -> OutputLoss | None:
    """The loss that an option is or names, (outputs, targets) -> mean over examples; None for "auto"."""
    if choice == "auto":
        return None
    found = _object("loss", choice)
    if not callable(found):
        raise InputError(
            f"the loss {in_words(choice)} is of type {type(found).__name__}; hand over a function of (outputs, "
            f"targets) that gives the mean over examples"
        )
    return cast(OutputLoss, found)


def _object(option: str, choice: Any) -> Any:
    if not isinstance(choice, str):
        return choice
    if choice.endswith(HANDED_OVER):
        raise InputError(
            f"{option}: the run knows {choice} only by its name; hand it over again, {option}=..., or train with "
            f"FILE.py:NAME, which can be found again"
        )
    return load_reference(choice)


def in_words(choice: Any) -> str:
    """What records and messages call an option."""
    if isinstance(choice, str):
        return choice
    return f"{_name(choice)}{HANDED_OVER}"


def _name(found: Any) -> str:
    if isinstance(found, Model | TaskSplits):
        return found.name
    found = getattr(found, "func", found)  # of a partial one
    return getattr(found, "__name__", type(found).__name__)


def plain_options(config: TaskConfig) -> dict[str, Any]:
    """The options as text and numbers; objects are only named, and `with_own` puts them back."""
    options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return options | {name: in_words(options[name]) for name in _OWN if name in options}


def with_own(config: Config, *, tasks: Any = None, model: Any = None, loss: Any = None) -> Config:
    """A recorded configuration with the tasks, the model and the loss that it could only name.

    Raises
    ------
    InputError
        When something is handed over that the run did not have.
    """
    own = {"tasks": tasks, "model": model, "loss": loss}
    given = {name: value for name, value in own.items() if value is not None}
    for name, value in given.items():
        if getattr(config, name) != in_words(value):
            raise InputError(
                f"{name}: the run was trained with {getattr(config, name)}, not with {in_words(value)}; hand over "
                f"the same, or leave it out where the run can find it by name"
            )
    return dataclasses.replace(config, **given)
