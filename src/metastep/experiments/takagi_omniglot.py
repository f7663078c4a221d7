"""Takagi et al., Omniglot: training error over the (alpha, beta) plane, and where it should end."""

import dataclasses
import math
from typing import Any

from matplotlib.figure import Figure

from metastep.adapt import GradientAdapter
from metastep.experiments.core import Claim, Experiment, Report
from metastep.experiments.rate_map import MapConfig, map_claims, map_records
from metastep.metagrad import Exact
from metastep.models import Objective, conv4, mlp
from metastep.rates import FixedRate, make_optimizer
from metastep.report.rate_map import map_figure
from metastep.train import Learner, ProblemConfig, load_tasks, side_by_side
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
    tasks = load_tasks(
        ProblemConfig(
            tasks="omniglot",
            data=config.data,  # type: ignore[arg-type]
            ways=config.ways,
            shots=config.shots,
            queries=config.queries,
        )
    )
    shape = tasks.splits.train.input_shape
    if config.hidden:
        model = mlp(shape, config.ways, config.hidden)
    else:
        model = conv4(shape, config.ways, config.filters)
    learner = Learner(
        model=model,
        objective=Objective.of(model.apply, "classification"),
        adapter=GradientAdapter(config.steps),
        meta_gradient=Exact(),
        rate=FixedRate(1.0),
        optimizer=make_optimizer("sgd", 1.0),
        tasks_per_step=config.tasks_per_step,
        tasks_at_once=side_by_side(model),
    )
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
    cost="about 4 hours of processor time, at the measured 2.2 s per meta-step of each of 63 trainings",
)
