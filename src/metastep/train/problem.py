"""From options to task families and a model: the one place where names are turned into objects."""

import dataclasses
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from metastep import datasets
from metastep._errors import DataError, InputError
from metastep._kept import kept_jit
from metastep._trees import as_array
from metastep._types import Params
from metastep.adapt import GradientAdapter
from metastep.metagrad import AbstractMetaGradient, Exact, algorithm
from metastep.models import Model, Objective, conv4, linear, mlp, relu, with_curved_relu
from metastep.tasks import (
    AbstractTaskFamily,
    FewShot,
    MixedLinear,
    Quadratic,
    Sinusoid,
    TableTasks,
    TaskSplits,
)
from metastep.train.config import (
    ProblemConfig,
    TaskConfig,
    TrainConfig,
    default_steps,
    fill_defaults,
    has_curved_relu,
)
from metastep.train.learner import first_parameters
from metastep.train.own import (
    in_words,
    own_loss,
    own_model,
    own_tasks,
    plain_options,
    sizes_of,
)
from metastep.train.references import is_own
from metastep.train.scaling import Scaling
from metastep.train.units import in_units, outstanding_units

SYNTHETIC = ("linear", "quadratic", "sinusoid")
Config = TypeVar("Config", bound=ProblemConfig)

# Bernacchia's settings, as Zou et al. (2022) repeat them in H.3 and H.5.
_LINEAR_DIM, _LINEAR_SPREAD, _LINEAR_NOISE = 30, 0.2, 0.2


@dataclasses.dataclass(frozen=True)
class TaskSet:
    """Task families and what there is to know of them.

    Attributes
    ----------
    splits : families to train on, to validate on and to be judged by
    description : for `config.json`, `data info` and reports
    scaling : how table columns were standardised; None where they were not
    """

    splits: TaskSplits
    description: dict[str, Any]
    scaling: Scaling | None = None


def load_tasks(config: TaskConfig) -> TaskSet:
    """Build the families that `config.tasks` names.

    Raises
    ------
    DataError
        When files are missing, damaged or too small for the ways, shots and queries.
    """
    choice = config.tasks
    if not isinstance(choice, str) or is_own(choice):
        return _task_set(own_tasks(config), config, raw=True)
    if choice in SYNTHETIC:
        family = _synthetic(config)
        return _task_set(TaskSplits.same(family, choice), config)
    if choice == "omniglot":
        root = datasets.data_root(config.data)
        data = datasets.load_omniglot(root, config.split, config.image_size or 28)
        return _image_tasks(data, config, "omniglot", rotations=True)
    data = load_files(config)
    name = Path(choice).name
    if isinstance(data, datasets.TaskTable):
        return _table_tasks(data, config, name)
    if isinstance(data, datasets.ImageClasses):
        turns = 4 if config.rotations else 1
        least = math.ceil((config.ways or 5) / turns)
        data = datasets.split_classes(data, config.seed, minimum=least)
    return _image_tasks(data, config, name, rotations=False)


def load_files(config: TaskConfig):
    """Whatever lies at the path `config.tasks`."""
    path = Path(in_words(config.tasks))
    if not path.exists():
        known = ", ".join((*SYNTHETIC, "omniglot"))
        raise DataError(
            f"{path} is neither a known name ({known}) nor an existing path, nor FILE.py:NAME of tasks of your own"
        )
    suffix = path.suffix.lower()
    if path.is_dir() or suffix == ".zip":
        return datasets.load_class_folders(path, config.image_size)
    if suffix in datasets.TABLE_SUFFIXES:
        return datasets.load_table(
            path,
            config.task_column,
            config.target_columns or None,
            config.feature_columns or None,
            config.kind,
        )
    return datasets.load_path(path, config.kind)


