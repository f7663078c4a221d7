"""What experiments that train small networks on regression share: a learner, and training it at one or many rates."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metastep._types import Params
from metastep.adapt import GradientAdapter
from metastep.metagrad import algorithm
from metastep.models import Objective, mlp
from metastep.rates import FixedRate, make_optimizer
from metastep.tasks import AbstractTaskFamily, batch_of_episodes
from metastep.train import Learner, TrainState, advance, initial_state
from metastep.train.step import meta_step

_DISPATCHES = 20  # of a training, for the progress bar


def network_learner(
    hidden: Sequence[int],
    tasks_per_step: int,
    *,
    inputs: int = 1,
    steps: int = 1,
    name: str = "maml",
    alpha: float = 0.0,
    optimizer: str = "adam",
    meta_lr: float = 1e-3,
    **more: Any,
) -> Learner:
    """A multilayer perceptron from `inputs` numbers to one, adapted at a fixed rate, squared error.

    Parameters
    ----------
    hidden : widths of the hidden layers
    tasks_per_step : tasks of a meta-step
    inputs : size of x
    steps, alpha : of the inner loop
    name : of the algorithm
    optimizer, meta_lr : of the outer loop
    more : further fields of the learner
    """
    model = mlp((inputs,), 1, hidden, jax.nn.relu)  # as in the papers' code
    return Learner(
        model=model,
        objective=Objective.of(model.apply, "regression"),
        adapter=GradientAdapter(steps),
        meta_gradient=algorithm(name).meta_gradient(),
        rate=FixedRate(alpha),
        optimizer=make_optimizer(optimizer, meta_lr),
        tasks_per_step=tasks_per_step,
        **more,
    )


def train(
    learner: Learner,
    family: AbstractTaskFamily,
    start_key: PRNGKeyArray,
    task_key: PRNGKeyArray,
    iterations: int,
    tell: Callable[[int, int], None],
) -> Params:
    """The parameters after so many meta-steps; `tell` hears (meta-steps done, meta-steps in all)."""
    run = jax.jit(lambda family, state, until: advance(learner, family, task_key, state, until))
    state = initial_state(learner, start_key)
    for dispatch in range(1, _DISPATCHES + 1):
        until = math.ceil(iterations * dispatch / _DISPATCHES)
        state = jax.block_until_ready(run(family, state, jnp.asarray(until)))
        tell(until, iterations)
    return state.meta.params


def train_at_rates(
    learner: Learner,
    family: AbstractTaskFamily,
    start: TrainState,
    alphas: Float[Array, " alphas"],
    key: PRNGKeyArray,
    iterations: int,
) -> TrainState:
    """The states after training at every rate side by side, all from one start and on the same tasks.

    To be compiled by the caller. The learner has a `FixedRate`, whose value is what its state holds.
    """

    def with_rate(alpha: Array) -> TrainState:
        return dataclasses.replace(start, rate_state=alpha.astype(start.rate_state.dtype))

    def step(count: Array, states: TrainState) -> TrainState:
        episodes = batch_of_episodes(family, jax.random.fold_in(key, count), learner.tasks_per_step)
        return jax.vmap(lambda state: meta_step(learner, state, episodes))(states)

    return jax.lax.fori_loop(0, iterations, step, jax.vmap(with_rate)(alphas))
