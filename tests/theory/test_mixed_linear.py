"""Bernacchia's setting: the distance against sampled labels, the test loss against sampled tasks."""

import jax
import numpy as np
import pytest

from metastep import theory
from metastep._errors import InputError


def test_distance_is_that_of_sampled_labels(rng):
    """Stacked least squares over 4000 draws of optima and noise; beyond 5 standard errors once in a million."""
    x, x_query = rng.standard_normal((6, 3, 4)), rng.standard_normal((6, 5, 4))
    alpha, spread, noise = 0.15, 0.3, 0.2
    moved = np.concatenate(
        [q - 2 * alpha / 3 * q @ p.T @ p for p, q in zip(x, x_query, strict=True)]
    )
    distances = []
    for _ in range(4000):
        w = spread * rng.standard_normal((6, 4))
        y, y_query = (np.einsum("nkd,nd->nk", z, w) for z in (x, x_query))
        y, y_query = (z + noise * rng.standard_normal(z.shape) for z in (y, y_query))
        labels = y_query - 2 * alpha / 3 * np.einsum("nqd,nkd,nk->nq", x_query, x, y)
        distances.append(np.sum(np.linalg.lstsq(moved, labels.ravel(), rcond=None)[0] ** 2))
    expected = theory.minimiser_distance(x, x_query, alpha, spread**2, noise**2)
    assert abs(np.mean(distances) - expected) < 5 * np.std(distances) / 4000**0.5
    mapped = jax.jit(jax.vmap(lambda a: theory.minimiser_distance(x, x_query, a, 0.09, 0.04)))
    np.testing.assert_allclose(mapped(np.array([alpha]))[0], expected, rtol=1e-12)


def test_test_loss_is_that_of_sampled_tasks(rng):
    alpha, noise, apart = 0.1, 0.3, np.array([0.5, -1.0, 0.2])
    x = rng.standard_normal((200_000, 6, 3))  # five examples to adapt to, one to be judged by
    y = noise * rng.standard_normal((200_000, 6))
    residual = np.einsum("nkd,d->nk", x, apart) - y
    moved = apart - 2 * alpha / 5 * np.einsum("nkd,nk->nd", x[:, :5], residual[:, :5])
    losses = (np.sum(x[:, 5] * moved, axis=1) - y[:, 5]) ** 2
    expected = theory.expected_test_loss(np.sum(apart**2), alpha, 5, 3, noise**2)
    assert abs(losses.mean() - expected) < 5 * losses.std() / 200_000**0.5


@pytest.mark.parametrize("noise_var", [0.0, 0.7])
def test_best_test_rate_is_the_minimum(noise_var):
    rates = np.linspace(0, 0.5, 100_001)
    losses = theory.expected_test_loss(1.3, rates, 5, 4, noise_var)
    best = theory.best_test_rate(1.3, 5, 4, noise_var)
    assert best == pytest.approx(rates[np.argmin(losses)], abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: theory.minimiser_distance(np.ones((2, 3, 2)), np.ones((3, 3, 2)), 0.1),
            "phi_query",
        ),
        (lambda: theory.expected_test_loss(-1.0, 0.1, 5, 4), "distance is -1"),
        (lambda: theory.best_test_rate(1.0, 0, 4), "shots is 0"),
    ],
)
def test_impossible_inputs_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
