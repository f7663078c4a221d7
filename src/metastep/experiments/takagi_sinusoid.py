"""Takagi et al., sinusoid regression: training error over the (alpha, beta) plane, and where it should end."""

import dataclasses
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from metastep.experiments.core import Claim, Experiment, Report
from metastep.experiments.networks import network_learner
from metastep.experiments.rate_map import MapConfig, map_claims, map_records
from metastep.report.rate_map import map_figure
from metastep.tasks import Sinusoid, TaskSplits, batch_of_episodes
from metastep.train.rate_map import log_grid

_SOURCE = "Takagi et al., few-shot learning, (a) sinusoid"


@dataclasses.dataclass(frozen=True)
class Config(MapConfig):
    """The poster does not say what its 100 tasks are; here every meta-step draws as many fresh ones."""

    shots: int = 10
    hidden: tuple[int, ...] = (40, 40)


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """One inner step, plain SGD outside, mean squared error without 1/2."""
    family = Sinusoid(shots=config.shots, queries=config.shots)
    learner = network_learner(config.hidden, config.tasks_per_step, optimizer="sgd")
    targets = batch_of_episodes(family, jax.random.key(seed), 1000).query.y
    # A network that died adapts its output bias alone and ends at 0.85 of the loss of predicting zero.
    highest = 0.8 * float(np.mean(np.square(targets)))
    splits = TaskSplits.same(family, "sinusoid")
    return map_records(learner, splits, config, highest, seed, report)


def plot(records: dict[str, Any]) -> Figure:
    """The map and the predicted limits."""
    return map_figure(records, "squared error")


def claims(records: dict[str, Any]) -> list[Claim]:
    """The poster's claims about the map."""
    return map_claims(records, _SOURCE)


EXPERIMENT = Experiment(
    name="takagi-sinusoid",
    title="Training error of sinusoid regression over the (alpha, beta) plane, with predicted limits",
    paper="takagi",
    quick=Config(
        alphas=log_grid(1e-3, 0.9, 6),
        betas=log_grid(1e-2, 0.9, 6),
        iterations=60,
        tasks_per_step=10,
        edge_tasks=20,
        lanczos=12,
        warm_up=0,
    ),
    paper_scale=Config(
        alphas=log_grid(1e-4, 0.9, 13),
        betas=log_grid(1e-2, 9.0, 13),
        iterations=500,
        tasks_per_step=100,
        edge_tasks=200,
        lanczos=40,
        warm_up=5000,
    ),
    run=run,
    plot=plot,
    claims=claims,
    float64=False,
    cost="about 10 minutes of processor time, at the measured 1.2 s per meta-step of its 169 trainings together",
)
