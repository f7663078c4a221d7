"""The proved interval always holds the rate; the printed one does not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastep import theory
from metastep._errors import InputError


@given(st.sampled_from([(1, 1, 1), (4, 5, 2), (3, 2, 6)]), st.integers(0, 1000))
def test_interval_holds_the_rate(shape, seed):
    phi = np.random.default_rng(seed).standard_t(3, size=shape)
    rate, interval = theory.limit_rate(phi), theory.rate_interval(phi)
    slack = 1 + 1e-9
    assert interval.lower <= rate * slack
    assert rate <= interval.upper * slack
    assert rate <= interval.moment_bound * slack
    assert interval.radius_bound <= interval.lower * slack


def test_bounds_are_their_formulas():
    phi = np.random.default_rng(0).normal(size=(4, 6, 3))
    spectra = [np.linalg.eigvalsh(p.T @ p) for p in phi]
    s2 = np.mean(np.sum(phi**2, axis=-1))
    radius = np.max(np.sum(phi**2, axis=-1))
    expected = (
        6 / (2 * np.max(spectra)),
        6 / (2 * np.min(spectra)),
        3 / (2 * s2),
        1 / (2 * radius),
    )
    np.testing.assert_allclose(theory.rate_interval(phi), expected, rtol=1e-9)
    np.testing.assert_allclose(
        theory.rate_interval_as_printed(phi), (1 / (2 * 3 * s2), 3 / (2 * s2)), rtol=1e-9
    )
    of_moments = theory.moment_interval_as_printed(theory.gram_moments(phi), 6, 3)
    np.testing.assert_allclose(of_moments, theory.rate_interval_as_printed(phi), rtol=1e-9)
    np.testing.assert_allclose(
        theory.eigenvalue_bounds(phi), (np.min(spectra), np.max(spectra)), rtol=1e-9
    )


def test_radius_bound_is_tight_for_one_feature_of_constant_size():
    phi = np.array([[[2.0], [-2.0]], [[-2.0], [2.0]]])
    interval = theory.rate_interval(phi)
    np.testing.assert_allclose(interval.radius_bound, theory.limit_rate(phi), rtol=1e-12)
    np.testing.assert_allclose(interval.radius_bound, 1 / 8, rtol=1e-12)


def test_moment_bound_is_tight_and_dependent_features_have_no_upper_end():
    same = np.broadcast_to(2 * np.eye(3), (2, 3, 3))
    np.testing.assert_allclose(
        theory.rate_interval(same).moment_bound, theory.limit_rate(same), rtol=1e-12
    )
    twice = np.repeat(np.random.default_rng(0).normal(size=(2, 4, 1)), 2, axis=2)
    assert theory.rate_interval(twice).upper == np.inf


def test_printed_lower_end_fails_where_the_report_says_so():
    # x ~ N(0, 1), one shot, one feature: alpha_lim = 3 / (2 * 15) = 0.1 but the printed bound is 0.5.
    # 400,000 tasks: the sample's sixth moment is within about 1 %.
    phi = np.random.default_rng(0).normal(size=(400_000, 1, 1))
    rate = theory.limit_rate(phi)
    np.testing.assert_allclose(rate, 0.1, rtol=0.05)
    np.testing.assert_allclose(theory.rate_interval_as_printed(phi).lower, 0.5, rtol=0.01)


def test_refusals():
    with pytest.raises(InputError, match="phi has shape"):
        theory.rate_interval(np.ones((2, 2)))
    with pytest.raises(InputError, match="phi is zero everywhere"):
        theory.rate_interval_as_printed(np.zeros((2, 2, 2)))
    moments = theory.GramMoments(*map(np.float64, (0, 1, 1)))
    with pytest.raises(InputError, match=r"moments\.p1 is 0; it must be above 0"):
        theory.moment_interval_as_printed(moments, 2, 2)
    with pytest.raises(InputError, match="dim is 0"):
        theory.moment_interval_as_printed(moments, 2, 0)
