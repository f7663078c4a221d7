"""What a run can be told. One field is one command-line option; None and "auto" are filled in for the tasks."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from metastep._errors import InputError, check_choice, check_count, check_positive
from metastep._types import Kind
from metastep.metagrad import ALGORITHMS, DERIVATIVES
from metastep.models import Model, OutputLoss
from metastep.rates import OPTIMIZERS, RATES, SCHEDULES
from metastep.tasks import AbstractTaskFamily, TaskSplits
from metastep.train.references import is_own
from metastep.train.sizes import parse_bytes

AlgorithmName = Literal["maml", "fomaml", "hfmaml", "anil", "reptile", "erm"]
MODELS = ("linear", "mlp", "conv4")
_MOST_CURVED_STEPS = 5
OwnTasks = AbstractTaskFamily | TaskSplits
OptimizerName = Literal[
    "auto",
    "relative-adam",
    "normalised-adam",
    "adam",
    "adamw",
    "hypergradient",
    "momentum",
    "rmsprop",
    "sgd",
]
RateName = Literal[
    "auto",
    "shared-meta-sgd",
    "rising-meta-sgd",
    "meta-sgd",
    "per-layer",
    "learned",
    "fixed",
    "label-free",
    "label-free-max",
    "label-aware",
    "edge",
]
DerivativeName = Literal["auto", "plain", "checkpointed", "forward"]
ScheduleName = Literal["auto", "until-flat", "wsd", "linear", "cosine", "constant"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Where tasks come from and what one of them looks like."""

    tasks: str | OwnTasks | Callable[[], OwnTasks]
    """sinusoid, quadratic, linear, omniglot; a path: a folder or zip of class folders of images, an .npz (arrays
    x, y, task), a .csv, .tsv or .parquet table with a task column; or your own: FILE.py:NAME, in Python the
    object."""
    data: Path | None = None
    """Data root, which holds omniglot/. Default: METASTEP_DATA, else the user cache directory."""
    ways: int | None = None
    """Classes of a few-shot task. Default: 5."""
    shots: int | None = None
    """Support examples: of each class, or rows of a table. Default: 1 of each class, else 10."""
    queries: int | None = None
    """Query examples: of each class, or rows of a table. Default: as many as shots."""
    curvature: int = 0
    """Examples of a separate sample for the inner Hessian (D_h of Fallah et al.); 0 reuses the support set."""
    rotations: bool | None = None
    """Turn images by 90, 180 and 270 degrees for more classes. Default: for Omniglot."""
    split: Literal["vinyals", "official"] = "vinyals"
    """Omniglot's classes: the 1028/172/423 lists most papers use, or background/evaluation as published."""
    image_size: int | None = None
    """Height and width in pixels. Default: 28 for Omniglot, else the files' own, at most 84."""
    task_column: str | None = None
    """Table column that names the task of a row. Default: task."""
    target_columns: tuple[str, ...] = ()
    """Table columns to predict. Default: y, target or label."""
    feature_columns: tuple[str, ...] = ()
    """Table columns to learn from. Default: all other columns of numbers."""
    kind: Literal["regression", "classification"] | None = None
    """What a table or .npz asks for. Default: seen from y."""
    standardise: bool = True
    """Give the columns of a table mean 0 and variance 1; predictions are turned back into their units.
    With tasks of your own that are far from that, a model of metastep's does so by itself."""
    seed: int = 0
    """Fixes tasks, splits, initial parameters: everything."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemConfig(TaskConfig):
    """Tasks, and the model and algorithm that meet them."""

    algorithm: AlgorithmName = "maml"
    """maml, fomaml (first-order), hfmaml (Hessian-free), anil (head only), reptile, erm (no inner loop)."""
    steps: int | None = None
    """Inner gradient steps. Default: 5 for tables, else 1."""
    model: str | Model | Callable[[tuple[int, ...], int], Model] = "auto"
    """linear, mlp, conv4, or your own: FILE.py:NAME of a Model or of a function (input_shape, output_size) -> Model,
    in Python the object itself. Default: linear for linear tasks, conv4 for images, else mlp."""
    loss: str | OutputLoss = "auto"
    """Your own: FILE.py:NAME of a function (outputs, targets) -> mean over examples, convex in the outputs; in Python
    the function itself. Default: squared error, or cross-entropy for classes."""
    hidden: tuple[int, ...] = (40, 40)
    """Widths of the hidden layers of mlp."""
    curved_relu: bool | None = None
    """Give ReLU, in mlp and in models of your own, the second derivative that its kink has in the mean over tasks
    (metastep.models.relu); outputs and slopes stay the same, and so do models of images. Off: 0, as JAX has it.
    Default: up to 5 inner steps, as more multiply its noise."""
    filters: int = 64
    """Channels of conv4."""
    pooling: Literal["stride", "max"] = "stride"
    """How conv4 halves the image: strided convolutions, or max-pooling."""
    tasks_at_once: int | None = None
    """Tasks computed side by side, on each device; must divide --tasks-per-step. Default: all; on CPU 1 for
    conv4, and at most 25 for dense models, fewer if they are wide, where a divisor allows it."""
    derivative: DerivativeName = "auto"
    """How maml and anil differentiate an inner gradient; the result is the same. plain keeps all that an inner step
    computes; checkpointed computes it again when needed; forward keeps even less. auto: plain, or what
    --memory-limit asks for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(ProblemConfig):
    """All options of a training run."""

    preset: Literal["omniglot-5w1s", "omniglot-20w1s", "omniglot-20w1s-anil"] | None = None
    """The settings of a published experiment; options given beside it win."""
    alpha: float | Literal["auto"] = "auto"
    """Adaptation (inner) rate for a mean loss. auto: estimated before training from tasks and model."""
    rehearse: bool = True
    """Where alpha is auto and the run has at least 2,000 meta-steps: try the measured alpha, and rates three times
    larger or smaller while they do clearly better, in at most four short trainings of a hundredth of the run each
    (at most 200 meta-steps)."""
    rate: RateName = "auto"
    """What becomes of alpha in training. Learned with the initialisation: shared-meta-sgd (a shared one times a
    factor of each parameter), rising-meta-sgd (the same, but the shared one does not fall below its start), meta-sgd
    (one for each parameter), per-layer, learned (a single one). Followed by measurement: label-free, label-free-max,
    label-aware, edge. Or fixed. auto: where --alpha is auto, rising-meta-sgd for class labels and shared-meta-sgd for
    real targets and fomaml; fixed where it is given, and for reptile."""
    meta_lr: float | Literal["auto"] = "auto"
    """Meta (outer) rate at its peak. auto: a default argued for in the report."""
    schedule: ScheduleName = "auto"
    """Course of the meta rate: wsd (warmup-stable-decay: up over 5 % of the run, down to 0 over its last 20 %),
    until-flat (the same, but down from where the training loss stops falling, if that is earlier), linear or cosine
    (up likewise, then down to the end), constant. auto: constant where --meta-lr is given, else until-flat for
    relative-adam and linear for other optimisers."""
    clip_tasks: float | Literal["auto", "off"] = "auto"
    """How much one task may weigh: its meta-gradient is cut to so many times the usual length (a running median over
    tasks), times the fourth root of the number of the meta-step; and up to a tenth of the tasks of a meta-step that
    blow up are left out of it. off: neither. auto: 3 for relative-adam, off for other optimisers."""
    back_offs: int = 10
    """How often a run that leaves the finite numbers goes back to its last good state and on with half the rate
    that is to blame. 0 stops at once with the diagnosis."""
    track_edge: bool = False
    """Measure the largest stable meta rate at each validation (Lanczos on the meta-Hessian, some dozen meta-steps'
    time). Always on for sgd and momentum with --meta-lr auto, whose meta rate is held to a share of it."""
    iterations: int | None = None
    """Meta-steps (outer). Default: 10000; 2000 for images."""
    tasks_per_step: int | None = None
    """Tasks of a meta-step. Default: 25; for images 32 up to 5 ways, 16 beyond."""
    optimizer: OptimizerName = "auto"
    """Outer optimiser. auto: relative-adam (steps as a share of the size of each array) where --meta-lr is auto, adam
    where it is given."""
    eval_every: int | None = None
    """Meta-steps between validations. Default: a twentieth of the run."""
    eval_tasks: int = 100
    """Tasks of a validation."""
    log_every: int | None = None
    """Meta-steps averaged into one row of metrics. Default: a 200th of the run."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints, which are also written at the end and on Ctrl-C."""
    memory_limit: str | None = None
    """Memory of each device that training may take, such as 2GB. Ways to compute the same meta-step are compiled,
    the fastest first, until one fits; the report says which."""
    tensorboard: bool = False
    """Also log to RUN/tensorboard (needs the extra: pip install metastep[tensorboard])."""


