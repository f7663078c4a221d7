"""The 1/N shift of the optimal rate, measured on the exact average risk, and its scatter over samples."""

import numpy as np
import oracles
import pytest

from metastep import theory
from metastep._errors import InputError


def best_rate(phi, population):
    """Minimum of the oracle's average risk: Newton's step on finite differences, to convergence."""
    alpha, small = oracles.limit_rate(population), 1e-4
    for _ in range(8):
        risks = [oracles.average_risk(phi, alpha + s, 1.0, population) for s in (-small, 0, small)]
        alpha -= small * (risks[2] - risks[0]) / (2 * (risks[2] - 2 * risks[1] + risks[0]))
    return alpha


@pytest.mark.parametrize("shape", [(40, 5, 3), (40, 2, 4)])
def test_average_risk_rate_is_where_the_oracle_is_least(shape):
    rng = np.random.default_rng(1)
    phi, population = rng.normal(size=shape) + 0.2, rng.normal(size=(9, 6, shape[2])) - 0.1
    for test in (phi, population):
        np.testing.assert_allclose(
            theory.average_risk_rate(phi, test), best_rate(phi, test), rtol=1e-6
        )
    np.testing.assert_allclose(
        theory.average_risk_rate(phi), theory.average_risk_rate(phi, phi), rtol=1e-12
    )


@pytest.mark.parametrize("shape", [(6, 5, 3), (6, 2, 4)])
def test_coefficient_predicts_the_shift(shape):
    # Copies of one sample have exactly the moments of that sample, so that only the terms of higher
    # order in 1/N are left: at 40 and 80 copies they are a few per cent, and halve.
    phi = np.random.default_rng(0).normal(size=shape) + 0.2
    limit = oracles.limit_rate(phi)
    errors = []
    for copies in (40, 80):
        shift = best_rate(np.concatenate([phi] * copies), phi) - limit
        predicted = theory.finite_task_coefficient(phi) / (copies * shape[0])
        errors.append(abs(float(predicted / shift) - 1))
    assert errors[0] < 0.1
    assert errors[1] < 0.7 * errors[0]


def test_scatter_predicts_the_spread_of_samples():
    """sd of alpha*(N) over samples of optima and features against the delta method: 300 samples of 64 tasks."""
    rng = np.random.default_rng(5)
    population = rng.uniform(-5.0, 5.0, (4096, 15, 10))
    grams = population.transpose(0, 2, 1) @ population
    predicted = theory.finite_task_scatter(population) / 64**0.5
    rates = []
    for _ in range(300):
        chosen = grams[rng.integers(4096, size=64)]
        a = rng.standard_normal((64, 10))
        first = np.einsum("nde,ne->nd", chosen, a)
        second = np.einsum("nde,ne->nd", chosen, first)
        rates.append(15 * np.sum(first**2) / (2 * np.sum(first * second)))
    assert np.std(rates) == pytest.approx(float(predicted), rel=0.15)  # 4 % standard error


def test_fewer_examples_than_features_are_refused():
    with pytest.raises(InputError, match="finite_task_coefficient: phi holds 2 examples"):
        theory.finite_task_coefficient(np.ones((1, 2, 3)))
    with pytest.raises(InputError, match="phi has shape"):
        theory.finite_task_coefficient(np.ones((2, 3)))
    with pytest.raises(InputError, match="average_risk_rate: phi holds 2 examples"):
        theory.average_risk_rate(np.ones((1, 2, 3)))
    with pytest.raises(InputError, match="phi_test has shape"):
        theory.average_risk_rate(np.ones((2, 3, 2)), np.ones((2, 3, 3)))
    with pytest.raises(InputError, match="phi_test is zero everywhere"):
        theory.average_risk_rate(np.ones((2, 3, 2)), np.zeros((2, 3, 2)))
