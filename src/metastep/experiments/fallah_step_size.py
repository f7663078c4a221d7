"""Fallah et al.: the smoothness lemma, and how loose the step-size rule beta_k = c / L~(w_k) is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from metastep import theory
from metastep._types import Batch
from metastep.experiments.core import Claim, Experiment, Report, from_to, verdict_of
from metastep.experiments.logcosh import (
    Problem,
    draw_indices,
    draw_problem,
    take_batches,
    task_gradient_norms,
)
from metastep.report import style
from metastep.report.lines import Series, draw

_DIVISOR = 12  # beta_k = 1 / (12 L~) in the theorem for MAML


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the problem, the pairs of w that test the lemma, and the descent with the step-size rule."""

    tasks: int = 12
    points: int = 24
    dim: int = 2
    pairs: int = 400
    steps: int = 900
    samples: int = 20


def run(config: Config, seed: int, report: Report) -> dict[str, Any]:
    """Both sides of the smoothness lemma; a descent by the rule."""
    problem = draw_problem(
        config, seed, 1 / 6
    )  # the largest alpha that the theorem for MAML allows
    generator = np.random.default_rng(seed)
    report("smoothness lemma", 0, 2)
    lemma = _lemma_ratios(problem, generator, config)
    report("step-size rule", 1, 2)
    descent = _descent(problem, generator, config)
    return {"constants": problem.constants.record(), "lemma": lemma, "descent": descent}


def _local_smoothness(problem: Problem, w: Array, tasks: Batch) -> Array:
    """L(w), from the exact gradients of all tasks; on batches of a few of them L̃(w)."""
    return problem.known(theory.meta_smoothness)(task_gradient_norms(w, tasks))


def _lemma_ratios(
    problem: Problem, generator: np.random.Generator, config: Config
) -> dict[str, float]:
    """|grad F(w) - grad F(u)| / (min(L(w), L(u)) |w - u|) over random pairs near and far."""
    w = 3 * generator.standard_normal((config.pairs, config.dim))
    lengths = np.geomspace(1e-3, 3, config.pairs)[:, None]
    u = w + lengths * generator.standard_normal((config.pairs, config.dim))

    def ratio(w: Array, u: Array) -> Array:
        local = jnp.minimum(*(_local_smoothness(problem, one, problem.tasks) for one in (w, u)))
        change = jnp.linalg.norm(problem.gradient(w) - problem.gradient(u))
        return change / (local * jnp.linalg.norm(w - u))

    ratios = np.asarray(jax.jit(jax.vmap(ratio))(w, u))
    return {"largest": float(ratios.max()), "median": float(np.median(ratios))}


def _descent(problem: Problem, generator: np.random.Generator, config: Config) -> dict[str, Any]:
    """Gradient descent on F by the rule with estimated L~, beside what the true curvature would allow.

    The estimate takes the smallest batches that the lemma allows.
    """
    sizes = problem.known(theory.batch_size_conditions)("maml")
    step_tasks, step_size = int(sizes.step_tasks), int(sizes.step_size)

    def sharpness(w: Array) -> Array:
        return jnp.linalg.eigvalsh(jax.jacfwd(problem.gradient)(w))[-1]

    def step(w: Array, index: Array) -> tuple[Array, dict[str, Array]]:
        """`index` : (samples, B', 1 + D_beta); the first sample takes the step, all of them test the lemma."""

        def estimate(one: Array) -> Array:
            (batch,) = take_batches(problem.tasks, one, (step_size,))
            return _local_smoothness(problem, w, batch)

        estimates = jax.vmap(estimate)(index)
        local = _local_smoothness(problem, w, problem.tasks)
        seen = {
            "norm": problem.gradient_norm(w),
            "beta": 1 / (_DIVISOR * estimates[0]),
            "sharpness": sharpness(w),
            "local": local,
            "first_moment": jnp.mean(local / estimates),
            "second_moment": jnp.mean((local / estimates) ** 2),
        }
        return w - seen["beta"] * problem.gradient(w), seen

    def by_sharpness(w: Array, _: None) -> tuple[Array, Array]:
        """Steps of 1 / lambda_max, bounded where F is flat."""
        beta = 1 / jnp.maximum(sharpness(w), problem.constants.smoothness / 10)
        return w - beta * problem.gradient(w), problem.gradient_norm(w)

    start = jnp.full(config.dim, 3.0)
    shape = (config.steps, config.samples, step_tasks)
    index = draw_indices(generator, problem.tasks, shape, step_size)
    _, seen = jax.jit(lambda w, i: jax.lax.scan(step, w, i))(start, index)
    _, quick = jax.jit(lambda w: jax.lax.scan(by_sharpness, w, None, length=config.steps))(start)
    return {
        **seen,
        "fast_norm": quick,
        "step_tasks": step_tasks,
        "step_size": step_size,
    }


