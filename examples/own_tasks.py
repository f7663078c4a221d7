"""Meta-train on your own task family: a few measurements of each spring, and the rest of its motion to tell.

From the command line: metastep train examples/own_tasks.py:Springs --steps 3 --out runs/springs
"""

import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from metastep import Batch, Episode
from metastep.tasks import AbstractTaskFamily
from metastep.train import (
    RunFolder,
    TrainConfig,
    adapt_and_predict,
    evaluate_run,
    load_run,
    train,
)


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
    """Train, judge, and adapt to one spring that was measured four times."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder, "springs"))
        result = train(TrainConfig(tasks=Springs, steps=3, iterations=iterations), run)
        print(f"alpha started at {result.alpha:.3g}")

        trained = load_run(run, tasks=Springs)
        judged, _ = evaluate_run(trained, num_tasks=200)
        for step in judged.curve:
            print(f"loss after {step.steps} steps: {step.loss.mean:.3g} +- {step.loss.ci95:.2g}")

        time = np.array([[0.1], [0.8], [1.3], [1.9]])
        position = 1.2 * np.exp(-0.4 * time) * np.cos(2 * time)
        told = adapt_and_predict(trained, time, position, np.array([[2.5]])).predictions
        true = 1.2 * np.exp(-0.4 * 2.5) * np.cos(2 * 2.5)
        print(f"a new spring at 2.5: {told.item():.3g}, in truth {true:.3g}")


if __name__ == "__main__":
    main()
