"""Zou et al., Fig. 1 and 7: the path of the MAML minimiser as alpha grows, after new tasks have joined."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metastep import theory
from metastep.experiments.core import Claim, Experiment, Report, verdict_of
from metastep.report import style

_DESIGNS = (
    ("scaled", "centred", "larger features, x ~ N(0, 2)"),
    ("scaled", "not centred", "larger features, x ~ U(0, 5)"),
    ("re-weighted", "centred", "larger weights, x ~ N(0, 2)"),
    ("re-weighted", "not centred", "larger weights, x ~ U(0, 5)"),
)
_FIRST = 1e-3  # of alpha_lim: the rate that stands for "at the beginning"
_ALMOST_ALL = 0.95  # a share of seeds that leaves room for one unlucky draw in twenty
_SHOWN = (-0.75, 1.0)  # beyond alpha_lim some lines rise to several times this
_NEAR = 0.1  # of alpha_lim: what a reader of Fig. 1 (b) could not tell from alpha_lim


@dataclasses.dataclass(frozen=True)
class Config:
    """Tasks at first and those that join them; how much heavier or larger the new ones are."""

    tasks: int = 500
    new_tasks: int = 20
    shots: int = 10
    task_var: float = 3.0
    place: tuple[float, float] = (6.0, 6.0)
    spread: float = 0.5
    weight: float = 10.0
    feature_scale: float = 2.0
    rates: int = 81
    highest: float = 2.0
    seeds: int = 20


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Per design the path of one seed, and what the mean distance does in all of them."""
    multiples = np.concatenate([[0, _FIRST], np.linspace(0, config.highest, config.rates)[1:]])
    paths = jax.jit(jax.vmap(_path))
    designs = []
    for index, (way, law, title) in enumerate(_DESIGNS):
        report(title, index, len(_DESIGNS))
        draws = [_draw(config, way, law, (seed, one)) for one in range(config.seeds)]
        phi, optima, weights, before = (np.stack(part) for part in zip(*draws, strict=True))
        limits = np.array(
            [theory.limit_rate(x, weights=v) for x, v in zip(phi, weights, strict=True)]
        )
        path = np.asarray(paths(phi, optima, weights, limits[:, None] * multiples))
        without = np.asarray(paths(phi, optima, before, limits[:, None] * multiples))
        distance = np.linalg.norm(path[:, :, None] - optima[:, None], axis=3).mean(2)
        designs.append({
            "way": way, "law": law, "title": title, "alpha_lim": limits,
            "optima": optima[0], "path": path[0], "distance": distance,
            "moved": (path[:, 0] - without[:, 0]) @ np.asarray(config.place),
        })  # fmt: skip
    return {"multiples": multiples, "designs": designs, "new_tasks": config.new_tasks}


def _path(phi: Array, optima: Array, weights: Array, alphas: Array) -> Array:
    """w(alpha) for every alpha."""
    return theory.risk_curve(phi, optima, weights=weights).minimisers(alphas)


