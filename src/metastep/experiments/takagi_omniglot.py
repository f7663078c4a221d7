"""Takagi et al., Omniglot: training error over the (alpha, beta) plane, and where it should end."""

import dataclasses
import math
from typing import Any

from matplotlib.figure import Figure

from metastep.experiments.core import Claim, Experiment, Report
from metastep.experiments.omniglot_runs import omniglot_options
from metastep.experiments.rate_map import MapConfig, map_claims, map_records
from metastep.report.rate_map import map_figure
from metastep.train import build_learner, load_tasks
from metastep.train.rate_map import log_grid

_SOURCE = "Takagi et al., few-shot learning, (b) Omniglot"
_FEWEST = 50  # meta-steps below which even a good rate leaves the loss near that of guessing


@dataclasses.dataclass(frozen=True)
class Config(MapConfig):
    """5-way 1-shot, two inner steps on a mean cross-entropy, 15 queries of each class."""

    ways: int = 5
    shots: int = 1
    queries: int = 15
    steps: int = 2
    filters: int = 64
    hidden: tuple[int, ...] = ()  # of a dense network in place of conv4: quick to compile
    trains_below: float = 0.8  # of the loss of guessing
    data: str | None = None


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Plain SGD outside; the classes are those most papers train on."""
    options = omniglot_options(config, seed, optimizer="sgd")
    tasks = load_tasks(options)
    learner = build_learner(options, tasks.description, 1.0, 1.0)  # every cell has its own rates
    highest = config.trains_below * math.log(config.ways)
    return map_records(learner, tasks.splits, config, highest, seed, report)


def plot(records: dict[str, Any]) -> Figure:
    """The map and the predicted limits."""
    return map_figure(records, "nats")


def claims(records: dict[str, Any]) -> list[Claim]:
    """The poster's claims about the map, once the trainings are long enough to tell."""
    steps = records["iterations"]
    enough = "" if steps >= _FEWEST else f"{steps} meta-steps are too few to tell"
    return map_claims(records, _SOURCE, enough)


EXPERIMENT = Experiment(
    name="takagi-omniglot",
    title="Training error of Omniglot over the (alpha, beta) plane, with predicted limits",
    paper="takagi",
    quick=Config(
        alphas=log_grid(0.05, 3.0, 5),
        betas=log_grid(0.03, 10.0, 5),
        iterations=120,
        tasks_per_step=4,
        edge_tasks=8,
        lanczos=10,
        warm_up=0,
        steps=2,
        queries=3,
        hidden=(16,),
        trains_below=0.9,  # a short training of a small network gets no further
    ),
    paper_scale=Config(
        alphas=log_grid(1e-3, 9.0, 9),
        betas=log_grid(0.1, 90.0, 7),
        iterations=100,
        tasks_per_step=32,
        edge_tasks=32,
        lanczos=20,
        warm_up=200,
    ),
    run=run,
    plot=plot,
    claims=claims,
    float64=False,
    needs="omniglot",
    cost="about 75 minutes of processor time",
)