PRESETS: dict[str, dict[str, Any]] = {
    # Finn et al. (2017), appendix A.1. Their 0.4 (5-way) and 0.1 (20-way) multiply a cross-entropy summed over
    # the examples of the support set's ways; for a mean loss that is 5 x 0.4 and 20 x 0.1.
    "omniglot-5w1s": {
        "ways": 5, "shots": 1, "queries": 1, "steps": 1, "alpha": 2.0, "meta_lr": 1e-3,
        "tasks_per_step": 32, "iterations": 60_000, "tasks": "omniglot",
    },
    "omniglot-20w1s": {
        "ways": 20, "shots": 1, "queries": 1, "steps": 5, "alpha": 2.0, "meta_lr": 1e-3,
        "tasks_per_step": 16, "iterations": 60_000, "tasks": "omniglot",
    },
    # Raghu et al. (2020) keep those settings and adapt the head alone.
    "omniglot-20w1s-anil": {
        "algorithm": "anil", "ways": 20, "shots": 1, "queries": 1, "steps": 5, "alpha": 2.0,
        "meta_lr": 1e-3, "tasks_per_step": 16, "iterations": 60_000, "tasks": "omniglot",
    },
}  # fmt: skip


def with_preset(config: TrainConfig) -> TrainConfig:
    """Fill the options that were left at their defaults from the chosen preset."""
    if config.preset is None:
        return config
    check_choice("preset", config.preset, PRESETS)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    chosen = {
        name: value
        for name, value in PRESETS[config.preset].items()
        if getattr(config, name) in (defaults[name], "")
    }
    return dataclasses.replace(config, **chosen)


