"""Zou et al., Fig. 10: does the heuristic range for deep networks hold the rate that trains and tests best?"""

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metastep import theory
from metastep.experiments.core import (
    Claim,
    Experiment,
    Report,
    from_to,
    verdict_of,
    verdict_of_differences,
)
from metastep.experiments.networks import network_learner
from metastep.report import style
from metastep.report.lines import Series, draw, draw_star
from metastep.tasks import Quadratic, Sinusoid, TaskSplits
from metastep.train import sweep

_FAMILIES = {"quadratic": Quadratic, "sinusoid": Sinusoid}
# (name, title, hidden layers): Bernacchia's quadratic tasks, and the sinusoids of Finn et al.
_PROBLEMS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("quadratic", "(a) quadratic, 2-layer network", (60,)),
    ("sinusoid", "(b) sinusoid, 3-layer network", (40, 40)),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """One inner step, as many trainings as rates and seeds; the paper gives no length of training."""

    alphas: tuple[float, ...] = tuple(float(rate) for rate in np.geomspace(1e-3, 0.3, 9))
    shots: int = 10
    meta_lr: float = 1e-3
    tasks_per_step: int = 8
    iterations: int = 600
    seeds: int = 1
    test_tasks: int = 200


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Test loss at every rate, trained at that same rate, and the printed range."""
    problems = []
    for name, title, hidden in _PROBLEMS:
        found = sweep(
            network_learner(hidden, config.tasks_per_step),
            TaskSplits.same(_FAMILIES[name](shots=config.shots, queries=config.shots), name),
            config.alphas,
            (config.meta_lr,),
            range(seed, seed + config.seeds),
            milestones=(config.iterations,),
            test_tasks=config.test_tasks,
            halvings=0,
            cells_at_once=len(config.alphas),
            keep=report.keep(name),
            progress=partial(report, name),
        )
        loss = found.test_loss[0, :, 0]  # (rates, seeds)
        size = sum(a * b + b for a, b in zip((1, *hidden), (*hidden, 1), strict=True))
        low, high = theory.heuristic_range_as_printed(
            config.iterations * config.tasks_per_step * config.shots, size, config.shots
        )
        problems.append(
            {
                "name": name,
                "title": title,
                "parameters": size,
                "loss": np.where(np.isfinite(loss), loss, np.nan),
                "range": [float(low), float(high)],
            }
        )
    return {"alphas": list(config.alphas), "problems": problems}


def _mean(problem: dict[str, Any]) -> np.ndarray:
    """Mean loss over seeds, NaN where a training diverged."""
    return np.asarray(problem["loss"], float).mean(1)


def plot(records: dict[str, Any]) -> Figure:
    """Loss over the rate, one line per seed, and the printed range."""
    figure, axes = style.new_figure(1, 2)
    for panel, problem in zip(axes, records["problems"], strict=True):
        _draw(panel, problem, records["alphas"])
    style.legend_below(figure, columns=4)
    return figure


@style.styled
def _draw(axes: Axes, problem: dict[str, Any], alphas: list[float]) -> None:
    lines = np.asarray(problem["loss"], float)
    mean = _mean(problem)
    least = float(np.nanmin(mean))
    axes.plot(alphas, np.minimum(lines, 100 * least), color=style.GREY, linewidth=0.8)
    axes.plot([], [], color=style.GREY, linewidth=0.8, label="single seeds")
    series = Series(
        "mean of seeds", alphas, np.minimum(mean, 100 * least), color=style.BLUE, marker="o"
    )
    draw(axes, [series], "α, in training and testing", "test loss after one step", True, True,
         problem["title"])  # fmt: skip
    axes.axvspan(*problem["range"], color=style.VERMILLION, alpha=0.2, label="printed range")
    best = alphas[int(np.nanargmin(mean))]
    draw_star(axes, best, least, label="least")
    axes.set_ylim(0.8 * least, 30 * least)


def claims(records: dict[str, Any]) -> list[Claim]:
    """Whether the range holds the optimum, and whether the optimum is positive."""
    return [_in_range(problem, records["alphas"]) for problem in records["problems"]]


def _as_good(problem: dict[str, Any], alphas: list[float]) -> list[float]:
    """The best rate, and those that the seeds cannot tell from it: all were trained on the same tasks.

    Losses are compared as ratios: far from the best rate they scatter as widely as they are high.
    """
    losses, index = np.log(np.asarray(problem["loss"], float)), int(np.nanargmin(_mean(problem)))
    more = [each - losses[index] for each in losses]
    several = losses.shape[1] > 1
    return [
        rate
        for number, (rate, pairs) in enumerate(zip(alphas, more, strict=True))
        if number == index or (several and verdict_of_differences(pairs) == "not tested")
    ]


def _in_range(problem: dict[str, Any], alphas: list[float]) -> Claim:
    mean = _mean(problem)
    index = int(np.nanargmin(mean))
    low, high = problem["range"]
    inside = [float(loss) for rate, loss in zip(alphas, mean, strict=True) if low <= rate <= high]
    as_good = _as_good(problem, alphas)
    # The optimum is known to one step of the grid; within a step of the range it may lie in it.
    step = alphas[1] / alphas[0]
    losses = np.asarray(problem["loss"], float)
    better = float(np.nanmin(losses[index])), float(np.nanmax(losses[index]))
    reached = (
        f"; least loss in the range {min(inside):.3g}" if inside else "; no rate tried is in it"
    )
    return Claim(
        f"{problem['title']}: the range of (H.18) and (H.19) holds the best rate",
        "Zou et al. (2022), Fig. 10",
        f"{len(alphas)} trainings per seed, m = {problem['parameters']} parameters, n = K observations; best are all "
        f"rates within two standard errors of the least loss, in logarithms, seeds in pairs; with a condition if one "
        f"is within a step of the grid, a factor {step:.1f}",
        verdict_of(
            any(low <= rate <= high for rate in as_good),
            any(low / step < rate < high * step for rate in as_good),
        ),
        f"range {low:.3g} to {high:.3g}, best {alphas[index]:.3g} with loss {mean[index]:.3g} (seeds "
        f"{better[0]:.3g} to {better[1]:.3g}), as good {from_to(as_good)}{reached}; the range would need n >= "
        f"{math.ceil(alphas[index] * problem['parameters'])}",
    )


EXPERIMENT = Experiment(
    name="zou-fig10",
    title="the heuristic range of α for deep networks against the rate that does best",
    paper="zou2022",
    quick=Config(),
    paper_scale=Config(
        alphas=tuple(float(rate) for rate in np.geomspace(3e-4, 0.3, 16)),
        iterations=10_000,
        tasks_per_step=25,
        seeds=3,
        test_tasks=2000,
    ),
    run=run,
    plot=plot,
    claims=claims,
    float64=False,
)
