"""The meta rate beta: outer optimisers by name, its course over a run, and what it is by default."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from metastep._errors import check_choice
from metastep.rates.hypergradient import hypergradient
from metastep.theory.citations import source


@source("cutkosky2020", "normalised gradients", "as printed", "then handed to Adam")
def normalised_adam(learning_rate) -> optax.GradientTransformation:
    """Adam on meta-gradients scaled to length 1.

    Tasks differ in how large their losses are, so a meta-gradient is as heavy-tailed as its hardest task. With
    its length taken out, no single meta-step weighs more than another in either of Adam's averages.
    """
    return optax.chain(optax.normalize_by_update_norm(), optax.adam(learning_rate))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "normalised-adam": normalised_adam,
    "adam": optax.adam,
    "adamw": optax.adamw,
    "momentum": lambda learning_rate: optax.sgd(learning_rate, momentum=0.9),
    "rmsprop": optax.rmsprop,
    "sgd": optax.sgd,
    "hypergradient": hypergradient,
}

_STEP_SIZED = "is the size of a step in the parameters, whatever the scale of the loss"
_DEFAULTS = {
    "normalised-adam": (3e-2, f"the rate of Adam {_STEP_SIZED}; see the benchmark of zero tuning"),
    "adam": (1e-2, f"the rate of Adam {_STEP_SIZED}; see the benchmark of zero tuning"),
    "adamw": (1e-2, f"the rate of AdamW {_STEP_SIZED}"),
    "rmsprop": (3e-3, f"the rate of RMSprop {_STEP_SIZED}, and it has no warm-up of its own"),
    "momentum": (
        1e-3,
        "with momentum 0.9 a step adds up to ten of them, so a tenth of the rate for plain SGD",
    ),
    "sgd": (
        1e-2,
        "a cautious rate; it is not measured yet, so watch the loss and raise it if slow",
    ),
    "hypergradient": (1e-3, "a small rate to begin with, which then grows or shrinks by itself"),
}

_WARM_UP = 0.05
"""Share of a run over which a decaying rate rises from 0: moments and learned alphas settle first."""


def default_meta_lr(optimizer: str) -> tuple[float, str]:
    """The meta rate `auto` stands for, and why."""
    check_choice("optimizer", optimizer, OPTIMIZERS)
    return _DEFAULTS[optimizer]


def make_optimizer(name: str, meta_lr: float) -> optax.GradientTransformation:
    """An outer optimiser whose rate is part of its state, so that a new rate does not recompile."""
    check_choice("optimizer", name, OPTIMIZERS)
    return optax.inject_hyperparams(OPTIMIZERS[name])(learning_rate=meta_lr)


def _constant(progress: Array) -> Array:
    return jnp.ones_like(progress)


def _linear(progress: Array) -> Array:
    return _warm_up(progress) * jnp.minimum((1 - progress) / (1 - _WARM_UP), 1)


def _cosine(progress: Array) -> Array:
    left = jnp.clip((progress - _WARM_UP) / (1 - _WARM_UP), 0, 1)
    return _warm_up(progress) * (1 + jnp.cos(jnp.pi * left)) / 2


def _warm_up(progress: Array) -> Array:
    return jnp.minimum(progress / _WARM_UP, 1)


SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
}


@source("defazio2023", "linear decay to zero", "as printed", "after a warm-up of 5 % of the run")
def schedule_factor(
    name: str, iteration: Int[Array, ""], horizon: Int[Array, ""]
) -> Float[Array, ""]:
    """The share, in [0, 1], of the peak meta rate that meta-step number `iteration` (from 0) takes.

    Parameters
    ----------
    name : "linear" and "cosine" rise over the first 5 % of the run and fall to 0 at its end; "constant" is 1
    iteration, horizon : meta-steps done, and in all; data, so that a longer run does not recompile

    References
    ----------
    Defazio et al. (2023), "Optimal linear decay learning rate schedules and further refinements": for the last
    iterate of a run of known length, linear decay to zero is minimax optimal.
    """
    check_choice("schedule", name, SCHEDULES)
    # Half a step in, so that neither the first nor the last meta-step is wasted on a rate of 0.
    done, total = (jnp.asarray(count, float) for count in (iteration, jnp.maximum(horizon, 1)))
    progress = (done + 0.5) / total
    return jnp.clip(SCHEDULES[name](progress), 0, 1)
