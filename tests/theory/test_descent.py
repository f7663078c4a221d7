"""Measured convergence against the spectrum: both of the functions on quadratics whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep import theory
from metastep._errors import InputError

CURVATURES = np.array([0.3, 1.1, 2.0])


def hessian(seed=0):
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return rotation * CURVATURES @ rotation.T


@pytest.mark.parametrize("rate", [0.2, 0.9, 1.05, 3.0])
def test_contraction_is_that_of_the_slowest_or_fastest_direction(rate):
    matrix, start = jnp.asarray(hessian()), np.array([1.0, -2.0, 0.5])
    found = theory.log_contraction(lambda w: matrix @ w, start, rate, 4000)
    slowest = np.log10(np.max(np.abs(1 - rate * CURVATURES)))
    np.testing.assert_allclose(found, slowest, atol=1e-6)
    assert (found < 0) == (rate < 2 / CURVATURES.max())


def test_a_run_that_would_overflow_or_vanish_is_measured_all_the_same():
    for rate, expected in ((1e3, np.log10(1999)), (0.5 + 1e-9, np.log10(1 - 0.15))):
        start = jnp.ones(3)
        found = theory.log_contraction(lambda w: jnp.asarray(CURVATURES) * w, start, rate, 2000)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    short = theory.log_contraction(lambda w: w, np.ones(3, np.float32), np.float32(0.5), 10)
    assert short.dtype == jnp.float32
    np.testing.assert_allclose(short, np.log10(0.5), rtol=1e-5)


def test_largest_rate_brackets_the_change():
    limit = 0.7123
    found = jax.jit(lambda limit: theory.largest_rate(lambda r: r < limit, 0.1, 10.0, 40))(limit)
    np.testing.assert_allclose(found, limit, rtol=1e-10)
    assert found < limit
    assert theory.largest_rate(lambda r: r < 0.05, 0.1, 10.0) == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_largest_contracting_rate_is_two_over_the_sharpest(seed):
    matrix = jnp.asarray(hessian(seed))
    found = theory.largest_contracting_rate(
        lambda w: matrix @ w, np.array([1.0, -2.0, 0.5]), 0.1, 10.0, 2000, 30
    )
    np.testing.assert_allclose(found, 2 / CURVATURES.max(), rtol=1e-6)
    none = theory.largest_contracting_rate(lambda w: -matrix @ w, np.ones(3), 0.1, 10.0, 200)
    assert none == 0  # a maximum: every rate leads away from it


def test_refusals():
    with pytest.raises(InputError, match="low is 2 and high 1"):
        theory.largest_contracting_rate(lambda w: w, np.ones(2), 2.0, 1.0, 4)
    with pytest.raises(InputError, match="steps is 1"):
        theory.largest_contracting_rate(lambda w: w, np.ones(2), 0.1, 1.0, 1)
    with pytest.raises(InputError, match="steps is 1"):
        theory.log_contraction(lambda w: w, np.ones(2), 0.1, 1)
    with pytest.raises(InputError, match="start has shape"):
        theory.log_contraction(lambda w: w, np.ones((2, 2)), 0.1, 4)
    with pytest.raises(InputError, match="low is 2 and high 1; it must be 0 < low < high"):
        theory.largest_rate(lambda r: r < 1, 2.0, 1.0)
    with pytest.raises(InputError, match="halvings is 0"):
        theory.largest_rate(lambda r: r < 1, 0.1, 1.0, 0)
