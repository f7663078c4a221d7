"""The options of each verb that are not those of the library's own configurations."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metastep.adapt import HALVINGS
from metastep.train.config import ProblemConfig, TaskConfig, TrainConfig
from metastep.train.crew import CrewConfig

Json = Annotated[bool, tyro.conf.FlagCreatePairsOff]
MapOptimizer = Literal[
    "sgd", "momentum", "relative-adam", "normalised-adam", "adam", "adamw", "rmsprop"
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedModel:
    """The options that are objects in Python, and their names on the command line."""

    model: Annotated[str, tyro.conf.arg(metavar="{auto,linear,mlp,conv4,FILE.py:NAME}")] = "auto"
    """Your own: a metastep.models.Model, or a function (input_shape, output_size) -> Model. Default: linear for
    linear tasks, conv4 for images, else mlp."""
    loss: Annotated[str, tyro.conf.arg(metavar="{auto,FILE.py:NAME}")] = "auto"
    """Your own: a function (outputs, targets) -> mean over examples, convex in the outputs. Default: squared error,
    or cross-entropy for classes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatesOptions(NamedModel, ProblemConfig):
    """Estimate the adaptation rate alpha before any training.

    Example: metastep rates omniglot --ways 20 --algorithm anil
    """

    tasks: tyro.conf.Positional[str]
    """sinusoid, quadratic, linear, omniglot; a path: a folder or zip of class folders of images, an .npz (arrays
    x, y, task), a .csv, .tsv or .parquet table with a task column; or tasks of your own: FILE.py:NAME."""
    num_tasks: int = 128
    """Tasks to estimate from; more narrow the interval."""
    iterations: int | None = None
    """Meta-steps of the run to come, which its meta rate depends on. Default: 10000; 2000 for images."""
    rehearse: Json = False
    """Also try the measured alpha and its neighbours in short trainings, as train does before it starts."""
    edges: Json = False
    """Measure the largest stable alpha and beta for images too, which takes minutes; else it is done anyway."""
    map: Json = False
    """Also train at every pair of rates around the measured one, and draw where training works beside where
    curvature predicts that it should: rates_map.png, .svg and .json in --out."""
    map_iterations: int | None = None
    """Meta-steps of each training of the map. Default: 100 at 9 x 7 pairs; for images 20 at 5 x 4."""
    map_optimizer: MapOptimizer = "sgd"
    """Outer optimiser of the map."""
    out: Path = Path()
    """Folder for the map."""
    json: Json = False
    """Print one JSON object instead of a table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(NamedModel, TrainConfig, CrewConfig):
    """Meta-train, and write a run folder with metrics, checkpoints and report.html.

    Example: metastep train sinusoid --out runs/sinusoid

    Ctrl-C stops with a checkpoint; the same command with --resume goes on to the same result.
    """

    tasks: tyro.conf.Positional[str] = ""
    """sinusoid, quadratic, linear, omniglot; a path: a folder or zip of class folders of images, an .npz (arrays
    x, y, task), a .csv, .tsv or .parquet table with a task column; or tasks of your own:
    FILE.py:NAME. Not needed with --resume."""
    out: Path = Path("run")
    """Folder of the run."""
    resume: Json = False
    """Go on with the run in --out; only --iterations may be changed."""
    overwrite: Json = False
    """Replace the run in --out."""
    json: Json = False
    """Print one JSON object when done."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Mean loss and accuracy on held-out tasks, before and after adaptation, with 95 % intervals.

    Example: metastep evaluate runs/sinusoid --num-tasks 600
    """

    run: tyro.conf.Positional[Path]
    """Folder of a run."""
    num_tasks: int = 600
    """Held-out tasks."""
    steps: int | None = None
    """Inner steps. Default: those of training."""
    shots: int | None = None
    """Support examples. Default: those of training."""
    queries: int | None = None
    """Query examples. Default: those of training."""
    alpha: float | None = None
    """Adaptation rate. Default: that of training."""
    seed: int | None = None
    """Draw other held-out tasks. Default: the seed of the run."""
    checkpoint: Literal["best", "latest"] = "best"
    """The state that validated best, or the last one."""
    transductive: bool = True
    """Whether batch normalisation sees the whole query set at once, as in most published numbers."""
    halvings: int = HALVINGS
    """How often the rates of an inner step are halved at most where it would raise the support loss of a task. 0:
    plain gradient steps, as in published numbers."""
    stationarity: Json = False
    """Also measure how far from stationary the run is: the norm of its meta-gradient on fresh draws of the
    training tasks, with an interval, beside what it was at the start and what theory promises."""
    json: Json = False
    """Print one JSON object instead of a table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptOptions:
    """Adapt a trained run to one new task and predict.

    Example: metastep adapt runs/sensors --support new_sensor.csv --query ask.csv --out answer.csv
    """

    run: tyro.conf.Positional[Path]
    """Folder of a run."""
    support: Path
    """Labelled examples of the task: .npz with x and y, or a table with the columns of training."""
    query: Path
    """Examples to predict: as --support, y not needed. With y, the loss is reported too."""
    out: Path | None = None
    """Where predictions go: .npz, .csv or .parquet. Default: predictions.npz beside the query file."""
    steps: int | None = None
    """Inner steps. Default: those of training."""
    alpha: float | None = None
    """Adaptation rate. Default: that of training."""
    checkpoint: Literal["best", "latest"] = "best"
    """The state that validated best, or the last one."""
    transductive: bool = False
    """Let batch normalisation see the whole query set; else every prediction stands alone."""
    halvings: int = HALVINGS
    """How often the rates of an inner step are halved at most where it would raise the support loss. 0: plain
    gradient steps."""
    seed: int = 0
    """Adaptation draws nothing at random; accepted so that every verb takes a seed."""
    json: Json = False
    """Print one JSON object instead of a table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """Download a data set, or take its files from a folder.

    Example: metastep data fetch omniglot --from ~/downloads/omniglot
    """

    name: tyro.conf.Positional[Literal["omniglot"]]
    """Which data set."""
    data: Path | None = None
    """Data root to put it in. Default: METASTEP_DATA, else the user cache directory."""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A folder that holds the official zips or their unpacked folders; nothing is downloaded."""
    seed: int = 0
    """Nothing is drawn at random; accepted so that every verb takes a seed."""
    json: Json = False
    """Print one JSON object instead of a table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoOptions(TaskConfig):
    """What a data set holds: classes or tasks, examples, shapes, columns, ranges.

    Example: metastep data info sensors.csv
    """

    tasks: tyro.conf.Positional[str]
    """sinusoid, quadratic, linear, omniglot; a path: a folder or zip of class folders of images, an .npz (arrays
    x, y, task), a .csv, .tsv or .parquet table with a task column; or tasks of your own: FILE.py:NAME."""
    json: Json = False
    """Print one JSON object instead of a table."""
