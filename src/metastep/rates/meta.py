"""The outer optimisers by name, and the meta rate to begin with."""

from collections.abc import Callable

import optax

from metastep._errors import check_choice

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "momentum": lambda learning_rate: optax.sgd(learning_rate, momentum=0.9),
    "rmsprop": optax.rmsprop,
    "sgd": optax.sgd,
}

_DEFAULTS = {
    "adam": (
        1e-3,
        "Adam divides by the size of the meta-gradient, so its rate is the size of a step in the "
        "parameters; 1e-3 is that of the published MAML experiments",
    ),
    "adamw": (1e-3, "as for Adam: the rate is the size of a step in the parameters"),
    "rmsprop": (1e-3, "as for Adam: the rate is the size of a step in the parameters"),
    "momentum": (
        1e-3,
        "with momentum 0.9 a step adds up to ten of them, so a tenth of the rate for plain SGD",
    ),
    "sgd": (
        1e-2,
        "a cautious rate; it is not measured yet, so watch the loss and raise it if slow",
    ),
}


def default_meta_lr(optimizer: str) -> tuple[float, str]:
    """The meta rate `auto` stands for, and why."""
    check_choice("optimizer", optimizer, OPTIMIZERS)
    return _DEFAULTS[optimizer]


def make_optimizer(name: str, meta_lr: float) -> optax.GradientTransformation:
    """An outer optimiser whose rate is part of its state, so that a new rate does not recompile."""
    check_choice("optimizer", name, OPTIMIZERS)
    return optax.inject_hyperparams(OPTIMIZERS[name])(learning_rate=meta_lr)
