"""A network pre-trained on sines drawn anew for every task, and its frozen features: the setting of Zou's Table 2."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array

from metastep._types import Batch, Params
from metastep.models import Objective


def bayes_mse() -> float:
    """Least MSE without having seen the task: E Var(y | x) = pi^2 / 6 - E cos^2 x, x ~ U(-5, 5)."""
    return math.pi**2 / 6 - 0.5 - math.sin(10) / 20


def initial_params(rng: np.random.Generator, hidden: int) -> Params:
    """Parameters of `mlp` in its own law, drawn by NumPy: uniform in +-1/sqrt(inputs)."""
    sizes = {"layer1": (1, hidden), "layer2": (hidden, hidden), "head": (hidden, 1)}

    def uniform(shape: tuple[int, ...], inputs: int) -> np.ndarray:
        return rng.uniform(-1.0, 1.0, shape) / math.sqrt(inputs)

    return {
        name: {"weight": uniform(shape, shape[0]), "bias": uniform(shape[1:], shape[0])}
        for name, shape in sizes.items()
    }


def draw_examples(
    rng: np.random.Generator, tasks: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """x and y = a sin(x + b), both (tasks, count), with a, b ~ U(0, pi) drawn anew for every task."""
    x = rng.uniform(-5.0, 5.0, (tasks, count))
    a, b = rng.uniform(0.0, math.pi, (2, tasks, 1))
    return x, a * np.sin(x + b)


@partial(jax.jit, static_argnums=(0, 1))
def pretrain(
    apply: Callable[[Params, Array], Array],
    learning_rate: float,
    params: Params,
    state: Any,
    x: Array,
    y: Array,
) -> tuple[Params, Any]:
    """ERM with Adam: one batch of examples per step."""
    objective = Objective.of(apply, "regression")
    optimizer = optax.adam(learning_rate)

    def step(carry: tuple[Params, Any], batch: tuple[Array, Array]) -> tuple[Any, None]:
        params, state = carry
        gradient = jax.grad(objective.on(Batch(batch[0][:, None], batch[1][:, None])))(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), (x, y))[0]


def frozen_features(params: Params, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """x -> outputs of the second layer and the constant of the last one's bias, in principal axes.

    A rotation changes no rate and no loss. Axes without variation, of dead or equal units, are left out:
    no step ever moves along them, and the minimiser would not be unique.
    """
    layers = [jax.tree.map(np.asarray, params[name]) for name in ("layer1", "layer2")]

    def outputs(x: np.ndarray) -> np.ndarray:
        hidden = x[..., None]
        for layer in layers:
            hidden = np.maximum(hidden @ layer["weight"] + layer["bias"], 0)
        return np.concatenate([hidden, np.ones((*x.shape, 1))], axis=-1)

    sample = outputs(rng.uniform(-5.0, 5.0, 20_000))
    size, axes = np.linalg.eigh(sample.T @ sample)
    kept = axes[:, size > 1e-9 * size[-1]]
    return lambda x: outputs(x) @ kept
