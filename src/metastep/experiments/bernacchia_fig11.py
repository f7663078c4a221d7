"""Zou et al., Fig. 11: Bernacchia's mixed linear regression with equal and with different rates.

Rates are in Bernacchia's convention (loss with 1/2), twice those of the rest of metastep.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from metastep import theory
from metastep.experiments.core import (
    Claim,
    Experiment,
    Report,
    lowest_point,
    standard_error,
    verdict_of,
)
from metastep.report import style
from metastep.report.lines import Series, draw, draw_star


@dataclasses.dataclass(frozen=True)
class Config:
    """n_t, n_v: inner and outer examples in training; n_r: examples adapted to in testing; m tasks of p inputs."""

    train_shots: int = 5
    train_queries: int = 25
    test_shots: int = 10
    tasks: int = 40
    dim: int = 30
    noise: float = 0.2
    spread: float = 0.2
    fixed_rate: float = 0.2
    low: float = -0.2
    high: float = 0.6
    points: int = 41
    repeats: int = 24
    test_tasks: int = 20_000


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Mean squared distance of the trained start from w0 for each training rate, and the test losses."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(config.low, config.high, config.points)
    variances = {"task_var": config.spread**2 / config.dim, "noise_var": config.noise**2}
    distances = np.zeros((config.repeats, config.points))
    for repeat in range(config.repeats):
        if repeat % 20 == 0:
            report("training sets", repeat, config.repeats)
        x = rng.standard_normal((2, config.tasks, config.train_queries, config.dim))
        support, query = x[0, :, : config.train_shots], x[1]
        distances[repeat] = theory.minimiser_distance(support, query, grid / 2, **variances)
    mean = distances.mean(0)
    least = float(mean.min())
    test = (config.test_shots, config.dim, config.noise**2)
    best_test = 2 * float(theory.best_test_rate(least + config.spread**2, *test))
    return {
        "rates": {
            "training_rate": grid,
            "distance": mean,
            "distance_error": standard_error(distances),
            "same_rate": _test_loss(config, mean, grid),
            "fixed_test_rate": _test_loss(config, mean, config.fixed_rate),
            "best_test_rate": _test_loss(config, mean, best_test),
        },
        "best_test_rate": best_test,
        "slope_at_zero": _slope_at_zero(grid, distances),
        "estimates": _estimates(config, rng, variances),
        "sampled": _sampled(config, rng, least, best_test),
    }


def _test_loss(config: Config, distance: Any, rate: Any) -> Any:
    """Expected test loss, 1/2 mean squared error, of a start at a squared distance from w0."""
    from_optima = distance + config.spread**2
    sizes = (config.test_shots, config.dim)
    return theory.expected_test_loss(from_optima, rate / 2, *sizes, config.noise**2) / 2


def _slope_at_zero(grid: np.ndarray, distances: np.ndarray) -> dict[str, Any]:
    """Change of the distance across rate 0, paired over training sets: positive, the best rate is negative."""
    step = 0.02 + 1e-9
    near = np.flatnonzero(np.abs(grid) <= step)
    change = (distances[:, near[-1]] - distances[:, near[0]]) / (grid[near[-1]] - grid[near[0]])
    return {"mean": change.mean(), "error": standard_error(change)}


def _estimates(
    config: Config, rng: np.random.Generator, variances: dict[str, float]
) -> dict[str, Any]:
    """Rates from formulas, before any training: from features, and with noise, for n_t and n_r shots."""
    identity = np.eye(config.dim)
    rates = {}
    for name, shots in (("train", config.train_shots), ("test", config.test_shots)):
        rates[f"split_{name}"] = 2 * theory.gaussian_split_rate(identity, shots)
        phi, query = (rng.standard_normal((4000, n, config.dim)) for n in (shots, 2))
        rates[f"noise_aware_{name}"] = 2 * theory.limit_rate(phi, query, **variances)
    return rates


def _sampled(
    config: Config, rng: np.random.Generator, distance: float, rate: float
) -> dict[str, Any]:
    """The test loss on sampled tasks against `_test_loss`, from a start at that distance from w0."""
    count = config.test_shots + 1  # one fresh example per task
    x = rng.standard_normal((config.test_tasks, count, config.dim))
    w = config.spread / config.dim**0.5 * rng.standard_normal((config.test_tasks, config.dim))
    noise = config.noise * rng.standard_normal((config.test_tasks, count))
    labels = np.einsum("nkd,nd->nk", x, w) + noise
    start = np.full(config.dim, math.sqrt(distance / config.dim))  # any point that far from w0 = 0
    query = {"phi_query": x[:, -1:], "labels_query": labels[:, -1:]}
    losses = theory.adapted_losses(start, x[:, :-1], labels[:, :-1], rate / 2, **query) / 2
    return {
        "loss": losses.mean(),
        "error": standard_error(losses),
        "formula": _test_loss(config, distance, rate),
    }


def plot(records: dict[str, Any]) -> Figure:
    """Left: loss over the training rate for the three ways to choose the test rate; right: near the minima."""
    figure, axes = style.new_figure(1, 2)
    rates, estimates = records["rates"], records["estimates"]
    fixed, best = records["config"]["fixed_rate"], records["best_test_rate"]
    lines = (
        ("same rate in training and testing", "same_rate", style.BLUE, "-"),
        (f"test rate fixed at {fixed:g}", "fixed_test_rate", style.VERMILLION, "--"),
        (f"best test rate, {best:.3f}", "best_test_rate", style.GREEN, "-."),
    )
    series = [
        Series(label, rates["training_rate"], rates[column], None, color, line)
        for label, column, color, line in lines
    ]
    split = estimates["split_train"]
    for panel, title in zip(axes, ("Bernacchia's setting", "near the minima"), strict=True):
        draw(panel, series, "training rate (loss with 1/2)", "expected test loss", title=title)
        panel.axvline(0, color=style.BLACK, linewidth=0.8)
        panel.axvline(split, color=style.PURPLE, linestyle=":", label="split estimate (H.1)")
    least, highest = (bound(min(one.y) for one in series) for bound in (min, max))
    axes[1].set_ylim(least - 0.2 * (highest - least), least + 2.2 * (highest - least))
    axes[1].set_xlim(-0.2, 0.4)
    for one in series:
        index = int(np.argmin(one.y))
        draw_star(axes[1], one.x[index], one.y[index], one.color)
    style.legend_below(figure)
    return figure


def claims(records: dict[str, Any]) -> list[Claim]:
    """Bernacchia's claim, those of Zou et al. about it, and what they leave out."""
    return [
        _negative(records),
        _positive(records),
        _fixed_is_worse(records),
        _estimated(records),
        _same_is_best(records),
    ]


