"""Meta-train your own model: any two JAX functions, at an adaptation rate that is measured first."""

import dataclasses

import jax
import jax.numpy as jnp

from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact
from metastep.models import Model, Objective
from metastep.rates import FixedRate, advise_rates, make_optimizer
from metastep.tasks import Sinusoid
from metastep.train import Learner, advance, evaluate, initial_state


def init(key):
    """Random waves, and weights that mix them. Both are meta-trained and both adapt."""
    frequency_key, phase_key, weight_key = jax.random.split(key, 3)
    return {
        "frequency": jax.random.normal(frequency_key, (1, 40)),
        "phase": jax.random.uniform(phase_key, (40,), maxval=2 * jnp.pi),
        "weight": 0.1 * jax.random.normal(weight_key, (40, 1)),
    }


def apply(params, x):
    """(examples, 1) to (examples, 1)."""
    return jnp.sin(x @ params["frequency"] + params["phase"]) @ params["weight"]


def main(iterations: int = 1000) -> None:
    """Tasks and model, rate, training, judgement."""
    keys = jax.random.split(jax.random.key(0), 4)
    tasks = Sinusoid(shots=10, queries=10)
    model = Model(init, apply, name="waves")
    learner = Learner(
        model, Objective.of(model.apply, tasks.kind), GradientAdapter(steps=1), Exact(), FixedRate(0.0),
        make_optimizer("adam", 3e-3), tasks_per_step=25,
    )  # fmt: skip
    start = model.init(keys[0])
    advice = advise_rates(learner.objective, start, tasks, keys[1], learner.query_loss)
    low, high = advice.alpha_interval
    print(f"alpha: {advice.alpha_chosen:.3g}, 95 % interval {low:.3g} to {high:.3g}")

    learner = dataclasses.replace(learner, rate=FixedRate(advice.alpha_chosen))
    state = initial_state(learner, keys[0])
    state = jax.jit(lambda s: advance(learner, tasks, keys[2], s, jnp.asarray(iterations)))(state)

    judged = evaluate(
        learner, state.meta.params, advice.alpha_chosen, tasks, keys[3], num_tasks=200
    )
    print(f"loss before adaptation: {judged.before.loss.mean:.3g}")
    print(f"loss after one step: {judged.after.loss.mean:.3g} +- {judged.after.loss.ci95:.2g}")


if __name__ == "__main__":
    main()
