"""The 1/N shift of the optimal rate, measured on the exact average risk."""

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


def test_fewer_examples_than_features_are_refused():
    with pytest.raises(InputError, match="finite_task_coefficient: phi holds 2 examples"):
        theory.finite_task_coefficient(np.ones((1, 2, 3)))
    with pytest.raises(InputError, match="phi has shape"):
        theory.finite_task_coefficient(np.ones((2, 3)))
