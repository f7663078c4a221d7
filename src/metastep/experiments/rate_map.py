"""Training error over the whole (alpha, beta) plane, with the limits that curvature predicts, for Takagi et al."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metastep._errors import InputError
from metastep._types import Episode, Params
from metastep.experiments.core import Claim, Report, verdict_of
from metastep.rates import FixedRate, make_optimizer, meta_edge, stability_edge
from metastep.report import style
from metastep.tasks import TaskSplits, batch_of_episodes
from metastep.train import Learner, advance, initial_state, sweep


@dataclasses.dataclass(frozen=True)
class MapConfig:
    """The grid, the trainings, and how the curvature is measured."""

    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    iterations: int
    tasks_per_step: int
    edge_tasks: int
    lanczos: int
    warm_up: int


def log_grid(low: float, high: float, count: int) -> tuple[float, ...]:
    """`count` rates from `low` to `high`, each the same multiple of the one before."""
    return tuple(float(f"{rate:.3g}") for rate in np.geomspace(low, high, count))


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
    report : progress callback
    """
    start_key, training_key, edge_key = jax.random.split(jax.random.key(seed), 3)
    start = jax.jit(learner.model.init)(start_key)
    # Every training begins here, and so do the curvatures.
    model = dataclasses.replace(learner.model, init=lambda key: start)
    learner = dataclasses.replace(learner, model=model)
    found = sweep(
        learner,
        splits,
        config.alphas,
        config.betas,
        (seed,),
        milestones=(config.iterations,),
        test_tasks=2,
        window=max(1, config.iterations // 10),
        progress=lambda done, total: report("the (α, β) plane", done, total),
    )
    loss = found.train_loss[0, :, :, 0]

    def meta_loss(alpha: Array, meta: Params, episode: Episode) -> Array:
        return learner.query_loss(meta, episode, alpha)

    places = {"start": start}
    if config.warm_up:
        report("curvature after training", config.iterations, config.iterations)
        places["trained"] = _warm_up(learner, splits, config, training_key)
    return {
        "alphas": list(config.alphas),
        "betas": list(config.betas),
        "train_loss": np.where(np.isfinite(loss), loss, np.nan).tolist(),
        "diverged_at": found.diverged_at[:, :, 0].tolist(),
        "highest_loss": highest_loss,
        "iterations": config.iterations,
        "seconds": found.seconds,
        "predicted": {
            name: _predict(learner, meta_loss, splits, params, config, edge_key)
            for name, params in places.items()
        },
    }


def _warm_up(learner: Learner, splits: TaskSplits, config: MapConfig, key: Array) -> Params:
    """The same model after meta-training by Adam at a middling alpha: near a minimum, whatever SGD does."""
    alpha = float(np.median(config.alphas))
    adam = dataclasses.replace(
        learner, optimizer=make_optimizer("adam", 1e-3), rate=FixedRate(alpha)
    )
    train = jax.jit(lambda family, state, until: advance(adam, family, key, state, until))
    state = train(splits.train, initial_state(adam, key), jnp.asarray(config.warm_up))
    return state.meta.params


def _predict(
    learner: Learner,
    meta_loss: Callable[[Array, Params, Episode], Array],
    splits: TaskSplits,
    params: Params,
    config: MapConfig,
    key: Array,
) -> dict[str, Any]:
    """alpha_c of the support loss and beta_c(alpha) of the meta-objective, from the curvature at `params`."""
    task_key, edge_key = jax.random.split(key)
    episodes = jax.jit(batch_of_episodes, static_argnums=2)(
        splits.train, task_key, config.edge_tasks
    )
    sizes: Any = {"tasks_at_once": learner.tasks_at_once, "iterations": config.lanczos}

    def beta_c(alpha: float) -> float:
        loss = Partial(meta_loss, jnp.asarray(alpha))
        try:
            return meta_edge(loss, params, episodes, "sgd", edge_key, **sizes).beta_max
        except InputError:  # alpha so large that the curvature overflows
            return float("nan")

    edge = stability_edge(
        learner.objective, params, splits.train, edge_key, num_tasks=config.edge_tasks, **sizes
    )
    return {
        "alpha_c": edge.simplified_alpha_c,
        "alpha_c_median": edge.ggn.median_alpha_c / 2,
        "beta_c": [beta_c(alpha) for alpha in config.alphas],
    }


def trained_cells(records: dict[str, Any]) -> np.ndarray:
    """(alphas, betas) whether the training ended below the loss of one that works."""
    loss = np.array(records["train_loss"], float)
    return np.nan_to_num(loss, nan=np.inf) < records["highest_loss"]


def largest_betas(records: dict[str, Any]) -> np.ndarray:
    """(alphas,) the largest beta that trains; NaN where none does."""
    betas = np.array(records["betas"])
    return np.array([betas[row].max() if row.any() else np.nan for row in trained_cells(records)])


@style.styled
def map_figure(records: dict[str, Any], unit: str) -> Figure:
    """Training loss over the plane; grey cells diverged, lines are predicted limits."""
    figure, (axes,) = style.new_figure(panel=(7.2, 5.2))
    loss = np.array(records["train_loss"], float)
    alphas, betas = np.array(records["alphas"]), np.array(records["betas"])
    axes.set_facecolor("0.75")
    mesh = axes.pcolormesh(
        _edges(alphas), _edges(betas), np.ma.masked_invalid(loss.T), cmap="viridis",
        vmin=0, vmax=1.25 * records["highest_loss"], rasterized=True,
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="adaptation rate α", ylabel="meta rate β")
    axes.set(xlim=_edges(alphas)[[0, -1]], ylim=_edges(betas)[[0, -1]])
    axes.grid(False)
    figure.colorbar(mesh, ax=axes, extend="max").set_label(
        f"training loss after adaptation ({unit})"
    )
    axes.plot(alphas, largest_betas(records), "o", color="white", markeredgecolor="black",
              label="largest β that trains")  # fmt: skip
    _draw_predictions(axes, alphas, records["predicted"])
    axes.plot([], [], "s", color="0.75", markersize=9, label="diverged")
    style.legend_below(figure, columns=3)
    return figure


def _draw_predictions(axes: Axes, alphas: np.ndarray, predicted: dict[str, Any]) -> None:
    for name, color in (("start", style.VERMILLION), ("trained", style.PURPLE)):
        if name not in predicted:
            continue
        where = "at the start" if name == "start" else "after training"
        beta_c = np.array(predicted[name]["beta_c"], float)
        axes.plot(alphas, beta_c, "-", color=color, label=f"β_c {where}")
        axes.axvline(predicted[name]["alpha_c"], color=color, linestyle=":",
                     label=f"α_c = 1/λ_max {where}")  # fmt: skip


def _edges(centres: Sequence[float] | np.ndarray) -> np.ndarray:
    """Borders of the cells of a log axis."""
    logs = np.log(np.asarray(centres))
    middles = (logs[1:] + logs[:-1]) / 2
    ends = (2 * logs[0] - middles[0], 2 * logs[-1] - middles[-1])
    return np.exp(np.concatenate([ends[:1], middles, ends[1:]]))


def map_claims(records: dict[str, Any], source: str, enough: str = "") -> list[Claim]:
    """The poster's claims about the map; `enough` is the reason why a small run can't tell, if so."""
    return [
        _grows_with_alpha(records, source, enough),
        _beta_predicted(records, source, enough),
        _alpha_predicted(records, source, enough),
    ]


def _latest(records: dict[str, Any]) -> str:
    """Where the curvature counts most: after training, if it was measured there."""
    return "trained" if "trained" in records["predicted"] else "start"


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
    verdict = "holds" if last > first else "holds with a condition" if betas[peak] > first else None
    return Claim(
        text, source, test, verdict or "does not hold",
        f"β up to {first:g} at α = {alphas[works[0]]:g}, {last:g} at α = {alphas[works[-2]]:g} to "
        f"{alphas[works[-1]]:g}, most at α = {alphas[peak]:g}: {betas[peak]:g}",
    )  # fmt: skip


def _beta_predicted(records: dict[str, Any], source: str, enough: str) -> Claim:
    text = "The theory explains the experiment: β_c(α) is where training stops working"
    place = _latest(records)
    test = (
        f"2 / λ_max of the exact meta-objective, {place}, against the largest β that trains; holds within a "
        "factor of 3 at every α that trains, with a condition at half of them"
    )
    predicted = np.array(records["predicted"][place]["beta_c"], float)
    measured = largest_betas(records)
    known = np.isfinite(predicted) & np.isfinite(measured)
    if not known.any() or enough:
        return Claim(text, source, test, "not tested", enough or "no α trains on this grid")
    ratios = measured[known] / predicted[known]
    close = np.abs(np.log(ratios)) < np.log(3)
    verdict = "holds" if close.all() else "holds with a condition" if close.mean() >= 0.5 else None
    return Claim(
        text, source, test, verdict or "does not hold",
        f"measured / predicted from {ratios.min():.2g} to {ratios.max():.2g}; within a factor of 3 at "
        f"{close.sum()} of {close.size} α",
    )  # fmt: skip


def _alpha_predicted(records: dict[str, Any], source: str, enough: str) -> Claim:
    text = "α_c = 1 / λ_max is the largest α at which training converges for some β"
    place = _latest(records)
    test = (
        f"1 / λ_max of the sharpest task, {place}, against the largest α with a β that trains; holds if no α "
        "beyond 3 α_c trains"
    )
    alphas = np.array(records["alphas"])
    works = alphas[trained_cells(records).any(axis=1)]
    if not works.size or enough:
        return Claim(text, source, test, "not tested", enough or "no α trains on this grid")
    limit = records["predicted"][place]["alpha_c"]
    return Claim(
        text, source, test, verdict_of(works.max() <= 3 * limit),
        f"α_c {limit:.3g}; training works up to α = {works.max():g} of {alphas.max():g} tried",
    )  # fmt: skip