def _synthetic(config: TaskConfig) -> AbstractTaskFamily:
    sizes: Any = {
        "shots": config.shots or 10,
        "queries": config.queries or config.shots or 10,
        "curvature": config.curvature,
    }
    if config.tasks == "sinusoid":
        return Sinusoid(**sizes)
    if config.tasks == "quadratic":
        return Quadratic(**sizes)
    return MixedLinear(
        centre=jnp.zeros(_LINEAR_DIM),
        spread=jnp.asarray(_LINEAR_SPREAD),
        noise=jnp.asarray(_LINEAR_NOISE),
        **sizes,
    )


def _image_tasks(
    data: datasets.ImageSplits, config: TaskConfig, name: str, *, rotations: bool
) -> TaskSet:
    turned = rotations if config.rotations is None else config.rotations

    def family(part: datasets.ImageClasses) -> FewShot:
        return FewShot(
            part.images,
            part.counts,
            ways=config.ways or 5,
            shots=config.shots or 1,
            queries=config.queries or config.shots or 1,
            curvature=config.curvature,
            rotations=turned,
            names=part.names,
        )

    parts = (data.train, data.validation, data.test)
    splits = TaskSplits(family(data.train), family(data.validation), family(data.test), name)
    classes = {
        part: len(images.names)
        for part, images in zip(("train", "validation", "test"), parts, strict=True)
    }
    return _task_set(splits, config, classes=classes, rotations=turned)


def _check_targets_differ(table: datasets.TaskTable, name: str) -> None:
    """Raise where there is nothing to learn."""
    if (table.y == table.y[:1]).all():
        value = table.labels[0] if table.labels else ", ".join(f"{v:g}" for v in table.y[0])
        raise DataError(
            f"{name}: the target {', '.join(map(repr, table.y_names))} is {value} in all {len(table.y)} rows, so "
            "there is nothing to learn; check which column is the target"
        )


def _table_tasks(table: datasets.TaskTable, config: TaskConfig, name: str) -> TaskSet:
    _check_targets_differ(table, name)
    split = datasets.split_tasks(table, config.seed)
    scaling = Scaling.of(split.train) if config.standardise else None

    def family(part: datasets.TaskTable) -> TableTasks:
        scaled = part if scaling is None else scaling.apply(part)
        return TableTasks(
            scaled.x,
            scaled.y,
            scaled.counts,
            kind=scaled.kind,
            output_size=scaled.num_outputs,
            shots=config.shots or 10,
            queries=config.queries or config.shots or 10,
            curvature=config.curvature,
            names=scaled.names,
        )

    parts = (split.train, split.validation, split.test)
    splits = TaskSplits(family(split.train), family(split.validation), family(split.test), name)
    facts = {
        "num_tasks": {
            part: data.num_tasks
            for part, data in zip(("train", "validation", "test"), parts, strict=True)
        },
        "test_tasks": list(split.test.names[:50]),
        "x_names": list(table.x_names),
        "y_names": list(table.y_names),
        "left_out": list(table.left_out),
        "labels": list(table.labels),
        "task_column": config.task_column or "task",
    }
    return _task_set(splits, config, scaling=scaling, raw=scaling is None, **facts)


def _task_set(
    splits: TaskSplits,
    config: TaskConfig,
    scaling: Scaling | None = None,
    raw: bool = False,
    **facts: Any,
) -> TaskSet:
    """With a description; `raw` data may come in any units."""
    family = splits.train
    units = outstanding_units(family, split_keys(config.seed)["rates"]) if raw else {}
    description = {
        "name": splits.name,
        "tasks": in_words(config.tasks),
        "kind": family.kind,
        "input_shape": list(family.input_shape),
        "output_size": family.output_size,
        "images": isinstance(family, FewShot),
        "table": isinstance(family, TableTasks),
        **sizes_of(family),
        **({"units": units} if units else {}),
        **facts,
    }
    return TaskSet(splits, description, scaling)


def model_choice(config: ProblemConfig, description: dict[str, Any]) -> Any:
    """The model's name: the user's choice, else the one that suits the tasks. Or the user's own, as it was given."""
    if config.model != "auto":
        return config.model
    if description["tasks"] == "linear":
        return "linear"
    return "conv4" if len(description["input_shape"]) == 3 else "mlp"


