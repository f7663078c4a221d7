"""Fallah et al.: how far F-hat is from F, and how loose the step-size rule beta_k = c / L~(w_k) is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from metastep import theory
from metastep._types import Batch
from metastep.experiments.core import Claim, Experiment, Report, log_slope, verdict_of
from metastep.experiments.logcosh import (
    Constants,
    constants,
    draw_indices,
    draw_tasks,
    take_batches,
    task_loss,
)
from metastep.report import style
from metastep.report.lines import Series, draw

_DIVISOR = 12  # beta_k = 1 / (12 L~) in the theorem for MAML
_TOGETHER = 100  # draws of F-hat in memory at once


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the problem, of the batches D of F-hat, and of the descent with the step-size rule."""

    tasks: int = 12
    points: int = 24
    dim: int = 2
    supports: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    draws: int = 2000
    places: int = 3
    pairs: int = 400
    steps: int = 900
    samples: int = 20


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """The gap between the gradients of F-hat and F; the smoothness lemma; a descent by the rule."""
    tasks = draw_tasks(
        jax.random.key(seed), tasks=config.tasks, points=config.points, dim=config.dim
    )
    known, generator = constants(tasks), np.random.default_rng(seed)
    alpha = 1 / (6 * known.smoothness)  # the largest the theorem for MAML allows
    report("F-hat against F", 0, 3)
    gaps = _gaps(tasks, known, alpha, generator, config)
    report("smoothness lemma", 1, 3)
    lemma = _lemma_ratios(tasks, known, alpha, generator, config)
    report("step-size rule", 2, 3)
    return {
        "constants": known.record(),
        "alpha": alpha,
        "gaps": gaps,
        "lemma": lemma,
        "descent": _descent(tasks, known, alpha, generator, config),
    }


def _weighted_loss(params: Array, data: tuple[Batch, Array]) -> Array:
    """A task's loss with a weight for each example: a batch drawn with replacement is a vector of counts."""
    task, weights = data
    return task_loss(params, Batch(task.x, task.y * weights[:, None] * weights.size))


def _gaps(
    tasks: Batch, known: Constants, alpha: float, generator: np.random.Generator, config: Config
) -> list[dict[str, float]]:
    """|grad F-hat - grad F| for each batch size D, the largest over a few places, beside the bound.

    grad F-hat is a mean over draws of D. Its first-order part in the counts has mean zero and is taken off
    each draw, as its scatter would hide the gap.
    """
    count = tasks.x.shape[1]
    uniform = jnp.full((config.tasks, count), 1 / count)
    whole = (tasks, uniform)

    def gradient(w: Array, weights: Float[Array, "tasks points"]) -> Array:
        supports = jax.tree.map(lambda a: a[:, None], (tasks, weights))
        return theory.sampled_meta_gradient(_weighted_loss, w, whole, supports, alpha)

    def second_order(w: Array, weights: Float[Array, "tasks points"]) -> Array:
        exact, linear = jax.jvp(lambda p: gradient(w, p), (uniform,), (weights - uniform,))
        return gradient(w, weights) - exact - linear

    def at_place(w: Array, draws: Float[Array, "draws tasks points"]) -> Array:
        return jax.lax.map(lambda weights: second_order(w, weights), draws, batch_size=_TOGETHER)

    over_draws = jax.jit(jax.vmap(at_place, (0, None)))
    places = jnp.asarray(2 * generator.standard_normal((config.places, config.dim)))
    rows = []
    for size in config.supports:
        shape = (config.draws, config.tasks)
        weights = generator.multinomial(size, np.full(count, 1 / count), size=shape) / size
        terms = np.asarray(over_draws(places, weights))  # (places, draws, dim)
        gap = np.linalg.norm(terms.mean(axis=1), axis=-1)
        error = np.sqrt(terms.var(axis=1).sum(axis=-1) / config.draws)
        bound = known.within(theory.sampling_gap_bound, alpha)(support_size=float(size))
        worst = int(np.argmax(gap))
        rows.append({
            "support": size, "gap": float(gap[worst]), "error": float(error[worst]),
                "place": places[worst].tolist(),
            "bound": float(bound),
        })  # fmt: skip
    return rows


def _exact_gradient(tasks: Batch, alpha: float):
    return lambda w: theory.meta_gradient(task_loss, w, tasks, alpha)


def _local_smoothness(w: Array, tasks: Batch, known: Constants, alpha: float) -> Array:
    """L(w), from the exact gradients of all these tasks; on batches of a few of them L̃(w)."""
    norms = jnp.linalg.norm(jax.vmap(jax.grad(task_loss), (None, 0))(w, tasks), axis=-1)
    return known.within(theory.meta_smoothness, alpha)(norms)


