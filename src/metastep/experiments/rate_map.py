"""Training error over the whole (alpha, beta) plane, with the limits that curvature predicts, for Takagi et al."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from metastep._types import Params
from metastep.experiments.core import Claim, Report, verdict_of
from metastep.experiments.networks import train
from metastep.rates import FixedRate, make_optimizer
from metastep.report.rate_map import largest_betas, trained_cells
from metastep.tasks import TaskSplits
from metastep.train import Learner
from metastep.train.edges import predict_limits
from metastep.train.rate_map import train_plane

_UNMEASURED = "the curvature was not measured in this small run"


@dataclasses.dataclass(frozen=True)
class MapConfig:
    """The grid, the trainings, and how the curvature is measured: on `edge_tasks` tasks, not at all for 0."""

    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    iterations: int
    tasks_per_step: int
    edge_tasks: int
    lanczos: int
    warm_up: int


def map_records(
    learner: Learner,
    splits: TaskSplits,
    config: MapConfig,
    highest_loss: float,
    seed: int,
    report: Report,
) -> dict[str, Any]:
    """Train on the grid by SGD, and predict the limits at the start and after a training by Adam.

    Parameters
    ----------
    learner : with plain SGD as its optimiser
    splits, config, seed : of the trainings
    highest_loss : of a training that counts as one that works
    report : of the run
    """
    start_key, training_key, edge_key = jax.random.split(jax.random.key(seed), 3)
    start = jax.jit(learner.model.init)(start_key)
    plane = train_plane(
        learner,
        splits,
        start,
        config.alphas,
        config.betas,
        iterations=config.iterations,
        seed=seed,
        keep=report.keep("plane"),
        progress=lambda done, total: report("the (α, β) plane", done, total),
    )
    places = {"start": start}
    if config.warm_up and config.edge_tasks:
        tell = partial(report, "training for its curvature")
        places["trained"] = _warm_up(learner, splits, start, config, training_key, tell)
    sizes: Any = {"num_tasks": config.edge_tasks, "lanczos": config.lanczos}
    return plane | {
        "highest_loss": highest_loss,
        "predicted": {
            name: predict_limits(learner, splits, params, config.alphas, edge_key, **sizes)
            for name, params in places.items()
            if config.edge_tasks
        },
    }


def _warm_up(
    learner: Learner,
    splits: TaskSplits,
    start: Params,
    config: MapConfig,
    key: Array,
    tell: Callable[[int, int], None],
) -> Params:
    """The same model after meta-training by Adam at a middling alpha: near a minimum, whatever SGD does."""
    alpha = float(np.median(config.alphas))
    adam = dataclasses.replace(
        learner,
        model=dataclasses.replace(learner.model, init=lambda key: start),
        optimizer=make_optimizer("adam", 1e-3),
        rate=FixedRate(alpha),
    )
    return train(adam, splits.train, key, key, config.warm_up, tell)


def map_claims(records: dict[str, Any], source: str, enough: str = "") -> list[Claim]:
    """The poster's claims about the map; `enough` is the reason why a small run can't tell, if so."""
    return [
        _grows_with_alpha(records, source, enough),
        _beta_predicted(records, source, enough),
        _alpha_predicted(records, source, enough),
    ]


def _grows_with_alpha(records: dict[str, Any], source: str, enough: str) -> Claim:
    text = "The largest possible β is larger when α is close to its largest possible value"
    test = (
        f"largest β that trains (loss below {records['highest_loss']:.2f}) at the smallest α, and at the largest "
        "two α that train; holds if larger there, with a condition if it rises on the way but not at the end"
    )
    alphas, betas = np.array(records["alphas"]), largest_betas(records)
    works = np.flatnonzero(np.isfinite(betas))
    if works.size < 3 or enough:
        reason = enough or f"only {works.size} adaptation rates train anywhere on the grid"
        return Claim(text, source, test, "not tested", reason)
    first, last = betas[works[0]], betas[works[-2:]].max()
    peak = works[np.argmax(betas[works])]
    return Claim(
        text, source, test, verdict_of(bool(last > first), bool(betas[peak] > first)),
        f"β up to {first:g} at α = {alphas[works[0]]:g}, {last:g} at α = {alphas[works[-2]]:g} to "
        f"{alphas[works[-1]]:g}, most at α = {alphas[peak]:g}: {betas[peak]:g}",
    )  # fmt: skip


def _beta_predicted(records: dict[str, Any], source: str, enough: str) -> Claim:
    text = "The theory explains the experiment: β_c(α) is where training stops working"
    # The trainings of the map are short and stay near their start; the trained place is shown beside it.
    test = (
        "2 / λ_max of the exact meta-objective at the start against the largest β that trains; holds within a "
        "factor of 3 at every α that trains, with a condition at half of them"
    )
    if enough or "start" not in records["predicted"]:
        return Claim(text, source, test, "not tested", enough or _UNMEASURED)
    measured = largest_betas(records)
    ratios = {
        place: measured / np.array(predicted["beta_c"], float)
        for place, predicted in records["predicted"].items()
    }
    known = {place: r[np.isfinite(r)] for place, r in ratios.items()}
    if not known["start"].size:
        return Claim(text, source, test, "not tested", "no α trains on this grid")
    close = np.abs(np.log(known["start"])) < np.log(3)
    spans = [f"{r.min():.2g} to {r.max():.2g} ({place})" for place, r in known.items() if r.size]
    return Claim(
        text, source, test, verdict_of(bool(close.all()), bool(close.mean() >= 0.5)),
        f"measured / predicted {', '.join(spans)}; within a factor of 3 of the start at {close.sum()} of "
        f"{close.size} α",
    )  # fmt: skip


def _alpha_predicted(records: dict[str, Any], source: str, enough: str) -> Claim:
    text = "α_c = 1 / λ_max is the largest α at which training converges for some β"
    test = (
        "1 / λ_max of the sharpest task at the start against the largest α with a β that trains; holds if no α "
        "beyond 3 α_c trains"
    )
    if enough or "start" not in records["predicted"]:
        return Claim(text, source, test, "not tested", enough or _UNMEASURED)
    alphas = np.array(records["alphas"])
    works = alphas[trained_cells(records).any(axis=1)]
    if not works.size:
        return Claim(text, source, test, "not tested", "no α trains on this grid")
    limits = {place: found["alpha_c"] for place, found in records["predicted"].items()}
    shown = ", ".join(f"{limit:.3g} ({place})" for place, limit in limits.items())
    return Claim(
        text, source, test, verdict_of(works.max() <= 3 * limits["start"]),
        f"α_c {shown}; training works up to α = {works.max():g} of {alphas.max():g} tried",
    )  # fmt: skip