def _draw(config: Config, way: str, law: str, seed: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Features and optima of all tasks, their weights, and weights that leave the new ones out."""
    rng = np.random.default_rng(seed)
    total = config.tasks + config.new_tasks
    is_new = np.arange(total) >= config.tasks
    optima = config.task_var**0.5 * rng.standard_normal((total, 2))
    optima[is_new] = config.place + config.spread * rng.standard_normal((config.new_tasks, 2))
    shape = (total, config.shots, 2)
    x = 2**0.5 * rng.standard_normal(shape) if law == "centred" else rng.uniform(0, 5, shape)
    weights = np.where(is_new & (way == "re-weighted"), config.weight, 1.0)
    phi = np.where((is_new & (way == "scaled"))[:, None, None], config.feature_scale * x, x)
    return phi, optima, weights, np.where(is_new, 0.0, 1.0)


def plot(records: dict[str, Any]) -> Figure:
    """Above, the path among the optima; below, the mean distance, one line per seed."""
    figure, axes = style.new_figure(2, len(_DESIGNS), panel=(3.5, 3.2))
    for column, design in enumerate(records["designs"]):
        _draw_path(axes[column], design, records)
        _draw_distance(axes[len(_DESIGNS) + column], design, records)
    style.legend_below(figure, columns=6)
    return figure


@style.styled
def _draw_path(axes: Axes, design: dict[str, Any], records: dict[str, Any]) -> None:
    optima, path = np.asarray(design["optima"]), np.asarray(design["path"])
    old, new = np.split(optima, [-records["new_tasks"]])
    axes.plot(*old.T, ".", color=style.ORANGE, markersize=2.5, alpha=0.6, label="optima of tasks")
    axes.plot(*new.T, ".", color=style.VERMILLION, markersize=4, label="optima of new tasks")
    axes.set(title=design["title"], xlabel="$a_1$", ylabel="$a_2$")
    low, high = path.min(0) - 0.4, path.max(0) + 0.4
    inset = axes.inset_axes((0.62, 0.03, 0.36, 0.36), xticks=[], yticks=[])
    inset.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    inset.grid(False)
    inset.spines[["top", "right"]].set_visible(True)
    for panel, size in ((axes, 9), (inset, 7)):
        panel.plot(*path.T, "-", color=style.PURPLE, label="MAML, α rising")
        mark: Any = {"markeredgecolor": "k", "linestyle": "none"}
        panel.plot(*path[0], "P", color=style.GREEN, markersize=size, label="ERM, α = 0", **mark)
        panel.plot(*path[_at_limit(records)], "*", color="w", markersize=1.4 * size,
                   label=r"MAML, $\alpha_{lim}$", **mark)  # fmt: skip


@style.styled
def _draw_distance(axes: Axes, design: dict[str, Any], records: dict[str, Any]) -> None:
    multiples = np.asarray(records["multiples"])
    lines = np.asarray(design["distance"])
    change = lines - lines[:, :1]
    axes.plot(multiples, change[1:].T, color=style.GREY, linewidth=0.7, alpha=0.6)
    axes.plot([], [], color=style.GREY, label="other seeds")
    axes.plot(multiples, change[0], color=style.PURPLE)
    axes.axvline(1, color=style.BLACK, linestyle=":", linewidth=1)
    axes.set(xlabel=r"$\alpha / \alpha_{lim}$", ylabel="change of mean distance", ylim=_SHOWN)


def _at_limit(records: dict[str, Any]) -> int:
    return int(np.argmin(np.abs(np.asarray(records["multiples"]) - 1)))


def claims(records: dict[str, Any]) -> list[Claim]:
    """The two statements about the mean distance for each design, and the pull of the new tasks."""
    found = [_pulled(records)]
    for design in records["designs"]:
        found += [_decreases_first(design), _least_at_limit(design, records)]
    return found


def _pulled(records: dict[str, Any]) -> Claim:
    moved = np.asarray([design["moved"] for design in records["designs"]])
    return Claim(
        "New tasks with higher penalties pull ERM's solution towards them",
        "Zou et al. (2022), section 3.2 and Fig. 1 (a)",
        "w_r with the new tasks less that without, along the direction of the new tasks, every seed",
        verdict_of(bool((moved > 0).all())),
        f"{int((moved > 0).sum())} of {moved.size} moved towards them",
    )


def _decreases_first(design: dict[str, Any]) -> Claim:
    lines = np.asarray(design["distance"])
    share = float(np.mean(lines[:, 1] < lines[:, 0]))
    return Claim(
        f"{design['title']}: the mean distance to all optima decreases at first as α grows",
        "Zou et al. (2022), Fig. 1 (b), section H.4.1",
        f"sign of its change from α = 0 to {_FIRST} α_lim; holds if in {_ALMOST_ALL:.0%} of seeds, and "
        "with a condition, the draw, if in more than half",
        verdict_of(share >= _ALMOST_ALL, with_condition=share > 0.5),
        f"decreases in {share:.0%} of {len(lines)} seeds",
    )


def _least_at_limit(design: dict[str, Any], records: dict[str, Any]) -> Claim:
    lines, multiples = np.asarray(design["distance"]), np.asarray(records["multiples"])
    places = multiples[lines.argmin(1)]
    near = float(np.mean(np.abs(places - 1) <= _NEAR))
    worse = float(np.mean(lines[:, _at_limit(records)] >= lines[:, 0]))
    return Claim(
        f"{design['title']}: the mean distance is least at α_lim",
        "Zou et al. (2022), section 3.2",
        f"place of the least mean distance on [0, {multiples[-1]:g} α_lim]; holds if within {_NEAR:.0%} "
        f"of α_lim in {_ALMOST_ALL:.0%} of seeds",
        verdict_of(near >= _ALMOST_ALL),
        f"within {_NEAR:.0%} in {near:.0%} of seeds; median at {np.median(places):.2f} α_lim "
        f"(middle half {np.quantile(places, 0.25):.2f} to {np.quantile(places, 0.75):.2f}); at α_lim no "
        f"nearer than ERM in {worse:.0%}",
    )


EXPERIMENT = Experiment(
    name="zou-fig1",
    title="path of the MAML minimiser over α and its mean distance to the task optima (and Fig. 7)",
    paper="zou2022",
    quick=Config(),
    paper_scale=Config(rates=201, seeds=100),
    run=run,
    plot=plot,
    claims=claims,
)
