"""The meta rate that learns itself, against the rule written out and against what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metastep.rates import hypergradient


def path(gradients, rate=0.1, gamma=0.02):
    optimizer = hypergradient(rate, gamma)
    state, updates = optimizer.init(jnp.zeros(2)), []
    with jax.numpy_dtype_promotion("standard"):
        for gradient in gradients:
            update, state = optimizer.update(jnp.asarray(gradient), state)
            updates.append(np.asarray(update))
    return np.array(updates)


def test_the_rule_written_out(rng):
    gradients = rng.normal(size=(6, 2))
    unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    cosines = np.concatenate([[0], (unit[1:] * unit[:-1]).sum(1)])
    expected = -0.1 * np.exp(0.3 * np.cumsum(cosines))[:, None] * gradients
    np.testing.assert_allclose(path(gradients, gamma=0.3), expected, rtol=1e-12)


def test_the_scale_of_the_loss_does_not_matter(rng):
    gradients = rng.normal(size=(6, 2))
    np.testing.assert_allclose(path(1e6 * gradients) / 1e6, path(gradients), rtol=1e-10)


def test_a_gradient_of_zero_changes_nothing():
    updates = path([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert np.isfinite(updates).all()
    np.testing.assert_allclose(updates[2], [-0.1, 0.0])


@pytest.mark.parametrize("start", [1e-4, 0.15])
def test_it_finds_a_working_rate_on_a_quadratic(start):
    # Curvatures 1 and 10: stable below 0.2. At 1e-4 plain descent keeps 0.96 of the slow direction in 400 steps.
    curvatures = jnp.array([1.0, 10.0])
    optimizer = hypergradient(start)
    with jax.numpy_dtype_promotion("standard"):
        weights, state = jnp.ones(2), optimizer.init(jnp.ones(2))
        for _ in range(400):
            updates, state = optimizer.update(curvatures * weights, state)
            weights = optax.apply_updates(weights, updates)
    assert np.abs(np.asarray(weights)).max() < 1e-3
