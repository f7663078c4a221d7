"""Spelling: what makes programs differ shows, what is made the same way twice is the same, the rest is refused."""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metastep._spelled import UnspellableError, spelled
from metastep.adapt import GradientAdapter
from metastep.models import mlp
from metastep.tasks import Sinusoid
from metastep.train import TrainConfig, load_tasks
from metastep.train.build import build_learner
from metastep.train.config import fill_defaults


def learner(alpha: float = 0.1, meta_lr: float = 1e-3, **changes):
    config = TrainConfig(**({"tasks": "sinusoid", "hidden": (4,)} | changes))
    description = load_tasks(config).description
    return build_learner(fill_defaults(config, description, "mlp"), description, alpha, meta_lr)


def jittered(value):
    """A function of JAX's own that closes over a value."""
    return jax.nn.initializers.constant(value)


SAME_TWICE = {
    "model": lambda: mlp((1,), 1, (8,)),
    "optimiser": lambda: optax.adam(1e-3),
    "adapter": lambda: GradientAdapter(steps=2),
    "family": lambda: Sinusoid(),
    "jitted": lambda: jax.jit(jnp.sin),
    "custom_jvp": lambda: jax.nn.relu,
    "closure": lambda: jittered(2.0),
    "arrays": lambda: (jnp.arange(3.0), np.arange(3), jax.random.key(1)),
    "partial": lambda: partial(jnp.mean, axis=0),
    "learner": learner,
}


@pytest.mark.parametrize("make", SAME_TWICE.values(), ids=SAME_TWICE)
def test_what_is_made_the_same_way_twice_is_spelled_the_same(make):
    assert spelled(make()) == spelled(make())


DIFFERENT = {
    "width": (mlp((1,), 1, (8,)), mlp((1,), 1, (9,))),
    "activation": (mlp((1,), 1, (8,)), mlp((1,), 1, (8,), jax.nn.tanh)),
    "rate of an optimiser": (optax.sgd(1e-3), optax.sgd(2e-3)),
    "closure": (jittered(2.0), jittered(3.0)),
    "closed-over bits": (jittered(np.float32(1)), jittered(np.nextafter(np.float32(1), 2))),
    "dtype": (jnp.zeros(2, int), jnp.zeros(2)),
    "shape": (jnp.zeros((2, 1)), jnp.zeros((1, 2))),
    "number and text": (1, "1"),
    "whole and real": (1, 1.0),
    "zero and its negative": (0.0, -0.0),
    "nesting": (((1, 2), 3), (1, (2, 3))),
    "inner steps": (learner(), learner(steps=3)),
    "derivative": (learner(algorithm="maml"), learner(algorithm="fomaml")),
    "meta rate": (learner(), learner(meta_lr=2e-3)),
    "start of a rate": (learner(), learner(alpha=0.2)),
    "tasks side by side": (learner(), learner(tasks_at_once=2)),
    "back-offs": (learner(), learner(back_offs=3)),
    "schedule": (learner(schedule="constant"), learner(schedule="cosine")),
    "kind of rate": (learner(rate="fixed"), learner(rate="label-free")),
}  # fmt: skip


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_what_would_be_another_program_is_spelled_another_way(one, other):
    assert spelled(one) != spelled(other)


@dataclasses.dataclass(frozen=True)
class Theirs:
    number: int = 1


class TheirModule(eqx.Module):
    number: int = 1


@pytest.mark.parametrize(
    "theirs",
    [
        lambda x: x,
        partial(lambda x: x),
        Theirs,
        [(Theirs(),)],
        TheirModule(),
        eqx.nn.Identity(),
        object(),
        iter([]),
    ],
    ids=("function", "partial", "class", "inside", "module", "layer", "object", "iterator"),
)
def test_code_from_elsewhere_and_objects_of_unknown_make_are_refused(theirs):
    with pytest.raises(UnspellableError):
        spelled(theirs)


def test_a_list_that_holds_itself_is_spelled():
    loop: list = [1]
    loop.append(loop)
    assert "<1 up>" in spelled(loop)