def plot(records: dict[str, Any]) -> Figure:
    """The meta rate of the rule; and how much slower it is."""
    figure, (rate, path) = style.new_figure(1, 2)
    descent, rule = records["descent"], "β_k = 1 / (12 L̃(w_k))"
    steps = range(len(descent["beta"]))
    edge = [2 / curvature if curvature > 0 else np.nan for curvature in descent["sharpness"]]
    lines = [
        Series(rule, steps, descent["beta"], color=style.BLUE),
        Series("edge of stability 2 / λ_max(∇²F)", steps, edge, color=style.BLACK, line=":"),
    ]
    draw(rate, lines, "meta-step", "meta rate β", log_y=True, title="step-size rule")
    fast = np.maximum(descent["fast_norm"], 1e-16)
    lines = [
        Series(rule, steps, descent["norm"], color=style.BLUE),
        Series("β = 1 / λ_max(∇²F)", steps, fast, color=style.GREEN),
    ]
    draw(path, lines, "meta-step", "‖∇F(w_k)‖", log_y=True, title="descent on F")
    style.legend_below(figure, columns=3)
    return figure


def claims(records: dict[str, Any]) -> list[Claim]:
    """The lemmas on smoothness and step size, and what the rule does."""
    return [_lemma(records["lemma"]), _moments(records["descent"]), _works(records["descent"])]


def _lemma(lemma: dict[str, float]) -> Claim:
    return Claim(
        "‖∇F(w) − ∇F(u)‖ is at most min(L(w), L(u)) ‖w − u‖, L(w) = 4L + 2ρα E‖∇f_i(w)‖",
        "Fallah et al., smoothness lemma",
        "random pairs, near and far; holds if the ratio of the two sides stays below 1",
        verdict_of(lemma["largest"] <= 1),
        f"largest ratio {lemma['largest']:.3f}, median {lemma['median']:.3f}",
    )


def _moments(descent: dict[str, Any]) -> Claim:
    first, second = min(descent["first_moment"]), max(descent["second_moment"])
    return Claim(
        "E[1/L̃] is at least 0.8 / L(w) and E[1/L̃²] at most 3.125 / L(w)²",
        "Fallah et al., lemma on the stochastic step size",
        f"draws of L̃ with the smallest batches allowed (B' = {descent['step_tasks']}, D_β = "
        f"{descent['step_size']}) at every w_k; holds if both do at all",
        verdict_of(first >= 0.8 and second <= 3.125),
        f"smallest E[L/L̃] {first:.3f}, largest E[(L/L̃)²] {second:.3f}",
    )


def _works(descent: dict[str, Any]) -> Claim:
    norms, fast = np.array(descent["norm"]), np.array(descent["fast_norm"])
    target = max(1e-6, norms[-1])
    slow_steps, fast_steps = int(np.argmax(norms <= target)), int(np.argmax(fast <= target))
    room = [2 / s / b for s, b in zip(descent["sharpness"], descent["beta"], strict=True) if s > 0]
    monotone = bool(np.all(np.diff(norms) <= 1e-12))
    return Claim(
        "With β_k = 1 / (12 L̃(w_k)) MAML's gradient norm goes to zero",
        "Fallah et al., theorem for MAML",
        "descent on F with exact gradients and estimated L̃; holds if ‖∇F‖ falls at every step to a tenth",
        verdict_of(monotone and norms[-1] < 0.1 * norms[0]),
        f"‖∇F‖ {norms[0]:.3g} to {norms[-1]:.3g}; the rule is {from_to(room, '.0f')} times below "
        f"the edge of stability, and takes {slow_steps} steps where 1 / λ_max takes {fast_steps}",
    )


EXPERIMENT = Experiment(
    name="fallah-step-size",
    title="The smoothness lemma, and how loose the step-size rule of the convergence theory is",
    paper="fallah2020",
    quick=Config(),
    paper_scale=Config(tasks=20, points=50, dim=3, pairs=5000, steps=2000, samples=100),
    run=run,
    plot=plot,
    claims=claims,
)
