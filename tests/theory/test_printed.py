"""The printed rates, digit by digit, and where they part from the corrected ones."""

import numpy as np
import pytest

from metastep import theory
from metastep._errors import InputError


def test_batch_rates_on_hand_computed_features():
    psi = np.array([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
    k = psi @ psi.T
    expected = 3 * np.trace(k @ k) / (2 * np.trace(k @ k @ k))
    for shape in [(3, 2), (1, 3, 2), (3, 1, 2)]:
        np.testing.assert_allclose(theory.batch_rate(psi.reshape(shape)), expected, rtol=1e-12)
    np.testing.assert_allclose(theory.second_moment_rate(psi), 1 / (2 * 5.0), rtol=1e-12)
    printed = 1 / (2 * 3 * psi.std() ** 2)
    np.testing.assert_allclose(theory.batch_rate_as_printed(psi), printed, rtol=1e-12)


def test_second_moment_rate_is_exact_for_one_direction():
    length = np.random.default_rng(0).choice([-2.0, 2.0], size=(5, 4, 1))
    phi = length * np.array([0.6, 0.8])
    # Every k is 4 times a matrix of signs of rank 1, so its only eigenvalue is 16: K / (2 * 16).
    np.testing.assert_allclose(theory.limit_rate(phi), 0.125, rtol=1e-12)
    np.testing.assert_allclose(theory.second_moment_rate(phi), 0.125, rtol=1e-12)


def test_heuristics():
    np.testing.assert_allclose(theory.heuristic_rate_as_printed(50, 20, 0.25), 1 / (2 * 20 * 0.25))
    np.testing.assert_allclose(theory.heuristic_rate_as_printed(10, 20, 0.25), 1 / (2 * 10 * 0.25))
    assert theory.heuristic_range_as_printed(50, 20, 30) == (2 / 20, 30 / 20)


def test_online_rate_is_a_running_mean():
    rate = theory.online_rate_as_printed(0.4, 5, 2, 0.01)
    np.testing.assert_allclose(rate, 0.9 * 0.4 + 0.1 / (2 * 5 * 2 * 0.01), rtol=1e-12)
    rate = theory.online_rate_as_printed(0.4, 5, 2, 0.01, decay=0.0)
    np.testing.assert_allclose(rate, 5.0, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.batch_rate(np.ones(3)), "psi has shape"),
        (lambda: theory.batch_rate(np.ones((2, 0))), "psi has shape"),
        (lambda: theory.second_moment_rate(np.zeros((2, 2))), "psi is zero everywhere"),
        (lambda: theory.batch_rate_as_printed([[np.nan]]), "psi holds 1 NaN"),
        (lambda: theory.heuristic_rate_as_printed(0, 1, 1.0), "num_examples is 0"),
        (lambda: theory.heuristic_rate_as_printed(1, 0, 1.0), "dim is 0"),
        (lambda: theory.heuristic_rate_as_printed(1, 1, -1.0), "variance is -1"),
        (lambda: theory.heuristic_range_as_printed(1, 1, 1), "num_observations is 1"),
        (lambda: theory.online_rate_as_printed(0.1, 0, 1, 1.0), "ways is 0"),
        (lambda: theory.online_rate_as_printed(0.1, 1, 1, 0.0), "variance is 0"),
        (lambda: theory.online_rate_as_printed(0.1, 1, 1, 1.0, decay=1.0), "decay is 1.0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
