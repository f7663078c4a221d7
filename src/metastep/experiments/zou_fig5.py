"""Zou et al., Fig. 5: is MAML's initialisation better than ERM's after t steps, in loss and in distance?"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from metastep import theory
from metastep.experiments.core import Claim, Experiment, Report, verdict_of
from metastep.experiments.linear_designs import EXPONENTIAL, UNIFORM, WIDE_NORMAL, ScaledLaw
from metastep.report import style
from metastep.report.lines import Series, draw

_LAWS = {one.law: one for one in (WIDE_NORMAL, UNIFORM, EXPONENTIAL)}
_QUANTITIES = {"loss": "(a) loss gap, MAML - ERM", "distance": "(b) distance gap, MAML - ERM"}


@dataclasses.dataclass(frozen=True)
class Config:
    """`repeats` samples of the optima are drawn; the paper shows one. Its range of t is not legible."""

    tasks: int = 300
    shots: int = 50
    dim: int = 20
    alpha: float = 1e-4
    eta: float = 1e-5
    task_var: float = 3.0
    repeats: int = 24
    steps: tuple[int, ...] = (0, 10, 20, 50, 100, 200, 500, 1000, 1500, 2000)


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Loss and distance gaps, MAML minus ERM, along t: in expectation over optima and sampled."""
    laws = {}
    for done, (name, law) in enumerate(_LAWS.items()):
        report(law.title, done, len(_LAWS))
        laws[name] = _of_law(config, law, np.random.default_rng((seed, done)))
    return {"laws": laws}


def _of_law(config: Config, law: ScaledLaw, rng: np.random.Generator) -> dict[str, Any]:
    shape = (config.tasks, config.shots, config.dim)
    train, test = (law.draw(rng, shape) for _ in range(2))
    curve = theory.adaptation_curve(test, config.eta)
    expected = curve.expected_gap(train, config.alpha, config.steps, config.task_var)
    sampled, at_optimum = _samples(config, rng, train, curve)
    examples = config.tasks * config.shots  # the figure's loss is the sum over all of them
    return {
        "t": list(config.steps),
        "train_loss_gap": examples * at_optimum,
        "loss": _summary(examples * expected.loss, examples * sampled.loss),
        "distance": _summary(expected.distance, sampled.distance),
    }


def _samples(
    config: Config, rng: np.random.Generator, train: np.ndarray, curve: theory.AdaptationCurve
) -> tuple[theory.AfterSteps, np.ndarray]:
    """Gaps of `repeats` samples of optima, (repeats, steps), and the loss gap at t = 0 on training tasks."""
    gaps, at_optimum = [], []
    for _ in range(config.repeats):
        optima, fresh = config.task_var**0.5 * rng.standard_normal((2, config.tasks, config.dim))
        risks = theory.risk_curve(train, optima)
        erm, maml = risks.minimisers(np.array([0.0, config.alpha]))
        at_optimum.append(risks.risks_at(maml, 0.0) - risks.risks_at(erm, 0.0))
        gaps.append(curve.gap(maml, erm, fresh, config.steps))
    return jax.tree.map(lambda *parts: jnp.stack(parts), *gaps), np.array(at_optimum)


def _summary(expected: Array, sampled: Array) -> dict[str, Any]:
    return {
        "expected": expected,
        "sampled": sampled[0],
        "share_negative": (sampled < 0).mean(0),
        "share_always_negative": float((sampled < 0).all(1).mean()),
    }


def plot(records: dict[str, Any]) -> Figure:
    """Loss gap above, distance gap below; one column per law."""
    figure, axes = style.new_figure(2, 3, panel=(4.3, 3.3))
    for row, (name, label) in enumerate(_QUANTITIES.items()):
        for column, (law, one) in enumerate(records["laws"].items()):
            gaps, panel = one[name], axes[3 * row + column]
            panel.axhline(0, color=style.BLACK, linewidth=1)
            series = [
                Series("expected", one["t"], gaps["expected"], color=style.PREDICTED),
                Series("one sample", one["t"], gaps["sampled"], None, style.AFTER, "--"),
            ]
            draw(panel, series, "adaptation steps t", label, title=_LAWS[law].title)
            panel.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    style.legend_below(figure)
    return figure


