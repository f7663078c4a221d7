"""Finn et al., sinusoid regression: error against adaptation steps for MAML, pretraining and an oracle."""

import dataclasses
import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from metastep._records import Estimate
from metastep.experiments.core import Claim, Experiment, Report, verdict_of
from metastep.experiments.networks import network_learner, train
from metastep.report import style
from metastep.report.lines import Series, draw
from metastep.tasks import KnownSinusoid, Sinusoid
from metastep.train import Learner
from metastep.train.evaluate import compile_judge


@dataclasses.dataclass(frozen=True)
class Config:
    """One inner step on 10 examples at alpha = 0.01, Adam at 1e-3; other K only when judged.

    Which of two nearly equal errors is lower is luck of a training: a task's error is its mean over `trainings`.
    """

    iterations: int = 3000
    tasks_per_step: int = 25
    train_shots: int = 10
    shots: tuple[int, ...] = (5, 10)
    alpha: float = 0.01
    pretrained_alphas: tuple[float, ...] = (0.001, 0.005, 0.01, 0.02)
    meta_lr: float = 1e-3
    steps: int = 5
    trainings: int = 1
    test_tasks: int = 300
    test_queries: int = 50


def _learner(config: Config, name: str, inputs: int = 1) -> Learner:
    return network_learner(
        (40, 40),
        config.tasks_per_step,
        inputs=inputs,
        name=name,
        alpha=config.alpha,
        meta_lr=config.meta_lr,
    )


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Train the three models, and judge them on the same held-out tasks after 0 ... steps inner steps."""
    train_key, tune_key, test_key = jax.random.split(jax.random.key(seed), 3)
    family = Sinusoid(shots=config.train_shots, queries=config.train_shots)
    told = KnownSinusoid(config.train_shots, family)
    maml, oracle = _learner(config, "maml"), _learner(config, "erm", inputs=3)
    models = (
        ("maml", maml, family),
        ("pretrained", _learner(config, "erm"), family),
        ("oracle", oracle, told),
    )
    params = {name: [] for name, *_ in models}
    for number in range(config.trainings):
        keys = jax.random.split(jax.random.fold_in(train_key, number), len(models))
        for (name, learner, tasks), key in zip(models, keys, strict=True):
            start_key, task_key = jax.random.split(key)
            tell = partial(report, name if config.trainings == 1 else f"{name}, {number + 1}")
            params[name].append(train(learner, tasks, start_key, task_key, config.iterations, tell))
    curves = {
        str(shots): _judge(config, maml, params, shots, tune_key, test_key)
        for shots in config.shots
    }
    judge = compile_judge(oracle, 0, config.test_tasks)
    told = KnownSinusoid(config.test_queries, family)
    tasks = [judge(one, jnp.asarray(0.0), told, test_key).losses for one in params["oracle"]]
    level = Estimate.of(np.mean(tasks, axis=0)[:, 0])
    return {"curves": curves, "oracle": dataclasses.asdict(level), "iterations": config.iterations}


def _judge(
    config: Config, learner: Learner, params: dict, shots: int, tune_key: Array, test_key: Array
) -> dict[str, Any]:
    """Loss after each inner step; pretraining adapts at whichever rate does best on other tasks."""
    family = Sinusoid(shots=shots, queries=config.test_queries)
    # Plain gradient steps, as in the paper.
    judge = compile_judge(learner, config.steps, config.test_tasks, halvings=0)

    def losses(name: str, alpha: float, key: Array) -> np.ndarray:
        found = [judge(one, jnp.asarray(alpha), family, key).losses for one in params[name]]
        return np.mean(found, axis=0)

    tuned = [
        np.nan_to_num(losses("pretrained", alpha, tune_key)[:, -1].mean(), nan=np.inf)
        for alpha in config.pretrained_alphas
    ]
    chosen = config.pretrained_alphas[int(np.argmin(tuned))]
    return {
        "maml": _summary(losses("maml", config.alpha, test_key)),
        "pretrained": _summary(losses("pretrained", chosen, test_key)),
        "pretrained_alpha": chosen,
    }


def _summary(losses: np.ndarray) -> dict[str, list[float]]:
    """Mean, half-width of its 95 % interval and median for each number of steps, from (tasks, steps + 1).

    One task on which adaptation diverges takes the mean along, but not the median.
    """
    estimates = [Estimate.of(column) for column in losses.T]
    median = np.median(np.nan_to_num(losses, nan=np.inf), axis=0)
    return {
        "mean": [e.mean for e in estimates],
        "ci95": [e.ci95 for e in estimates],
        "median": median.tolist(),
    }


def _mean(curve: dict[str, Any]) -> list[float]:
    """Mean error after each number of steps, infinite where it diverged."""
    return [math.inf if mean is None else mean for mean in curve["mean"]]


@style.styled
def plot(records: dict[str, Any]) -> Figure:
    """Error against inner steps, one panel for each K; what diverged leaves the panel."""
    curves, oracle = records["curves"], records["oracle"]
    figure, axes = style.new_figure(1, len(curves))
    for panel, (shots, found) in zip(axes, curves.items(), strict=True):
        steps = np.arange(len(found["maml"]["mean"]))
        level = np.full(len(steps), oracle["mean"])
        lines = [
            Series("pretrained", steps, found["pretrained"]["mean"], found["pretrained"]["ci95"],
                   style.BEFORE, marker="s"),
            Series("MAML", steps, _mean(found["maml"]), found["maml"]["ci95"], style.AFTER, marker="o"),
            Series("MAML, median task", steps, found["maml"]["median"], None, style.AFTER, ":"),
            Series("oracle", steps, level, None, style.TRUTH, "--"),
        ]  # fmt: skip
        draw(panel, lines, "inner steps", "squared error", log_y=True, title=f"K = {shots}")
        panel.set_ylim(0.5 * oracle["mean"], 3 * found["maml"]["mean"][0])
    style.legend_below(figure, columns=4)
    return figure


def claims(records: dict[str, Any]) -> list[Claim]:
    """What the paper reads off its Fig. 3."""
    found: list[Claim] = []
    for shots, curves in records["curves"].items():
        found += [
            _one_step(shots, curves),
            _goes_on(shots, curves),
            _never_catches_up(shots, curves),
        ]
    return [*found, _oracle_bounds(records)]


def _one_step(shots: str, curves: dict[str, Any]) -> Claim:
    maml, other = curves["maml"], curves["pretrained"]
    gap = other["mean"][1] - maml["mean"][1]
    noise = math.hypot(maml["ci95"][1], other["ci95"][1])
    return Claim(
        f"After one gradient step on K = {shots} examples MAML is far better than pretraining",
        "Finn et al., section 5.1, Fig. 3",
        "difference of the mean errors after one step; holds if above its 95 % interval",
        verdict_of(gap > noise),
        f"MAML {maml['mean'][0]:.2f} to {maml['mean'][1]:.2f}; pretrained {other['mean'][0]:.2f} to "
        f"{other['mean'][1]:.2f}; difference {gap:.2f} ± {noise:.2f}",
    )


def _goes_on(shots: str, curves: dict[str, Any]) -> Claim:
    mean, width, median = _mean(curves["maml"]), curves["maml"]["ci95"], curves["maml"]["median"]
    rise = max(b - a if math.isfinite(b) else math.inf for a, b in itertools.pairwise(mean))
    return Claim(
        f"MAML goes on improving with more steps than it was trained for, without overfitting (K = {shots})",
        "Finn et al., section 5.1, Fig. 3",
        "error after the last step below that after one, and no step raises it by more than the interval",
        verdict_of(mean[-1] < mean[1] and rise < width[1]),
        f"{mean[1]:.3f} after one step, {mean[-1]:.3f} after {len(mean) - 1}; largest rise {rise:.3g}; median task "
        f"{median[1]:.3f} to {median[-1]:.3f}",
    )


def _never_catches_up(shots: str, curves: dict[str, Any]) -> Claim:
    maml, other = _mean(curves["maml"]), _mean(curves["pretrained"])
    return Claim(
        f"Pretraining with a tuned rate doesn't reach in {len(other) - 1} steps what MAML reaches (K = {shots})",
        "Finn et al., section 5.1, Fig. 3",
        "lowest error of each over the steps; holds if pretraining's is the larger",
        verdict_of(min(other) > min(maml)),
        f"pretrained {min(other):.3f} at α = {curves['pretrained_alpha']:g}, MAML {min(maml):.3f}",
    )


def _oracle_bounds(records: dict[str, Any]) -> Claim:
    oracle = records["oracle"]["mean"]
    best = min(min(_mean(curves["maml"])) for curves in records["curves"].values())
    return Claim(
        "An oracle that is told amplitude and phase is better than any adaptation",
        "Finn et al., section 5.1",
        "error of the oracle against the lowest of MAML over K and steps",
        verdict_of(oracle < best),
        f"oracle {oracle:.4f}, MAML {best:.3f}",
    )


EXPERIMENT = Experiment(
    name="finn-sinusoid",
    title="Sinusoid error against adaptation steps: MAML, pretraining and an oracle, K = 5 and 10",
    paper="finn2017",
    quick=Config(),
    paper_scale=Config(
        iterations=70_000,
        trainings=3,
        steps=10,
        pretrained_alphas=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
        test_tasks=600,
        test_queries=100,
    ),
    run=run,
    plot=plot,
    claims=claims,
    float64=False,
)
