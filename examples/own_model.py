"""Meta-train your own model: any two JAX functions. No rate is given, none is needed.

From the command line: metastep train sinusoid --model examples/own_model.py:waves --out runs/waves
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from metastep.models import Model
from metastep.train import RunFolder, TrainConfig, evaluate_run, load_run, train


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


waves = Model(init, apply, name="waves")


def main(iterations: int = 1000) -> None:
    """Train, say which rate was chosen and why, judge."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder, "waves"))
        config = TrainConfig(tasks="sinusoid", model=waves, iterations=iterations)
        result = train(config, run, announce=tell)
        print(f"{result.iterations} meta-steps, {result.steps_per_second:.0f} in a second")

        judged, _ = evaluate_run(load_run(run, model=waves))
        print(f"loss before adaptation: {judged.before.loss.mean:.3g}")
        print(f"loss after one step: {judged.after.loss.mean:.3g} +- {judged.after.loss.ci95:.2g}")


def tell(stage, record):
    """Told of the tasks, of every rehearsal, and of the rates."""
    if stage == "rates":
        print(f"alpha starts at {record['alpha_chosen']:.3g}: {record['alpha_reason']}")


if __name__ == "__main__":
    main()