def claims(records: dict[str, Any]) -> list[Claim]:
    """Fig. 5 (a), (b) in expectation and per sample, and the limit of many steps."""
    laws = records["laws"]
    return [_distance_expected(laws), _distance_sampled(laws), _vanishes(laws), _loss(laws)]


def _each(laws: dict[str, Any], describe) -> str:
    return "; ".join(f"{_LAWS[law].title}: {describe(one)}" for law, one in laws.items())


def _distance_expected(laws: dict[str, Any]) -> Claim:
    highest = {law: max(one["distance"]["expected"]) for law, one in laws.items()}
    return Claim(
        "At every number of steps, 0 included, MAML's initialisation is closer to the optima than ERM's",
        "Zou et al. (2022), Fig. 5 (b) and Theorem 2",
        "expected gap F_t(w_m) - F_t(w_r) over optima, exact for the sampled features: below 0 at each t",
        verdict_of(max(highest.values()) < 0),
        _each(laws, lambda one: f"{one['distance']['expected'][0]:.2e} at t = 0"),
    )


def _distance_sampled(laws: dict[str, Any]) -> Claim:
    shares = [one["distance"]["share_always_negative"] for one in laws.values()]
    return Claim(
        "The same in every experiment, not only on average",
        "Zou et al. (2022), section 5.3: always smaller",
        "share of sampled sets of optima with a negative gap at every t; holds with a condition from 3/4 on",
        verdict_of(min(shares) == 1, with_condition=min(shares) >= 0.75),
        _each(laws, lambda one: f"{one['distance']['share_always_negative']:.0%} of samples"),
    )


def _vanishes(laws: dict[str, Any]) -> Claim:
    shrinking = all(
        np.all(np.diff(np.abs(one["distance"]["expected"])) < 0) for one in laws.values()
    )
    return Claim(
        "The gap in distance disappears as the steps increase",
        "Zou et al. (2022), section 3.2",
        "|expected gap| falls from each t to the next",
        verdict_of(shrinking),
        _each(
            laws,
            lambda one: (
                f"{one['distance']['expected'][-1] / one['distance']['expected'][0]:.1%} of "
                f"the gap is left at t = {one['t'][-1]}"
            ),
        ),
    )


def _loss(laws: dict[str, Any]) -> Claim:
    turning = [
        one["loss"]["expected"][0] > 0 > one["loss"]["expected"][-1] for one in laws.values()
    ]
    trained = all(min(one["train_loss_gap"]) > 0 for one in laws.values())
    return Claim(
        "Before adaptation MAML's loss is marginally higher than ERM's; a few steps make it lower",
        "Zou et al. (2022), Fig. 5 (a)",
        "expected loss gap over fresh test tasks: above 0 at t = 0 and below 0 at the last t, for each law",
        verdict_of(all(turning)),
        _each(
            laws,
            lambda one: (
                f"{one['loss']['expected'][0]:.2e} at t = 0, {one['loss']['expected'][-1]:.2e} "
                f"at t = {one['t'][-1]}, {one['loss']['share_negative'][0]:.0%} of samples negative at 0"
            ),
        )
        + f"; on the training tasks the gap at t = 0 is {'always' if trained else 'not always'} positive, "
        "as it must be where ERM is optimal",
    )


EXPERIMENT = Experiment(
    name="zou-fig5",
    title="loss and distance gap between MAML and ERM along t adaptation steps, three laws",
    paper="zou2022",
    quick=Config(),
    paper_scale=Config(tasks=5000, repeats=20, steps=tuple(range(0, 2001, 100))),
    run=run,
    plot=plot,
    claims=claims,
)
