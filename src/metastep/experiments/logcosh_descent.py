"""What the experiments on the convergence theory share: its algorithms, their descents with and without noise."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from metastep import theory
from metastep._types import Episode, MetaParams
from metastep.adapt import GradientAdapter
from metastep.experiments.logcosh import (
    OBJECTIVE,
    Problem,
    draw_indices,
    take_batches,
    task_gradient_norms,
)
from metastep.metagrad import AbstractMetaGradient, Exact, FirstOrder, HessianFree
from metastep.report import style
from metastep.theory.smoothness import Algorithm

Direction = Callable[[Float[Array, " dim"], Episode], Float[Array, " dim"]]
"""(w, episodes) -> meta-gradient, the mean over tasks."""

Sizes = tuple[int, int, int]
"""B, D_in, D_o: tasks of a meta-step, support and query examples of a task."""

_CHUNK = 100  # meta-steps whose random indices are in memory at once


class Method(NamedTuple):
    """An algorithm of Fallah et al.: what the theory calls it, and how figures show it."""

    theory: Algorithm
    label: str
    color: str


METHODS: dict[str, Method] = {
    "maml": Method("maml", "MAML", style.BLUE),
    "fomaml": Method("fomaml", "FO-MAML", style.VERMILLION),
    "hfmaml_rule": Method("hfmaml", "HF-MAML, δ as printed", style.ORANGE),
    "hfmaml": Method("hfmaml", "HF-MAML, small δ", style.GREEN),
}


def directions(problem: Problem) -> dict[str, Direction]:
    """The meta-gradient of each of `METHODS`."""
    rho = problem.constants.hessian_lipschitz
    rules = {
        "maml": Exact(),
        "fomaml": FirstOrder(),
        "hfmaml_rule": HessianFree(rho, as_printed=True),
        "hfmaml": HessianFree(rho),
    }

    def direction(rule: AbstractMetaGradient, params: Array, episodes: Episode) -> Array:
        def of_task(episode: Episode) -> Array:
            alpha = jnp.asarray(problem.alpha)
            task = rule(OBJECTIVE, GradientAdapter(1), lambda _: alpha, MetaParams(params), episode)
            return task[1].params

        return jnp.mean(jax.vmap(of_task)(episodes), axis=0)

    return {name: partial(direction, rule) for name, rule in rules.items()}


def resting_places(problem: Problem, steps: int) -> dict[str, Array]:
    """Where each of `METHODS` is after so many meta-steps of 1 / L from 0 without sampling noise, (dim,)."""
    episodes = Episode(problem.tasks, problem.tasks)

    def rest(direction: Direction) -> Array:
        def step(_: int, w: Array) -> Array:
            return w - direction(w, episodes) / problem.constants.smoothness

        return jax.lax.fori_loop(0, steps, step, jnp.zeros(problem.tasks.x.shape[-1]))

    return {name: rest(direction) for name, direction in directions(problem).items()}


def sampled_run(problem: Problem, sizes: Sizes) -> Callable[..., dict[str, np.ndarray]]:
    """(starts, steps, repeats, generator) -> mean |grad F(w_k)| over repeats, of each algorithm by its own
    step-size rule, all on the same batches."""
    num_tasks, support, query = sizes
    parts = (support, query, support, support)  # D_in, D_o, D_h and the batch of the step size
    rules, step_size = directions(problem), problem.known(theory.meta_step_size)

    def step(params: dict[str, Array], index: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        *parts_of_episode, measured = take_batches(problem.tasks, index, parts)
        moved = {}
        for name, method in METHODS.items():
            beta = step_size(method.theory, task_gradient_norms(params[name], measured))
            direction = rules[name](params[name], Episode(*parts_of_episode))
            moved[name] = params[name] - beta * direction
        return moved, jax.tree.map(problem.gradient_norm, params)

    run_chunk = jax.jit(jax.vmap(lambda params, index: jax.lax.scan(step, params, index)))

    def run_from(
        starts: dict[str, Array], steps: int, repeats: int, generator: np.random.Generator
    ) -> dict[str, np.ndarray]:
        params = {name: jnp.tile(start, (repeats, 1)) for name, start in starts.items()}
        chunks = []
        for _ in range(math.ceil(steps / _CHUNK)):
            shape = (repeats, _CHUNK, num_tasks)
            index = draw_indices(generator, problem.tasks, shape, sum(parts))
            params, norms = run_chunk(params, index)
            chunks.append({name: np.mean(values, axis=0) for name, values in norms.items()})
        return {name: np.concatenate([one[name] for one in chunks]) for name in starts}

    return run_from