def filled(config: TrainConfig, description: dict[str, Any]) -> TrainConfig:
    """The options with every default that depends on the tasks in its place; see `fill_defaults`."""
    return fill_defaults(config, description, model_choice(config, description))


def build_model(config: ProblemConfig, description: dict[str, Any]) -> Model:
    """The model that the options, the shape of the tasks and their units ask for."""
    model = _build_model(config, description)
    return in_units(config, description["units"], model) if "units" in description else model


def _build_model(config: ProblemConfig, description: dict[str, Any]) -> Model:
    input_shape: Sequence[int] = tuple(description["input_shape"])
    output_size = description["output_size"]
    name, is_curved = model_choice(config, description), has_curved_relu(config, description)
    if is_own(name):
        model = own_model(name, input_shape, output_size)
        # In four blocks of convolutions and batch norm the meta-gradients of both hardly differ: by 2 %.
        return _curved(model) if is_curved and len(input_shape) < 3 else model
    if name == "linear":
        return _linear(input_shape, output_size, bias=description["tasks"] != "linear")
    if name == "mlp":
        activation = relu if is_curved else jax.nn.relu
        return _mlp(input_shape, output_size, tuple(config.hidden), activation)
    if len(input_shape) != 3:
        raise InputError(
            f"--model conv4 needs images, but an example of {description['name']} has shape "
            f"{tuple(input_shape)}; use --model mlp"
        )
    return _conv4(input_shape, output_size, config.filters, config.pooling)


# Models are pure functions: built again for the same sizes, they are the same, and so are programs made of them.
_linear, _mlp, _conv4, _curved = (
    lru_cache(maxsize=8)(build) for build in (linear, mlp, conv4, with_curved_relu)
)


def build_inner_loop(
    config: ProblemConfig, model: Model, description: dict[str, Any]
) -> tuple[Objective, GradientAdapter]:
    """The objective and the adapter of the chosen algorithm."""
    chosen, steps = algorithm(config.algorithm), default_steps(config, description)
    parts = {"features": model.features, "head": model.head} if chosen.head_only else {}
    objective = Objective.of(model.apply, description["kind"], own_loss(config.loss), **parts)
    return objective, chosen.adapter(model, steps)


def build_meta_gradient(config: ProblemConfig) -> AbstractMetaGradient:
    """The meta-gradient of the chosen algorithm, with the chosen derivative where it has one."""
    rule = algorithm(config.algorithm).meta_gradient()
    if not isinstance(rule, Exact) or config.derivative == "auto":
        return rule
    return Exact(config.derivative)


def fingerprint(config: ProblemConfig, task_set: TaskSet) -> str:
    """What two processes must have in common to train together: options, and the examples bit by bit."""
    options = {k: v for k, v in plain_options(config).items() if k not in ("data", "tasks")}
    digest = zlib.crc32(repr((sorted(options.items()), task_set.description)).encode())
    for leaf in jax.tree.leaves(task_set.splits):
        digest = zlib.crc32(np.asarray(leaf).tobytes(), digest)
    return f"{digest:08x}"


def split_keys(seed: int) -> dict[str, jax.Array]:
    """One independent key for each use of randomness, named once."""
    return _kept_split(as_array(np.asarray(seed, np.int64)))  # as `jax.random.key` reads a number


def _split(seed: Int[Array, ""]) -> dict[str, jax.Array]:
    names = ("parameters", "rates", "training", "validation", "test", "examples")
    return dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))


_kept_split = kept_jit(_split)  # op by op, each would be compiled


def starting_parameters(model: Model, seed: int) -> Params:
    """The parameters that a run of that seed starts from."""
    return first_parameters(model, split_keys(seed)["parameters"])


def as_float(x: np.ndarray) -> np.ndarray:
    """Image bytes as floats in 0..1, as `FewShot` hands them on; other arrays as they are."""
    return x.astype(np.float32) / 255 if x.dtype == np.uint8 else x
