"""The meta rate beta: outer optimisers by name, its course over a run, and what it is by default."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metastep._errors import check_choice
from metastep._types import MetaParams, Params
from metastep.rates.hypergradient import hypergradient
from metastep.theory.citations import source


@source("cutkosky2020", "normalised gradients", "as printed", "then handed to Adam")
def normalised_adam(learning_rate) -> optax.GradientTransformation:
    """Adam on meta-gradients scaled to length 1.

    Tasks differ in how large their losses are, so a meta-gradient is as heavy-tailed as its hardest task. With
    its length taken out, no single meta-step weighs more than another in either of Adam's averages.
    """
    return optax.chain(optax.normalize_by_update_norm(), optax.adam(learning_rate))


_SIZE_OF_VECTORS = 0.1
"""What starts at 0 or 1 says nothing by its size of how far it has to go."""


class SizesState(NamedTuple):
    """One number for each array: its size at the start."""

    sizes: PyTree[Float[Array, ""]]


@source("shazeer2018", "section 8, relative step size", "as printed", "by the sizes at the start")
def sizes_of(params: Params | MetaParams) -> Params | MetaParams:
    """The scale that a step of each array is measured by, a number for each.

    The root mean square of a matrix or kernel; 0.1 for vectors and scalars, such as biases, gains and offsets, and
    for what starts at zero. Learned rates are logarithms, whose steps are relative as they are: 1.
    """
    if isinstance(params, MetaParams):
        ones = jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), params.rates)
        return MetaParams(jax.tree.map(_size, params.params), ones)
    return jax.tree.map(_size, params)


def _size(leaf: Array) -> Float[Array, ""]:
    if leaf.ndim < 2:
        return jnp.asarray(_SIZE_OF_VECTORS, leaf.dtype)
    square = jnp.mean(jnp.square(leaf))
    return jnp.where(square > 0, jnp.sqrt(square), jnp.asarray(_SIZE_OF_VECTORS, leaf.dtype))


def _scale_by_size() -> optax.GradientTransformation:
    def update(updates, state: SizesState, params=None):
        del params
        return jax.tree.map(jnp.multiply, updates, state.sizes), state

    return optax.GradientTransformation(lambda params: SizesState(sizes_of(params)), update)  # pyright: ignore[reportArgumentType]


def relative_adam(learning_rate) -> optax.GradientTransformation:
    """Adam on meta-gradients scaled to length 1, whose rate is a share of the size an array starts with.

    Adam moves every number by about its rate, whatever its size: one rate for weights of 0.05 and of 0.5 is too
    large for the one or too small for the other, and learned rates, which are logarithms, know no size at all.
    """
    return optax.chain(normalised_adam(learning_rate), _scale_by_size())


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "relative-adam": relative_adam,
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
    "relative-adam": (
        0.1,
        "a step changes an array by at most about a tenth of the size it starts with, and a learned rate by a tenth; "
        "see the benchmark of zero tuning",
    ),
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
