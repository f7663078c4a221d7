"""Where meta-gradients through ReLU point, against finite differences of the mean meta-loss, and what comes of it.

    taskset -c 0 python benchmarks/kinks.py [--families embeddings ...] [--tasks 8000] [--train]

A network with `jax.nn.relu` is trained with nothing given. At its parameters, and over the same new tasks, the mean
query loss after one inner step changes along a direction by so much according to the meta-gradient of `jax.nn.relu`,
to that of `metastep.models.relu`, and in fact: by central differences, with a 95 % interval over tasks. Losses and
inner steps are the same to the bit. Directions are the mean meta-gradients of either over tasks of their own.
`--train` trains with several activations, and judges them after adaptation to held-out tasks.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.flatten_util import ravel_pytree

from metastep.models import conv4, mlp, relu, with_curved_relu
from metastep.train import build_learner, choose_rates
from metastep.train.learner import Learner, mean_alpha
from zero_tuning import judged, load, trained
from zero_tuning_families import FAMILIES

ACTIVATIONS: dict[str, Callable] = {
    "jax.nn.relu": jax.nn.relu,
    "metastep.models.relu": relu,
    "jax.nn.gelu": jax.nn.gelu,
    "jnp.tanh": jnp.tanh,
}


@dataclasses.dataclass
class Options:
    """Compare slopes by differentiation and by differences."""

    families: tuple[str, ...] = ("embeddings", "permuted", "clusters", "sinusoid")
    """Of the benchmark of zero tuning, those with the usual network; with `conv4`, slopes alone."""
    meta_steps: int = 60
    """Before slopes are looked at."""
    tasks: int = 8_000
    """Tasks of a mean."""
    width: float = 0.02
    """Half the way between the two points of a difference, as the length of the change of all parameters."""
    train: bool = False
    """Compare what training with each activation leads to."""
    budgets: tuple[int, ...] = (100, 300, 1_000)
    """Meta-steps of training."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of training; slopes are those of the first."""


def ready(name: str, activation: Callable, seed: int, meta_steps: int, folder: Path):
    """The learner of a family with nothing given but its activation, its tasks and its configuration."""
    config, tasks = load(FAMILIES[name], seed, folder, iterations=meta_steps)
    shape, outputs = tasks.description["input_shape"], tasks.description["output_size"]
    if len(shape) == 1:
        model = mlp(shape, outputs, config.hidden, activation)
    else:
        plain = conv4(shape, outputs)
        model = with_curved_relu(plain) if activation is relu else plain
    config = dataclasses.replace(config, model=model, curved_relu=False)
    rates = choose_rates(config, tasks)
    learner = build_learner(config, tasks.description, rates["alpha_chosen"], rates["meta_lr"])
    return learner, tasks, config


def slopes(
    name: str, options: Options, folder: Path
) -> list[tuple[str, float, list[float], float]]:
    """For the meta-gradient of each ReLU: its name, alpha, the slope along it by both, the true one and its error."""
    kinds = list(ACTIVATIONS)[:2]
    plain, tasks, config = ready(name, jax.nn.relu, options.seeds[0], options.meta_steps, folder)
    bent, _, _ = ready(name, relu, options.seeds[0], options.meta_steps, folder)
    state, _ = trained(plain, tasks.splits, config)
    alpha = plain.rate.alpha(state.meta, state.rate_state)
    flat, unravel = ravel_pytree(state.meta.params)
    family, together = tasks.splits.train, plain.tasks_at_once or 50

    @jax.jit
    def gradients(flat, key):
        def mean(learner: Learner):
            loss = lambda flat, key: learner.query_loss(unravel(flat), family.sample(key), alpha)  # noqa: E731
            return jnp.mean(
                jax.lax.map(lambda key: jax.grad(loss)(flat, key), keys, batch_size=together),
                axis=0,
            )

        keys = jax.random.split(key, options.tasks)
        return [mean(plain), mean(bent)]

    @jax.jit
    def differences(flat, direction, key):
        def one(key):
            loss = lambda flat: plain.query_loss(unravel(flat), family.sample(key), alpha)  # noqa: E731
            ahead, behind = (loss(flat + sign * options.width * direction) for sign in (1, -1))
            return (ahead - behind) / (2 * options.width)

        return jax.lax.map(one, jax.random.split(key, options.tasks), batch_size=together)

    before, after = jax.random.key(1), jax.random.key(2)
    rows = []
    for kind, along in zip(kinds, gradients(flat, before), strict=True):
        direction = along / jnp.linalg.norm(along)
        said = [float(gradient @ direction) for gradient in gradients(flat, after)]
        found = np.asarray(differences(flat, direction, after), float)
        error = 1.96 * found.std(ddof=1) / len(found) ** 0.5
        rows.append(
            (
                kind,
                float(mean_alpha(plain, state.meta, state.rate_state)),
                [*said, float(found.mean())],
                error,
            )
        )
    return rows


def losses(
    name: str, activation: Callable, budget: int, options: Options, folder: Path
) -> np.ndarray:
    """Held-out losses after adaptation with nothing given but the activation, by seed."""
    found = []
    for seed in options.seeds:
        learner, tasks, config = ready(name, activation, seed, budget, folder)
        config = dataclasses.replace(config, log_every=max(1, budget // 200))
        state, key = trained(learner, tasks.splits, config)
        row = judged(learner, tasks.splits, state, key, FAMILIES[name].test_tasks)
        found.append(np.inf if row["loss"] is None else row["loss"])
    return np.array(found)


def main() -> None:
    """Print a table."""
    options = tyro.cli(Options)
    if options.train:
        print(
            f"| family | meta-steps | {' | '.join(ACTIVATIONS)} |\n|---|---|{'---|' * len(ACTIVATIONS)}"
        )
    else:
        print(
            "| family | alpha | along the meta-gradient of | slope by jax.nn.relu | by metastep.models.relu "
            "| by differences |\n|---|---|---|---|---|---|"
        )
    for name in options.families:
        with tempfile.TemporaryDirectory() as folder:
            if options.train:
                for budget in options.budgets:
                    cells = [
                        losses(name, activation, budget, options, Path(folder))
                        for activation in ACTIVATIONS.values()
                    ]
                    means = " | ".join(f"{found.mean():.3g}" for found in cells)
                    print(f"| {name} | {budget:,} | {means} |", flush=True)
                continue
            for kind, alpha, (plain, bent, true), error in slopes(name, options, Path(folder)):
                print(
                    f"| {name} | {alpha:.2g} | {kind} | {plain:.3f} | {bent:.3f} | {true:.3f} ± {error:.3f} |",
                    flush=True,
                )
        jax.clear_caches()


if __name__ == "__main__":
    main()