def check_config(config: ProblemConfig) -> None:
    """Raise an `InputError` that names the first option that cannot be used."""
    check_choice("--algorithm", config.algorithm, ALGORITHMS)
    _check_own("model", config.model, ("auto", *MODELS))
    _check_own("loss", config.loss, ("auto",))
    for name in ("ways", "shots", "queries", "image_size", "tasks_at_once"):
        if getattr(config, name) is not None:
            check_count(f"--{name.replace('_', '-')}", getattr(config, name))
    for name in ("seed", "curvature"):
        check_count(f"--{name}", getattr(config, name), minimum=0)
    if config.steps is not None:
        check_count("--steps", config.steps)
    _check_derivative(config)
    if isinstance(config, TrainConfig):
        _check_training(config)


def _check_own(option: str, choice: Any, names: tuple[str, ...]) -> None:
    if not is_own(choice) and choice not in names:
        raise InputError(
            f"--{option} is {choice!r}; choose one of: {', '.join(names)}; or FILE.py:NAME for your own"
        )


def _check_derivative(config: ProblemConfig) -> None:
    check_choice("--derivative", config.derivative, ("auto", *DERIVATIVES))
    if config.derivative not in ("auto", "plain") and config.algorithm not in ("maml", "anil"):
        raise InputError(
            f"--derivative {config.derivative} is for maml and anil; {config.algorithm} does not differentiate an "
            f"inner gradient, so leave it out"
        )


def _check_training(config: TrainConfig) -> None:
    check_choice("--optimizer", config.optimizer, ("auto", *OPTIMIZERS))
    check_choice("--rate", config.rate, ("auto", *RATES))
    check_choice("--schedule", config.schedule, ("auto", *SCHEDULES))
    check_count("--back-offs", config.back_offs, minimum=0)
    if config.track_edge and config.algorithm == "reptile":
        raise InputError(
            "--track-edge measures the curvature of a meta-objective, and reptile has none; leave it out"
        )
    for name, words in (("alpha", "auto"), ("meta_lr", "auto"), ("clip_tasks", "auto off")):
        if getattr(config, name) not in words.split():
            check_positive(f"--{name.replace('_', '-')}", getattr(config, name))
    for name in ("iterations", "tasks_per_step", "eval_every", "log_every"):
        if getattr(config, name) is not None:
            check_count(f"--{name.replace('_', '-')}", getattr(config, name))
    check_count("--eval-tasks", config.eval_tasks, minimum=2)
    check_positive("--checkpoint-seconds", config.checkpoint_seconds)
    if config.memory_limit is not None:
        parse_bytes(config.memory_limit)
    width = config.tasks_at_once
    if width and config.tasks_per_step and config.tasks_per_step % width:
        raise InputError(
            f"--tasks-at-once {width} does not divide --tasks-per-step {config.tasks_per_step}"
        )


