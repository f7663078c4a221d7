"""Distances against explicit steps, the gap against simulation, and where its sign turns."""

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastep import theory
from metastep._errors import InputError

GENERATOR = np.random.default_rng(13)
PHI = GENERATOR.normal(size=(8, 5, 3)) * np.array([0.5, 1, 1.5]) + 0.3
TEST = GENERATOR.normal(size=(4, 7, 3)) - 0.2


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_distance_is_that_of_explicit_steps(steps):
    w, optima = GENERATOR.normal(size=3), GENERATOR.normal(size=(8, 3))
    expected = oracles.adapted_distance(w, PHI, optima, 0.07, steps)
    actual = theory.adapted_distance(w, PHI, optima, 0.07, steps)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("linearised", [False, True])
@pytest.mark.parametrize("test", [None, TEST])
def test_gap_is_its_formula(steps, linearised, test):
    options = {"linearised": linearised, "phi_test": test}
    actual = theory.distance_gap(PHI, 0.1, 0.05, steps, 1.7, **options)
    population = PHI if test is None else test
    expected = oracles.distance_gap(PHI, 0.1, 0.05, steps, 1.7, linearised, population)
    np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_gap_is_the_mean_over_simulated_optima():
    # Both minimisers on the same 200,000 draws; the standard error of the difference is below 1 %.
    optima = GENERATOR.normal(size=(200_000, 8, 3))
    total = 0.0
    for alpha, sign in [(0.1, 1), (0.0, -1)]:
        ms = [c.T @ c for c in oracles.adapted(PHI, alpha)]
        w = np.einsum("nde,sne->sd", np.stack([np.linalg.inv(sum(ms)) @ m for m in ms]), optima)
        eye = np.eye(3)
        for g in oracles.grams(TEST):
            moved = w @ np.linalg.matrix_power(eye - 2 * 0.05 / 7 * g, 2)
            total += sign * np.mean(np.sum(moved**2, axis=1)) / 4
    gap = theory.distance_gap(PHI, 0.1, 0.05, 2, phi_test=TEST)
    np.testing.assert_allclose(gap, total, rtol=0.05)


@given(st.integers(0, 10_000), st.integers(0, 3))
def test_first_order_gap_is_never_positive(seed, steps):
    phi = np.random.default_rng(seed).standard_t(3, size=(4, 3, 2))
    assert theory.distance_gap(phi, 0.1, 0.02, steps, linearised=True) <= 0


def test_gap_tends_to_its_first_order():
    exact = theory.distance_gap(PHI, 1e-5, 0.05, 2)
    first = theory.distance_gap(PHI, 1e-5, 0.05, 2, linearised=True)
    np.testing.assert_allclose(exact, first, rtol=1e-3)


def test_equal_tasks_have_no_gap():
    same = np.broadcast_to(PHI[:1], PHI.shape)
    assert abs(theory.distance_gap(same, 0.05, 0.05, 2)) < 1e-12
    assert abs(theory.distance_gap(same, 0.05, 0.05, 2, linearised=True)) < 1e-12
    assert theory.sign_change_rate(same, 0.05, 2) == np.inf


def test_sign_changes_where_the_exact_gap_does():
    rate = float(theory.sign_change_rate(PHI, 0.05, 1, phi_test=TEST))
    below, above = (
        float(theory.distance_gap(PHI, f * rate, 0.05, 1, phi_test=TEST)) for f in (0.999, 1.001)
    )
    assert below < 0 < above
    for fraction in (0.1, 0.4, 0.8):
        assert theory.distance_gap(PHI, fraction * rate, 0.05, 1, phi_test=TEST) < 0


def test_rate_bound_by_hand_and_inside_the_true_range():
    low, high = np.asarray(theory.eigenvalue_bounds(PHI))
    g1, g2, g3 = (
        np.mean([np.linalg.matrix_power(g, j) for g in oracles.grams(PHI)], axis=0)
        for j in (1, 2, 3)
    )
    for spread in (None, 0.5):
        c = np.trace(g3 @ g1 - g2 @ g2) / 3 if spread is None else spread
        p = 4 * high**6 - low**6
        y = 2 * c * (1 - 1 / 8) * low * p / high**3
        root = y / (np.sqrt(4 * high**8 + y) + 2 * high**4)  # sqrt(4 lS^8 + y) - 2 lS^4
        bound = theory.distance_rate_bound(PHI, spread)
        np.testing.assert_allclose(bound, 5 * low / p * root, rtol=1e-9)
        y = 1.5 * c * low**4 * p / high**3
        root = y / (np.sqrt(4 * high**8 + y) + 2 * high**4)
        printed = theory.distance_rate_bound_as_printed(PHI, spread)
        np.testing.assert_allclose(printed, 5 * root / (low**2 * p), rtol=1e-9)
    assert 0 < theory.distance_rate_bound(PHI) < theory.sign_change_rate(PHI, 0.01, 1)


def test_corrected_bound_has_the_units_of_a_rate_and_the_printed_one_has_not():
    for function, holds in [
        (theory.distance_rate_bound, True),
        (theory.distance_rate_bound_as_printed, False),
    ]:
        ratio = 100**2 * function(100 * PHI) / function(PHI)
        assert (abs(ratio - 1) < 1e-9) == holds
        assert holds or ratio < 0.5


def test_fewer_shots_than_features_prove_nothing():
    assert theory.distance_rate_bound(PHI[:, :2]) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.adapted_distance(np.ones(2), PHI, np.ones((8, 3)), 0.1, 1), "params has"),
        (lambda: theory.adapted_distance(np.ones(3), PHI, np.ones((8, 3)), 0.1, -1), "steps is -1"),
        (lambda: theory.distance_gap(PHI, 0.1, 0.1, 1, -1.0), "task_var is -1"),
        (lambda: theory.distance_gap(PHI, 0.1, 0.1, 0.5), "steps is 0.5"),
        (lambda: theory.distance_gap(PHI[:1, :2], 0.1, 0.1, 1), "distance_gap: phi holds 2"),
        (lambda: theory.distance_gap(PHI, 0.1, 0.1, 1, phi_test=TEST[0]), "phi_test has shape"),
        (lambda: theory.sign_change_rate(PHI[:1, :2], 0.1, 1), "sign_change_rate: phi holds 2"),
        (lambda: theory.distance_rate_bound(PHI, -1.0), "spread is -1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