def _minimum(records: dict[str, Any], column: str) -> tuple[float, float]:
    """(training rate, loss) at the least loss of a column."""
    return lowest_point(records["rates"]["training_rate"], records["rates"][column])


def _negative(records: dict[str, Any]) -> Claim:
    rate, loss = _minimum(records, "fixed_test_rate")
    slope = records["slope_at_zero"]
    return Claim(
        "With the test rate fixed, the best training rate is negative",
        "Bernacchia (2021); Zou et al. (2022), Fig. 11 top right",
        "minimum below 0, and the distance to w0 rises across 0 by more than 3 standard errors",
        verdict_of(rate < 0 and slope["mean"] > 3 * slope["error"]),
        f"best training rate {rate:.3f}, loss {loss:.5f}; slope of the distance at 0 "
        f"{slope['mean']:.2e} ± {slope['error']:.0e}",
    )


def _positive(records: dict[str, Any]) -> Claim:
    rate, loss = _minimum(records, "same_rate")
    return Claim(
        "The optimal rate is not negative when training and testing use the same one",
        "Zou et al. (2022), sections 4 and H.5, Fig. 11 top left",
        "minimum of the tied curve above 0",
        verdict_of(rate > 0),
        f"best tied rate {rate:.3f}, loss {loss:.5f}; at rate 0 the loss is "
        f"{np.interp(0, records['rates']['training_rate'], records['rates']['same_rate']):.5f}",
    )


def _fixed_is_worse(records: dict[str, Any]) -> Claim:
    (_, fixed), (_, tied) = (_minimum(records, name) for name in ("fixed_test_rate", "same_rate"))
    return Claim(
        "Fixing the test rate at 0.2 may miss the minimum of the meta-learning loss",
        "Zou et al. (2022), section H.5",
        "least loss at the fixed rate above the least loss of tied rates",
        verdict_of(fixed > tied),
        f"fixed {fixed:.5f}, tied {tied:.5f}",
    )


def _estimated(records: dict[str, Any]) -> Claim:
    rate, loss = _minimum(records, "same_rate")
    estimates, rates = records["estimates"], records["rates"]
    start, at_estimate = np.interp(
        [0, estimates["split_train"]], rates["training_rate"], rates["same_rate"]
    )
    share = (at_estimate - loss) / (start - loss)
    noisy = abs(estimates["noise_aware_train"] - rate) > abs(estimates["split_train"] - rate)
    return Claim(
        "The estimate from the features finds the minimum of the tied curve",
        "Zou et al. (2022), Fig. 11 bottom (red diamond)",
        # Less than 5 % of what adaptation gains is lost by using the estimate.
        "loss at the split estimate H.1 for n_t shots: within 5 % of the gain over rate 0",
        verdict_of(share < 0.05 and not noisy, with_condition=share < 0.05),
        f"estimate {estimates['split_train']:.4f}, minimum {rate:.4f}, excess loss {at_estimate - loss:.1e} "
        f"({share:.1%} of the gain). In part a coincidence: with the label noise counted, as it should "
        f"be, the formula gives {estimates['noise_aware_train']:.4f} for n_t and "
        f"{estimates['noise_aware_test']:.4f} for n_r shots",
    )  # fmt: skip


def _same_is_best(records: dict[str, Any]) -> Claim:
    (rate, loss), (_, tied) = (_minimum(records, name) for name in ("best_test_rate", "same_rate"))
    sampled = records["sampled"]
    return Claim(
        "Training and testing should use the same rate",
        "Zou et al. (2022), section H.5: the standard setting",
        "least loss over both rates against the least loss of tied rates",
        verdict_of(loss >= tied),
        f"best pair: training {rate:.3f}, testing {records['best_test_rate']:.3f}, loss {loss:.5f} against "
        f"{tied:.5f} tied. Formula {sampled['formula']:.5f}, sampled {sampled['loss']:.5f} ± {sampled['error']:.0e}",
    )


EXPERIMENT = Experiment(
    name="bernacchia-fig11",
    title="mixed linear regression with tied and with fixed test rates, negative rates included",
    paper="bernacchia2021",
    quick=Config(),
    paper_scale=Config(repeats=200, test_tasks=200_000, points=81),
    run=run,
    plot=plot,
    claims=claims,
)