def _lemma_ratios(
    tasks: Batch, known: Constants, alpha: float, generator: np.random.Generator, config: Config
) -> dict[str, float]:
    """|grad F(w) - grad F(u)| / (min(L(w), L(u)) |w - u|) over random pairs near and far."""
    gradient = _exact_gradient(tasks, alpha)
    w = jnp.asarray(3 * generator.standard_normal((config.pairs, config.dim)))
    lengths = np.geomspace(1e-3, 3, config.pairs)[:, None]
    u = w + jnp.asarray(lengths * generator.standard_normal((config.pairs, config.dim)))

    def ratio(w: Array, u: Array) -> Array:
        local = jnp.minimum(
            _local_smoothness(w, tasks, known, alpha), _local_smoothness(u, tasks, known, alpha)
        )
        return jnp.linalg.norm(gradient(w) - gradient(u)) / (local * jnp.linalg.norm(w - u))

    ratios = np.asarray(jax.jit(jax.vmap(ratio))(w, u))
    return {"largest": float(ratios.max()), "median": float(np.median(ratios))}


def _descent(
    tasks: Batch, known: Constants, alpha: float, generator: np.random.Generator, config: Config
) -> dict[str, Any]:
    """Gradient descent on F by the rule with estimated L~, beside what the true curvature would allow.

    The estimate takes the smallest batches that the lemma allows.
    """
    sizes = known.within(theory.batch_size_conditions, alpha)("maml")
    step_tasks, step_size = int(sizes.step_tasks), int(sizes.step_size)
    gradient = _exact_gradient(tasks, alpha)

    def step(w: Array, index: Array) -> tuple[Array, dict[str, Array]]:
        """`index` : (samples, B', 1 + D_beta); the first sample takes the step, all of them test the lemma."""

        def estimate(one: Array) -> Array:
            (batch,) = take_batches(tasks, one, (step_size,))
            return _local_smoothness(w, batch, known, alpha)

        estimates = jax.vmap(estimate)(index)
        local = _local_smoothness(w, tasks, known, alpha)
        seen = {
            "norm": jnp.linalg.norm(gradient(w)),
            "beta": 1 / (_DIVISOR * estimates[0]),
            "sharpness": jnp.linalg.eigvalsh(jax.jacfwd(gradient)(w))[-1],
            "local": local,
            "first_moment": jnp.mean(local / estimates),
            "second_moment": jnp.mean((local / estimates) ** 2),
        }
        return w - seen["beta"] * gradient(w), seen

    def by_sharpness(w: Array, _: None) -> tuple[Array, Array]:
        """Steps of 1 / lambda_max, bounded where F is flat."""
        sharpness = jnp.linalg.eigvalsh(jax.jacfwd(gradient)(w))[-1]
        beta = 1 / jnp.maximum(sharpness, known.smoothness / 10)
        return w - beta * gradient(w), jnp.linalg.norm(gradient(w))

    start = jnp.full(config.dim, 3.0)
    index = draw_indices(generator, tasks, (config.steps, config.samples, step_tasks), step_size)
    _, seen = jax.jit(lambda w, i: jax.lax.scan(step, w, i))(start, index)
    _, quick = jax.jit(lambda w: jax.lax.scan(by_sharpness, w, None, length=config.steps))(start)
    record = {name: np.asarray(values).tolist() for name, values in seen.items()}
    return record | {
        "fast_norm": np.asarray(quick).tolist(),
        "step_tasks": step_tasks,
        "step_size": step_size,
    }


@style.styled
def plot(records: dict[str, Any]) -> Figure:
    """The gap over D; the meta rate of the rule; and how much slower it is."""
    figure, (gap, rate, path) = style.new_figure(1, 3)
    rows, descent = records["gaps"], records["descent"]
    size = [row["support"] for row in rows]
    lines = [
        Series("measured", size, [r["gap"] for r in rows], [2 * r["error"] for r in rows], style.BLUE,
               marker="o"),
        Series("theorem", size, [r["bound"] for r in rows], None, style.PREDICTED, "--"),
    ]  # fmt: skip
    draw(gap, lines, "examples D of the inner step", "‖∇F̂ − ∇F‖", True, True, "F̂ against F")
    steps = range(len(descent["beta"]))
    curvature = np.array(descent["sharpness"])
    edge = np.where(curvature > 0, 2 / np.where(curvature > 0, curvature, 1), np.nan)
    lines = [
        Series("β_k = 1 / (12 L̃(w_k))", steps, descent["beta"], color=style.BLUE),
        Series("edge of stability 2 / λ_max(∇²F)", steps, edge, color=style.BLACK, line=":"),
    ]
    draw(rate, lines, "meta-step", "meta rate β", log_y=True, title="step-size rule")
    lines = [
        Series("β_k = 1 / (12 L̃(w_k))", steps, descent["norm"], color=style.BLUE),
        Series("β = 1 / λ_max(∇²F)", steps, np.maximum(descent["fast_norm"], 1e-16),
               color=style.GREEN),
    ]  # fmt: skip
    draw(path, lines, "meta-step", "‖∇F(w_k)‖", log_y=True, title="descent on F")
    style.legend_below(figure, columns=3)
    return figure


