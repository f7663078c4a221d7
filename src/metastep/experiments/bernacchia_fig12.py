"""Zou et al., Fig. 12: a two-layer network on Bernacchia's quadratic tasks, with equal and different rates.

One table holds it all: trained at every rate, tested at every rate, the same test tasks throughout.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metastep._types import Params
from metastep.experiments.core import (
    Claim,
    Experiment,
    Report,
    standard_error,
    verdict_of_differences,
)
from metastep.experiments.networks import network_learner, train_at_rates
from metastep.report import style
from metastep.report.lines import Series, draw, draw_star
from metastep.tasks import Quadratic, batch_of_episodes
from metastep.train import Learner, initial_state, losses_at_rates
from metastep.train.state import HEALTHY

_STRATEGIES = {
    "tied": "same rate, training and testing",
    "fixed_train": "training rate fixed, test rate varies",
    "fixed_test": "test rate fixed, training rate varies",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The paper's ten folds, Bernacchia's 60 hidden units; neither gives the length of meta-training.

    The quick scale takes two inner steps, not five: compiling their second derivatives costs the most.
    """

    rates: tuple[float, ...] = (-0.01, -0.005, 0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.06)
    fixed: float = 0.01
    hidden: int = 60
    inner_steps: int = 2
    meta_lr: float = 1e-3
    iterations: int = 600
    tasks_per_step: int = 10
    seeds: int = 1
    folds: int = 10
    fold_tasks: int = 100


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Mean test loss of every fold for each training rate and test rate; NaN where a training diverged."""
    learner = _learner(config)
    train = jax.jit(partial(train_at_rates, learner, Quadratic(), iterations=config.iterations))
    test = _compile_test(learner, config)
    rates = jnp.asarray(config.rates)
    tables, stopped = [], np.zeros(len(rates), int)
    for one in range(config.seeds):
        report("training at every rate", one, config.seeds)
        start_key, train_key, test_key = jax.random.split(jax.random.key(seed + one), 3)
        states = train(start=initial_state(learner, start_key), alphas=rates, key=train_key)
        failed = np.asarray(states.failure) != HEALTHY
        stopped += failed
        table = np.asarray(test(states.meta.params, rates, test_key))
        tables.append(np.where(failed[:, None, None], np.nan, table))
    losses = np.stack(tables)  # (seed, training rate, test rate, fold)
    return {
        "rates": list(config.rates),
        "loss": losses.mean((0, 3)),
        "folds": losses.mean(0),
        "stopped": stopped.tolist(),
    }


def _learner(config: Config) -> Learner:
    """A training that its rate breaks must not go on at another: the rate is what is studied."""
    return network_learner(
        (config.hidden,),
        config.tasks_per_step,
        steps=config.inner_steps,
        meta_lr=config.meta_lr,
        back_offs=0,
    )


def _compile_test(learner: Learner, config: Config) -> Callable[..., Array]:
    """(params of each training rate, rates, key) -> (training rate, test rate, fold) mean losses."""

    @jax.jit
    def test(trained: Params, rates: Array, key: PRNGKeyArray) -> Array:
        episodes = batch_of_episodes(Quadratic(), key, config.folds * config.fold_tasks)
        losses = jax.lax.map(lambda one: losses_at_rates(learner, one, rates, episodes), trained)
        return losses.reshape(*losses.shape[:2], config.folds, config.fold_tasks).mean(-1)

    return test


def curves(records: dict[str, Any]) -> dict[str, np.ndarray]:
    """Losses over the rate that varies, (rates, folds), for each strategy."""
    folds = np.array(records["folds"], float)  # None, not finite, becomes NaN
    fixed = records["rates"].index(records["config"]["fixed"])
    tied = np.arange(len(folds))
    return {"tied": folds[tied, tied], "fixed_train": folds[fixed], "fixed_test": folds[:, fixed]}


def plot(records: dict[str, Any]) -> Figure:
    """Loss over the rate that varies for three strategies, and the table of both rates."""
    figure, axes = style.new_figure(1, 2)
    series = []
    for (name, losses), color in zip(curves(records).items(), style.PALETTE, strict=False):
        mean = losses.mean(1)
        mean = np.where(mean < 100 * np.nanmin(mean), mean, np.nan)  # what is far off ends the line
        width = 1.96 * standard_error(losses.T)
        label = _STRATEGIES[name]
        series.append(Series(label, records["rates"], mean, width, color, marker="o"))
    draw(
        axes[0],
        series,
        "rate that varies",
        f"test loss after {records['config']['inner_steps']} steps",
        log_y=True,
    )
    least = min(float(np.nanmin(one.y)) for one in series)
    axes[0].set_ylim(0.7 * least, 15 * least)
    axes[0].axvline(0, color=style.BLACK, linewidth=0.8)
    _draw_table(figure, axes[1], records)
    style.legend_below(figure, 3)
    return figure


@style.styled
def _draw_table(figure: Figure, axes: Axes, records: dict[str, Any]) -> None:
    losses = np.log10(np.array(records["loss"], float))
    top = np.nanmin(losses) + 1.0  # cells far off would hide all differences
    image = axes.imshow(losses, origin="lower", cmap="cividis", vmax=top, aspect="auto")
    for row, column in np.argwhere(~np.isfinite(losses)):
        axes.text(column, row, "×", ha="center", va="center", color=style.GREY)
    ticks, labels = range(len(records["rates"])), [f"{rate:g}" for rate in records["rates"]]
    axes.set_xticks(ticks, labels, rotation=45)
    axes.set_yticks(ticks, labels)
    row, column = np.unravel_index(np.nanargmin(losses), losses.shape)
    draw_star(axes, float(column), float(row))
    axes.grid(visible=False)
    axes.set(xlabel="test rate", ylabel="training rate", title="star: least loss; ×: diverged")
    figure.colorbar(image, ax=axes, label="log10 test loss")


def claims(records: dict[str, Any]) -> list[Claim]:
    """The figure's claim for its two strategies, for the third, and what the table adds."""
    sources = {
        "tied": "Zou et al. (2022), Fig. 12 right",
        "fixed_train": "Zou et al. (2022), Fig. 12 left, by its caption",
        "fixed_test": "Zou et al. (2022), Fig. 12 left, by its axis; against Bernacchia (2021)",
    }
    found = [
        _positive(name, losses, records, sources[name]) for name, losses in curves(records).items()
    ]
    return [*found, _same_is_best(records)]


