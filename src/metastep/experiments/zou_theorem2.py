"""Zou et al., Theorem 2: is MAML's initialisation nearer to new tasks than ERM's, and up to which alpha?"""

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metastep import theory
from metastep.experiments.core import Claim, Experiment, Report, verdict_of
from metastep.experiments.linear_designs import EXPONENTIAL, UNIFORM, WIDE_NORMAL, ScaledLaw
from metastep.report import style
from metastep.report.lines import Series, draw

_LAWS = (UNIFORM, WIDE_NORMAL, EXPONENTIAL)  # the three of Fig. 5
_SMALL = 0.01  # of alpha_lim: small enough for the first-order term, far from rounding


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of section H.3, the rates in multiples of alpha_lim, and the steps t that follow."""

    tasks: int = 120
    test_tasks: int = 120
    shots: int = 50
    dim: int = 20
    task_var: float = 3.0
    eta: float = 1e-5
    steps: tuple[int, ...] = (0, 1000)
    highest: float = 1.5
    rates: int = 31
    random_sets: int = 500


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """The expected gap F_t(w_m) - F_t(w_r) over alpha for each law, and its first-order term."""
    rng = np.random.default_rng(seed)
    laws = []
    for index, law in enumerate(_LAWS):
        report(f"x ~ {law.title}", index, len(_LAWS) + 1)
        laws.append(_of_law(config, rng, law) | {"title": law.title})
    report("first-order term of random task sets", len(_LAWS), len(_LAWS) + 1)
    return {"laws": laws, "random_sets": _random_sets(rng, config.random_sets)}


def _of_law(config: Config, rng: np.random.Generator, law: ScaledLaw) -> dict[str, Any]:
    sizes = (config.tasks, config.test_tasks)
    phi, test = (law.draw(rng, (tasks, config.shots, config.dim)) for tasks in sizes)
    limit = float(theory.limit_rate(test))
    multiples = np.array([_SMALL, *np.linspace(0, config.highest, config.rates)[1:]])
    gap = partial(theory.distance_gap, phi, eta=config.eta, task_var=config.task_var, phi_test=test)
    gaps = {f"t={t}": gap(limit * multiples, steps=t) for t in config.steps}
    return {
        "alpha_lim": limit,
        "gaps": {"multiple": multiples, **gaps},
        "small": {t: float(gap[0]) for t, gap in gaps.items()},
        "first_order": {
            f"t={t}": float(gap(_SMALL * limit, steps=t, linearised=True)) for t in config.steps
        },
        "sign_change": float(theory.sign_change_rate(phi, config.eta, 0, phi_test=test)),
        "bound": float(theory.distance_rate_bound(phi)),
        "bound_as_printed": float(theory.distance_rate_bound_as_printed(phi)),
    }


def _random_sets(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """First-order gaps of small sets of tasks whose Gram matrices neither commute nor are diagonal."""
    phi = rng.standard_normal((count, 2, 4, 3)) * rng.lognormal(size=(count, 2, 1, 1))

    def relative(features: Array) -> Array:
        gap = theory.distance_gap(features, 1.0, 0.0, 0, linearised=True)
        return gap / jax.numpy.abs(theory.distance_gap(features, 0.5, 0.0, 0))

    gaps = np.asarray(jax.jit(jax.vmap(relative))(phi))
    return {"count": count, "positive": int((gaps > 0).sum()), "largest": float(gaps.max())}


def plot(records: dict[str, Any]) -> Figure:
    """The gap over alpha / alpha_lim, one panel for each law, one line for each number of steps."""
    laws = records["laws"]
    figure, axes = style.new_figure(1, len(laws), panel=(4.4, 3.6))
    for panel, law in zip(axes, laws, strict=True):
        _draw_law(panel, law)
    style.legend_below(figure, columns=5)
    return figure


@style.styled
def _draw_law(axes: Axes, law: dict[str, Any]) -> None:
    columns = dict(law["gaps"])
    x = [0.0, *columns.pop("multiple")]
    lines = [
        Series(f"after {name.removeprefix('t=')} steps", x, [0.0, *gap], line=line)
        for (name, gap), line in zip(columns.items(), ("-", "--", ":", "-."), strict=False)
    ]
    slope = law["first_order"]["t=0"] / _SMALL
    lines.append(
        Series("first order in α, t = 0", x, slope * np.asarray(x), None, style.GREY, "--")
    )
    draw(
        axes,
        lines,
        r"$\alpha / \alpha_{lim}$",
        "$F_t(w_m) - F_t(w_r)$",
        title=f"x ~ {law['title']}",
    )
    lowest = min(min(gap) for gap in columns.values())
    axes.set_ylim(1.25 * lowest, 1.25 * abs(lowest))
    axes.axhline(0, color=style.BLACK, linewidth=1)
    change = law["sign_change"] / law["alpha_lim"]
    axes.plot([change], [0], "o", color=style.VERMILLION, label="change of sign")


def claims(records: dict[str, Any]) -> list[Claim]:
    """Theorem 2 in its parts, and what section 3.2 says of alpha_lim."""
    laws = records["laws"]
    return [
        *(_nearer_when_small(law) for law in laws),
        _first_order_never_positive(records["random_sets"]),
        _fades(laws),
        *(_nearest_at_limit(law) for law in laws),
        _bound(laws),
    ]


def _nearer_when_small(law: dict[str, Any]) -> Claim:
    small, linear = law["small"], law["first_order"]
    error = max(abs(small[t] / linear[t] - 1) for t in small)
    return Claim(
        f"x ~ {law['title']}: for small α MAML is nearer to the optima in expectation, after any number "
        "of steps",
        "Zou et al. (2022), Theorem 2",
        f"exact expected gap at {_SMALL} α_lim after t steps; holds if negative for every t",
        verdict_of(all(gap < 0 for gap in small.values())),
        ", ".join(f"{gap:.2e} ({t})" for t, gap in small.items())
        + f"; the first-order term is within {error:.1%}",
    )


def _first_order_never_positive(found: dict[str, Any]) -> Claim:
    return Claim(
        "The first-order gap is never positive, also without the diagonal features that the theorem assumes",
        "beyond Zou et al. (2022), Theorem 2",
        "random pairs of tasks whose Gram matrices do not commute, of very different size",
        verdict_of(found["positive"] == 0),
        f"positive in {found['positive']} of {found['count']} sets",
    )


def _fades(laws: list[dict[str, Any]]) -> Claim:
    falls = [list(law["small"].values()) for law in laws]
    shrinking = all(abs(b) <= abs(a) for gaps in falls for a, b in itertools.pairwise(gaps))
    left = ", ".join(f"{gaps[-1] / gaps[0]:.1%}" for gaps in falls)
    return Claim(
        "The gap fades as the number of steps grows",
        "Zou et al. (2022), text after Theorem 2",
        "size of the expected gap after more and more steps; holds if it never grows",
        verdict_of(shrinking),
        f"left after {list(laws[0]['small'])[-1]}: {left} of that before adaptation",
    )


def _nearest_at_limit(law: dict[str, Any]) -> Claim:
    multiples, gaps = np.asarray(law["gaps"]["multiple"]), np.asarray(law["gaps"]["t=0"])
    best = float(multiples[gaps.argmin()])
    at_limit = float(np.interp(1.0, multiples, gaps))
    change = law["sign_change"]
    return Claim(
        f"x ~ {law['title']}: MAML at α_lim is nearest to the task optima",
        "Zou et al. (2022), section 3.2",
        "least expected gap before adaptation over a grid of rates; holds if within 10 % of α_lim",
        verdict_of(abs(best - 1) <= 0.1),
        f"least at {best:.2f} α_lim; at α_lim the gap is {at_limit:+.2e}"
        + (f" and ERM is nearer from {change / law['alpha_lim']:.2f} α_lim on" if change else
           ", and it changes its sign nowhere up to 4 α_lim"),
    )  # fmt: skip


def _bound(laws: list[dict[str, Any]]) -> Claim:
    pairs = [(law["bound_as_printed"], law["sign_change"] or np.inf) for law in laws]
    share = max(bound / change for bound, change in pairs)
    # A range a thousand times too small is true, but no guide to any rate in use.
    return Claim(
        "MAML is nearer for every α up to the printed bound",
        "Zou et al. (2022), Theorem 2 and equation G.42",
        "printed bound against the exact change of sign; with a condition if below a thousandth of it",
        verdict_of(1e-3 < share <= 1, with_condition=share <= 1),
        f"bounds {', '.join(f'{bound:.1e}' for bound, _ in pairs)}: at most {share:.0e} of the rate at "
        "which the sign changes",
    )


EXPERIMENT = Experiment(
    name="zou-theorem2",
    title="expected distance to the task optima, MAML's minus ERM's, over α",
    paper="zou2022",
    quick=Config(),
    paper_scale=Config(
        tasks=5000, test_tasks=5000, steps=(0, 1000, 10_000), rates=61, random_sets=20_000
    ),
    run=run,
    plot=plot,
    claims=claims,
)
