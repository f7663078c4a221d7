"""One start at many rates against literal gradient steps, task by task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._errors import InputError
from metastep.experiments.networks import network_learner
from metastep.tasks import Sinusoid, batch_of_episodes
from metastep.train import losses_at_rates


@pytest.fixture(scope="module")
def case():
    learner = network_learner((3,), 4, steps=2)
    params = learner.model.init(jax.random.key(0))
    return learner, params, batch_of_episodes(Sinusoid(shots=4, queries=5), jax.random.key(1), 3)


def test_losses_are_those_of_literal_steps(case):
    learner, params, episodes = case
    alphas = np.array([-0.01, 0.0, 0.05])

    def loss(weights, batch):
        return ((learner.model.apply(weights, batch.x) - batch.y) ** 2).mean()

    expected = np.zeros((3, 3))
    for row, alpha in enumerate(alphas):
        for task in range(3):
            episode = jax.tree.map(lambda leaf: leaf[task], episodes)  # noqa: B023
            moved = params
            for _ in range(2):
                gradient = jax.grad(loss)(moved, episode.support)
                moved = jax.tree.map(lambda w, g: w - alpha * g, moved, gradient)  # noqa: B023
            expected[row, task] = loss(moved, episode.query)
    found = losses_at_rates(learner, params, jnp.asarray(alphas), episodes)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    compiled = jax.jit(lambda rates: losses_at_rates(learner, params, rates, episodes))
    np.testing.assert_allclose(compiled(alphas), expected, rtol=1e-9)


def test_rates_stand_in_one_row(case):
    learner, params, episodes = case
    with pytest.raises(InputError, match=r"alphas has shape \(\); it must have one axis"):
        losses_at_rates(learner, params, jnp.asarray(0.1), episodes)
