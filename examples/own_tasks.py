"""Meta-train on your own task family: a few measurements of each spring, and the rest of its motion to tell."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp

from metastep import Batch, Episode
from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact
from metastep.models import Objective, mlp
from metastep.rates import FixedRate, advise_rates, make_optimizer
from metastep.tasks import AbstractTaskFamily
from metastep.train import Learner, advance, evaluate, initial_state


class Springs(AbstractTaskFamily):
    """Damped springs let go at a random deflection: start exp(-damping t) cos(2 t) at random times."""

    kind = "regression"
    input_shape = (1,)
    output_size = 1
    shots: int = eqx.field(static=True, default=10)  # sizes are static: they decide shapes

    def sample(self, key) -> Episode:
        spring_key, time_key = jax.random.split(key)
        low, high = jnp.array([[-2.0, 0.0], [2.0, 1.0]])  # of deflection and damping
        start, damping = jax.random.uniform(spring_key, (2,), minval=low, maxval=high)
        time = jax.random.uniform(time_key, (2 * self.shots, 1), maxval=3.0)
        position = start * jnp.exp(-damping * time) * jnp.cos(2 * time)
        return Episode(*(Batch(time[i::2], position[i::2]) for i in range(2)))  # every other one


def main(iterations: int = 1000) -> None:
    """Tasks and model, rate, training, judgement."""
    keys = jax.random.split(jax.random.key(0), 4)
    tasks = Springs()
    model = mlp(tasks.input_shape, tasks.output_size, hidden=(40,), activation=jnp.tanh)
    learner = Learner(
        model, Objective.of(model.apply, tasks.kind), GradientAdapter(steps=3), Exact(), FixedRate(0.0),
        make_optimizer("adam", 3e-3), tasks_per_step=25,
    )  # fmt: skip
    start = model.init(keys[0])
    advice = advise_rates(learner.objective, start, tasks, keys[1], learner.query_loss)
    print(f"alpha: {advice.alpha_chosen:.3g}, because {advice.alpha_reason}")
    learner = dataclasses.replace(learner, rate=FixedRate(advice.alpha_chosen))
    state = initial_state(learner, keys[0])
    state = jax.jit(lambda s: advance(learner, tasks, keys[2], s, jnp.asarray(iterations)))(state)

    judged = evaluate(
        learner, state.meta.params, advice.alpha_chosen, tasks, keys[3], num_tasks=200
    )
    for step in judged.curve:
        print(f"loss after {step.steps} steps: {step.loss.mean:.3g} +- {step.loss.ci95:.2g}")


if __name__ == "__main__":
    main()
