"""Fallah et al.: how far the gradient of F-hat, which adapts on samples, is from that of F."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from metastep import theory
from metastep._types import Batch
from metastep.experiments.core import Claim, Experiment, Report, from_to, log_slope, verdict_of
from metastep.experiments.logcosh import Problem, draw_problem, task_loss
from metastep.report import style
from metastep.report.lines import Series, line_figure

_TOGETHER = 100  # draws of F-hat in memory at once


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the problem and of the batches D of F-hat; how often these are drawn, and at how many w."""

    tasks: int = 12
    points: int = 24
    dim: int = 2
    supports: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    draws: int = 2000
    places: int = 3


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """The gap between the gradients of F-hat and F for every batch size, beside the bound."""
    report("F-hat against F", 0, 1)
    problem = draw_problem(
        config, seed, 1 / 6
    )  # the largest alpha that the theorem for MAML allows
    gaps = _gaps(problem, np.random.default_rng(seed), config)
    return {"constants": problem.constants.record(), "alpha": problem.alpha, "gaps": gaps}


def _weighted_loss(params: Array, data: tuple[Batch, Array]) -> Array:
    """A task's loss with a weight for each example: a batch drawn with replacement is a vector of counts."""
    task, weights = data
    return task_loss(params, Batch(task.x, task.y * weights[:, None] * weights.size))


def _gaps(
    problem: Problem, generator: np.random.Generator, config: Config
) -> list[dict[str, float]]:
    """|grad F-hat - grad F| for each batch size D, the largest over a few places, beside the bound.

    grad F-hat is a mean over draws of D. Its first-order part in the counts has mean zero and is taken off
    each draw, as its scatter would hide the gap.
    """
    even = np.full(config.points, 1 / config.points)
    uniform = jnp.tile(even, (config.tasks, 1))
    whole = (problem.tasks, uniform)

    def gradient(w: Array, weights: Float[Array, "tasks points"]) -> Array:
        supports = jax.tree.map(lambda a: a[:, None], (problem.tasks, weights))
        return theory.sampled_meta_gradient(_weighted_loss, w, whole, supports, problem.alpha)

    def second_order(w: Array, weights: Float[Array, "tasks points"]) -> Array:
        exact, linear = jax.jvp(lambda p: gradient(w, p), (uniform,), (weights - uniform,))
        return gradient(w, weights) - exact - linear

    def at_place(w: Array, draws: Float[Array, "draws tasks points"]) -> Array:
        return jax.lax.map(lambda weights: second_order(w, weights), draws, batch_size=_TOGETHER)

    over_draws = jax.jit(jax.vmap(at_place, (0, None)))
    places = 2 * generator.standard_normal((config.places, config.dim))
    rows = []
    for size in config.supports:
        weights = generator.multinomial(size, even, size=(config.draws, config.tasks)) / size
        terms = np.asarray(over_draws(places, weights))  # (places, draws, dim)
        gap = np.linalg.norm(terms.mean(axis=1), axis=-1)
        error = np.sqrt(terms.var(axis=1).sum(axis=-1) / config.draws)
        bound = problem.known(theory.sampling_gap_bound)(support_size=float(size))
        worst = int(np.argmax(gap))
        rows.append({
            "support": size, "gap": float(gap[worst]), "error": float(error[worst]),
            "place": places[worst].tolist(), "bound": float(bound),
        })  # fmt: skip
    return rows


def plot(records: dict[str, Any]) -> Figure:
    """The gap over D, and the bound of the theorem."""
    rows = records["gaps"]
    sizes, gaps, bounds = ([row[name] for row in rows] for name in ("support", "gap", "bound"))
    errors = [2 * row["error"] for row in rows]
    lines = [
        Series("measured", sizes, gaps, errors, style.BLUE, marker="o"),
        Series("theorem", sizes, bounds, None, style.PREDICTED, "--"),
    ]
    return line_figure(lines, "examples D of the inner step", "‖∇F̂ − ∇F‖", True, True)


def claims(records: dict[str, Any]) -> list[Claim]:
    """The theorem on F-hat, and whether its rate is that of the gap."""
    return [_bounded(records["gaps"]), _as_fast_as_the_bound(records["gaps"])]


def _bounded(rows: list[dict[str, float]]) -> Claim:
    ratios = [row["bound"] / row["gap"] for row in rows]
    return Claim(
        "‖∇F̂ − ∇F‖ is at most 2 α L σ̃ / √D + α² L σ_H σ̃ / D",
        "Fallah et al., theorem on F and F̂",
        "largest measured gap over a few w for each D; holds if below the bound for all",
        verdict_of(min(ratios) >= 1),
        f"the bound is {from_to(ratios, '.0f')} times the gap over D = "
        f"{rows[0]['support']} to {rows[-1]['support']}",
    )


def _as_fast_as_the_bound(rows: list[dict[str, float]]) -> Claim:
    claim = partial(
        Claim,
        "The rate of that bound, 1 / √D, is the rate of the gap itself",
        "Fallah et al., theorem on F and F̂",
        "log-log slope of the measured gap over D; holds if -0.4 to -0.6",
    )
    # Beyond twice its standard error a gap is known well enough to fit a power to.
    known = [row for row in rows if row["gap"] > 4 * row["error"]]
    if len(known) < 3:
        return claim("not tested", "too few draws to see the gap")
    slope = log_slope([row["support"] for row in known], [row["gap"] for row in known])
    met = -0.6 < slope < -0.4
    evidence = (
        f"slope {slope:.2f} over D = {known[0]['support']} to {known[-1]['support']}: the leading term of the bound "
        "is " + ("met" if met else "not met, the gap is of second order in the noise")
    )
    return claim(verdict_of(met), evidence)


EXPERIMENT = Experiment(
    name="fallah-surrogate",
    title="The gradient of F-hat against that of F, over the size of the support batch",
    paper="fallah2020",
    quick=Config(),
    paper_scale=Config(
        tasks=20, points=50, dim=3, supports=(1, 2, 4, 8, 16, 32, 64, 128), draws=4000
    ),
    run=run,
    plot=plot,
    claims=claims,
)