def _positive(name: str, losses: np.ndarray, records: dict[str, Any], source: str) -> Claim:
    rates, mean = np.array(records["rates"]), losses.mean(1)
    above, below = (
        np.flatnonzero(side)[np.nanargmin(mean[side])] for side in (rates > 0, rates <= 0)
    )
    difference = losses[below] - losses[above]  # the folds are the same tasks
    error = standard_error(difference)
    return Claim(
        f"{_STRATEGIES[name]}: the optimal rate is positive",
        source,
        "best rate above 0 against best rate not above 0, paired over folds, beyond 2 standard errors",
        verdict_of_differences(difference),
        f"best {rates[np.nanargmin(mean)]:g} with loss {np.nanmin(mean):.4g}, of {np.isfinite(mean).sum()} "
        f"rates that did not diverge; loss at {rates[below]:g} minus loss at {rates[above]:g}: "
        f"{difference.mean():.3g} ± {error:.1g}",
    )


def _same_is_best(records: dict[str, Any]) -> Claim:
    folds, rates = np.array(records["folds"], float), records["rates"]
    mean = folds.mean(2)
    row, column = np.unravel_index(np.nanargmin(mean), mean.shape)
    tied = int(np.nanargmin(np.diagonal(mean)))
    difference = folds[row, column] - folds[tied, tied]
    error = standard_error(difference)
    verdict = "holds" if row == column else verdict_of_differences(difference)
    return Claim(
        "The same rate in training and testing is the best choice",
        "Zou et al. (2022), section H.5: the standard setting",
        "least loss of the table against that of its diagonal, paired over folds, beyond 2 standard errors",
        verdict,
        f"least {mean[row, column]:.4g} at training rate {rates[row]:g}, test rate {rates[column]:g}; tied "
        f"{mean[tied, tied]:.4g} at {rates[tied]:g}; difference {difference.mean():.3g} ± {error:.1g}",
    )


EXPERIMENT = Experiment(
    name="bernacchia-fig12",
    title="two-layer network on quadratic tasks: every training rate with every test rate",
    paper="bernacchia2021",
    quick=Config(),
    paper_scale=Config(
        rates=(-0.005, -0.002, 0.0, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02),
        inner_steps=5,
        iterations=10_000,
        seeds=3,
        fold_tasks=1000,
    ),
    run=run,
    plot=plot,
    claims=claims,
    float64=False,
)
