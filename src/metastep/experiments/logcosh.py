"""Tasks with known constants for the convergence theory: f_i(w) = mean over examples of s_i log cosh(w - x).

The loss is smooth, not quadratic, and separates over the coordinates, so that every constant of Fallah et al.
(2020) is a supremum over one variable that a grid finds; F and its gradient are sums over all examples.
"""

import dataclasses
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from metastep._types import Batch, Scalar
from metastep.models import Objective
from metastep.theory import meta_gradient

# The third derivative of log cosh is at most 4 / (3 sqrt 3).
_THIRD = 4 / (3 * 3**0.5)
_GRID = 241


@dataclasses.dataclass(frozen=True)
class Constants:
    """The constants of the theory, named as in `metastep.theory.smoothness`."""

    smoothness: float
    hessian_lipschitz: float
    sigma: float
    sigma_tilde: float
    sigma_hessian: float

    def record(self) -> dict[str, float]:
        """As a JSON-able dict."""
        return dataclasses.asdict(self)


@jax.custom_jvp
def _log_cosh(z: Array) -> Array:
    return jnp.logaddexp(z, -z) - jnp.log(jnp.asarray(2.0, z.dtype))


_log_cosh.defjvps(
    lambda tangent, _, z: jnp.tanh(z) * tangent
)  # fewer operations than the derived one


def log_cosh(outputs: Float[Array, "n dim"], scales: Float[Array, "n 1"]) -> Scalar:
    """Mean over examples of the sum over coordinates of scale log cosh(output)."""
    return jnp.mean(jnp.sum(scales * _log_cosh(outputs), axis=-1))


OBJECTIVE = Objective(apply=lambda params, x: params - x, output_loss=log_cosh)


def draw_tasks(
    key: PRNGKeyArray, *, tasks: int, points: int, dim: int, spread: float = 1.0, noise: float = 1.0
) -> Batch:
    """All examples of all tasks: x (tasks, points, dim) about a centre of the task, y its scale s_i.

    Scales are U[0.5, 2] and go with the centres: tasks of unlike curvature that want unlike parameters
    are what first-order MAML is biased by.
    """
    scale_key, centre_key, point_key = jax.random.split(key, 3)
    scales = jax.random.uniform(scale_key, (tasks, 1, 1), minval=0.5, maxval=2.0)
    centres = spread * (jax.random.normal(centre_key, (tasks, 1, dim)) + scales - 1.25)
    x = centres + noise * jax.random.normal(point_key, (tasks, points, dim))
    return Batch(x, jnp.broadcast_to(scales, (tasks, points, 1)))


def task_loss(params: Float[Array, " dim"], task: Batch) -> Scalar:
    """f_i(w), for the functions of `metastep.theory`."""
    return OBJECTIVE(params, task)


def task_gradient_norms(params: Float[Array, " dim"], tasks: Batch) -> Float[Array, " tasks"]:
    """|grad f_i(w)| of each of these tasks."""
    return jnp.linalg.norm(jax.vmap(jax.grad(task_loss), (None, 0))(params, tasks), axis=-1)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Tasks with their constants, and the adaptation rate: all that F and the theory of it depend on."""

    tasks: Batch
    constants: Constants
    alpha: float | Array

    def known(self, formula: Callable) -> Callable:
        """A formula of the theory with the rate and those of the constants that it asks for filled in."""
        asked = inspect.signature(formula).parameters
        constants = self.constants.record()
        filled = {name: value for name, value in constants.items() if name in asked}
        return partial(formula, alpha=self.alpha, **filled)

    def gradient(self, params: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """grad F(w), exactly."""
        return meta_gradient(task_loss, params, self.tasks, self.alpha)

    def gradient_norm(self, params: Float[Array, " dim"]) -> Scalar:
        """|grad F(w)|, exactly."""
        return jnp.linalg.norm(self.gradient(params))


def draw_problem(config: Any, seed: int, share: float) -> Problem:
    """A problem of the sizes `tasks`, `points` and `dim` of a configuration, at alpha = share / L."""
    sizes = {name: getattr(config, name) for name in ("tasks", "points", "dim")}
    tasks = draw_tasks(jax.random.key(seed), **sizes)
    known = constants(tasks)
    return Problem(tasks, known, share / known.smoothness)


def constants(tasks: Batch) -> Constants:
    """L, rho, sigma, sigma~ and sigma_H of the tasks, each a supremum over all w.

    L and rho hold for every single example; sigma_H, whose norm is the spectral one, is bounded by the
    Frobenius norm. The suprema are taken coordinate by coordinate, which is where they lie.
    """
    x, scales = np.asarray(tasks.x), np.asarray(tasks.y)[:, 0, 0]
    grid = np.linspace(x.min() - 3, x.max() + 3, _GRID)
    sigma, noise, hessian_noise = 0.0, np.zeros(len(x)), np.zeros(len(x))
    for coordinate in range(x.shape[-1]):
        slope = np.tanh(grid - x[:, :, coordinate, None])  # (tasks, points, grid)
        means = scales[:, None] * slope.mean(axis=1)
        sigma += means.var(axis=0).max()
        noise += scales**2 * slope.var(axis=1).max(axis=-1)
        hessian_noise += scales**2 * (1 - slope**2).var(axis=1).max(axis=-1)
    largest = float(scales.max())
    return Constants(
        smoothness=largest,
        hessian_lipschitz=_THIRD * largest,
        sigma=float(sigma**0.5),
        sigma_tilde=float(noise.max() ** 0.5),
        sigma_hessian=float(hessian_noise.max() ** 0.5),
    )


def draw_indices(
    generator: np.random.Generator, tasks: Batch, shape: tuple[int, ...], examples: int
) -> np.ndarray:
    """Index of a task and of `examples` of its examples, (*shape, 1 + examples), with replacement.

    NumPy draws them, as JAX's generator inside a compiled loop would take seconds to compile.
    """
    task = generator.integers(tasks.x.shape[0], size=(*shape, 1), dtype=np.int32)
    points = generator.integers(tasks.x.shape[1], size=(*shape, examples), dtype=np.int32)
    return np.concatenate([task, points], axis=-1)


def take_batches(tasks: Batch, index: Int[Array, "n k"], sizes: tuple[int, ...]) -> list[Batch]:
    """Batches of the given sizes for each of n drawn tasks; `index` is from `draw_indices`."""
    task, points = index[:, :1], index[:, 1:]
    parts = jnp.split(points, np.cumsum(sizes)[:-1], axis=1)
    return [Batch(tasks.x[task, part], tasks.y[task, part]) for part in parts]