def claims(records: dict[str, Any]) -> list[Claim]:
    """The theorem on F-hat and the lemmas on smoothness and step size."""
    return [*_gap_claims(records["gaps"]), _lemma_claim(records), *_rule_claims(records)]


def _gap_claims(rows: list[dict[str, float]]) -> list[Claim]:
    source = "Fallah et al., theorem on F and F̂"
    ratios = [row["bound"] / row["gap"] for row in rows]
    # Beyond twice its standard error a gap is known well enough to fit a power to.
    known = [row for row in rows if row["gap"] > 4 * row["error"]]
    sizes, gaps = [row["support"] for row in known], [row["gap"] for row in known]
    bound = Claim(
        "‖∇F̂ − ∇F‖ is at most 2 α L σ̃ / √D + α² L σ_H σ̃ / D",
        source,
        "largest measured gap over a few w for each D; holds if below the bound for all",
        verdict_of(min(ratios) >= 1),
        f"the bound is {min(ratios):.0f} to {max(ratios):.0f} times the gap over D = "
        f"{rows[0]['support']} to {rows[-1]['support']}",
    )
    text = "The rate of that bound, 1 / √D, is the rate of the gap itself"
    test = "log-log slope of the measured gap over D; holds if -0.4 to -0.6"
    if len(known) < 3:
        return [bound, Claim(text, source, test, "not tested", "too few draws to see the gap")]
    slope = log_slope(sizes, gaps)
    evidence = (
        f"slope {slope:.2f} over D = {sizes[0]} to {sizes[-1]}: the leading term of the bound is "
    )
    tightness = "met" if -0.6 < slope < -0.4 else "not met, the gap is of second order in the noise"
    return [bound, Claim(text, source, test, verdict_of(-0.6 < slope < -0.4), evidence + tightness)]


def _lemma_claim(records: dict[str, Any]) -> Claim:
    lemma = records["lemma"]
    return Claim(
        "‖∇F(w) − ∇F(u)‖ is at most min(L(w), L(u)) ‖w − u‖, L(w) = 4L + 2ρα E‖∇f_i(w)‖",
        "Fallah et al., smoothness lemma",
        "random pairs, near and far; holds if the ratio of the two sides stays below 1",
        verdict_of(lemma["largest"] <= 1),
        f"largest ratio {lemma['largest']:.3f}, median {lemma['median']:.3f}",
    )


def _rule_claims(records: dict[str, Any]) -> list[Claim]:
    descent, source = records["descent"], "Fallah et al., lemma on the stochastic step size"
    first, second = min(descent["first_moment"]), max(descent["second_moment"])
    moments = Claim(
        "E[1/L̃] is at least 0.8 / L(w) and E[1/L̃²] at most 3.125 / L(w)²",
        source,
        f"draws of L̃ with the smallest batches allowed (B' = {descent['step_tasks']}, D_β = "
        f"{descent['step_size']}) at every w_k; holds if both do at all",
        verdict_of(first >= 0.8 and second <= 3.125),
        f"smallest E[L/L̃] {first:.3f}, largest E[(L/L̃)²] {second:.3f}",
    )
    norms, fast = np.array(descent["norm"]), np.array(descent["fast_norm"])
    target = max(1e-6, norms[-1])
    slow_steps, fast_steps = int(np.argmax(norms <= target)), int(np.argmax(fast <= target))
    room = [2 / s / b for s, b in zip(descent["sharpness"], descent["beta"], strict=True) if s > 0]
    monotone = bool(np.all(np.diff(norms) <= 1e-12))
    works = Claim(
        "With β_k = 1 / (12 L̃(w_k)) MAML's gradient norm goes to zero",
        "Fallah et al., theorem for MAML",
        "descent on F with exact gradients and estimated L̃; holds if ‖∇F‖ falls at every step to a tenth",
        verdict_of(monotone and norms[-1] < 0.1 * norms[0]),
        f"‖∇F‖ {norms[0]:.3g} to {norms[-1]:.3g}; the rule is {min(room):.0f} to {max(room):.0f} times below "
        f"the edge of stability, and takes {slow_steps} steps where 1 / λ_max takes {fast_steps}",
    )
    return [moments, works]


EXPERIMENT = Experiment(
    name="fallah-surrogate",
    title="F-hat against F, and how loose the step-size rule of the convergence theory is",
    paper="fallah2020",
    quick=Config(),
    paper_scale=Config(
        tasks=20,
        points=50,
        dim=3,
        supports=(1, 2, 4, 8, 16, 32, 64, 128),
        draws=4000,
        places=3,
        pairs=5000,
        steps=2000,
        samples=100,
    ),
    run=run,
    plot=plot,
    claims=claims,
)
