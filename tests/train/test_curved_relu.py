"""Which networks are trained with the curved ReLU, and what is said about it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from metastep.models import Model, from_equinox, mlp, relu
from metastep.tasks import Sinusoid
from metastep.train import TrainConfig, load_tasks
from metastep.train.build import build_learner
from metastep.train.choose import choose_rates
from metastep.train.problem import filled


def _with_own_derivative(activation):
    square = jax.custom_jvp(lambda h: activation(h) ** 2)
    square.defjvp(lambda h, along: (square(*h), 2 * activation(*h) * along[0]))

    def apply(params, x):
        return square(x @ params["in"]) @ params["out"]

    return Model(lambda key: {"in": jnp.ones((1, 8)), "out": jnp.ones((8, 1))}, apply)


def _eqx_mlp(activation):
    return from_equinox(lambda key: eqx.nn.MLP(1, 1, 8, 2, activation, key=key))


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        (_eqx_mlp(jax.nn.relu), {}, "notes"),
        (_eqx_mlp(nn.relu), {}, "notes"),
        (_eqx_mlp(jax.nn.relu), {"curved_relu": False}, None),
        (_eqx_mlp(jax.nn.relu), {"steps": 5}, "notes"),
        (_eqx_mlp(jax.nn.relu), {"steps": 6}, None),
        (_eqx_mlp(jax.nn.relu), {"steps": 6, "curved_relu": True}, "notes"),
        (_eqx_mlp(relu), {}, None),
        (_eqx_mlp(jnp.tanh), {}, None),
        (_eqx_mlp(jax.nn.relu), {"algorithm": "fomaml"}, None),
        (_with_own_derivative(jax.nn.relu), {}, "warnings"),
        (_with_own_derivative(relu), {}, None),
        ("auto", {}, None),
    ],
)
def test_what_becomes_of_a_plain_relu_is_told(model, options, told):
    config = TrainConfig(tasks=Sinusoid, model=model, alpha=0.01, **options)
    tasks = load_tasks(config)
    found = choose_rates(filled(config, tasks.description), tasks)
    for kind in ("notes", "warnings"):
        assert len(found[kind]) == (kind == told)
        assert all("metastep.models.relu in its place" in text for text in found[kind])


def _meta_gradient(model, **options):
    config = TrainConfig(tasks=Sinusoid, model=model, alpha=0.01, hidden=(8, 8), **options)
    description = load_tasks(config).description
    learner = build_learner(filled(config, description), description, 0.01, 0.1)
    params = learner.model.init(jax.random.key(0))
    episode = Sinusoid().sample(jax.random.key(1))
    return jax.value_and_grad(learner.query_loss)(params, episode, 0.05)


def test_a_relu_of_the_users_own_trains_as_ours_does():
    # Handed over with either ReLU, and the library's: losses and gradients of the same parameters.
    plain, curved = (mlp((1,), 1, (8, 8), activation) for activation in (jax.nn.relu, relu))
    found = _meta_gradient(plain)
    jax.tree.map(np.testing.assert_array_equal, found, _meta_gradient(curved))
    jax.tree.map(np.testing.assert_array_equal, found, _meta_gradient("mlp"))
    as_it_is = _meta_gradient(plain, curved_relu=False)
    jax.tree.map(np.testing.assert_array_equal, as_it_is, _meta_gradient("mlp", curved_relu=False))
    assert as_it_is[0] == found[0]
    assert not np.allclose(as_it_is[1]["layer1"]["weight"], found[1]["layer1"]["weight"])