def default_steps(config: ProblemConfig, description: dict[str, Any]) -> int:
    """Inner steps: the user's choice; else 1 as in the published experiments, and 5 for tables.

    One step moves every task along one direction, which is not enough where tasks differ in several ways
    (gain, offset, drift); `benchmarks/sensors.py --steps 1` shows the difference.
    """
    return config.steps or (5 if description["table"] else 1)


def has_curved_relu(config: ProblemConfig, description: dict[str, Any]) -> bool:
    """Whether ReLU is differentiated twice as its kink: the user's choice, else up to 5 inner steps.

    By `benchmarks/zero_tuning.py` sinusoids end lower with it with one inner step and with five, and at twice the
    loss with 10 in short runs: a meta-gradient is a product of as many factors, each with windows of its own.
    """
    if config.curved_relu is not None:
        return config.curved_relu
    return default_steps(config, description) <= _MOST_CURVED_STEPS


def default_rate(config: TrainConfig, kind: Kind) -> str:
    """What becomes of alpha: a given one is kept, and so is one that no meta-gradient reaches.

    A rate that is too high for a model costs squared errors by its square, and losses of class labels in proportion:
    these have the slope of the errors, at most 1. Trained at it, a classifier makes use of it. But first-order
    meta-gradients do not know that parameters adapt: by them it does not learn to. Reptile's move does not even know
    the query loss that rates would be learned by: they may rise until units die, or fall until nothing adapts.
    """
    if config.rate != "auto":
        return config.rate
    if config.alpha != "auto" or config.algorithm in ("erm", "reptile"):
        return "fixed"
    stays = kind == "classification" and config.algorithm != "fomaml"
    return "rising-meta-sgd" if stays else "shared-meta-sgd"


def fill_defaults(config: TrainConfig, description: dict[str, Any], model: Any) -> TrainConfig:
    """Replace every None or "auto" that depends on the tasks by what it stands for, except alpha's.

    `description` is that of the loaded tasks, `model` the model chosen for them: its name, or the user's own.
    """
    is_image, ways = description["images"], description.get("ways", 0)
    iterations = config.iterations or default_iterations(description)
    optimizer = _unless_auto(
        config.optimizer, "relative-adam" if config.meta_lr == "auto" else "adam"
    )
    course = OPTIMIZERS[optimizer].schedule if config.meta_lr == "auto" else "constant"
    per_step = config.tasks_per_step or ((32 if ways <= 5 else 16) if is_image else 25)
    # Tasks of the user's own have sizes that may not be an option, or hang together.
    sizes = {
        name: description[name]
        for name in ("ways", "shots", "queries")
        if name in description and not is_own(config.tasks)
    }
    return dataclasses.replace(
        config,
        **sizes,
        model=model,
        rate=default_rate(config, description["kind"]),
        optimizer=optimizer,
        schedule=_unless_auto(config.schedule, course),
        clip_tasks=_unless_auto(config.clip_tasks, OPTIMIZERS[optimizer].clip_tasks or "off"),
        steps=default_steps(config, description),
        iterations=iterations,
        tasks_per_step=per_step,
        eval_every=config.eval_every or max(1, iterations // 20),
        log_every=config.log_every or max(1, iterations // 200),
    )


def as_training(config: ProblemConfig, **options: Any) -> TrainConfig:
    """The options of a training on the same problem; what `options` does not say is at its default."""
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(ProblemConfig)}
    return TrainConfig(**given | options)


def default_iterations(description: dict[str, Any]) -> int:
    """Meta-steps of a run on tasks of that description."""
    return 2_000 if description["images"] else 10_000


def _unless_auto(choice: str | float, default: str | float) -> Any:
    return default if choice == "auto" else choice
