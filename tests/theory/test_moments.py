"""Moments against sums over every product of entries, against simulation, and in their limits."""

import numpy as np
import oracles
import pytest

from metastep import theory
from metastep._errors import InputError

# Raw moments of x = +-1 with unequal odds, shifted: m1..m3 differ from zero, so no term hides.
POINTS, ODDS = np.array([-0.7, 0.4, 1.3]), np.array([0.5, 0.3, 0.2])
RAW = np.array([np.sum(ODDS * POINTS**r) for r in range(19)])


def normal_moments(variance, highest):
    raw = np.zeros(highest + 1)
    raw[0] = 1
    for r in range(2, highest + 1, 2):
        raw[r] = raw[r - 2] * (r - 1) * variance
    return raw


@pytest.mark.parametrize(("dim", "shots"), [(1, 1), (1, 4), (4, 1), (2, 3), (3, 2), (3, 4)])
def test_moments_are_sums_over_all_products(dim, shots):
    for function, oracle in [
        (theory.iid_gram_moments, oracles.iid_moments_by_sum),
        (theory.polynomial_gram_moments, oracles.polynomial_moments_by_sum),
    ]:
        moments = function(dim, shots, RAW)
        np.testing.assert_allclose((moments.p2, moments.p3), oracle(dim, shots, RAW), rtol=1e-9)
    np.testing.assert_allclose(theory.iid_gram_moments(dim, shots, RAW).p1, dim * shots * RAW[2])
    expected = shots * sum(RAW[2 * j] for j in range(dim))
    np.testing.assert_allclose(theory.polynomial_gram_moments(dim, shots, RAW).p1, expected)


def test_moments_from_one_are_the_same():
    from_one = theory.iid_gram_moments(3, 4, RAW[1:7])
    np.testing.assert_array_equal(from_one, theory.iid_gram_moments(3, 4, RAW))


def test_numbers_of_the_errata():
    raw = normal_moments(0.25, 12)
    np.testing.assert_allclose(theory.polynomial_gram_moments(3, 4, raw).p3, 154.515625)
    printed = theory.polynomial_gram_moments_as_printed(3, 4, raw).p3
    np.testing.assert_allclose(printed, 115.9, atol=0.05)
    raw = normal_moments(1.0, 6)
    assert theory.iid_gram_moments(5, 7, raw).p3 == 7665
    assert theory.iid_gram_moments_as_printed(5, 7, raw).p3 == 4725


def test_moments_are_the_means_of_samples():
    # 200,000 tasks; p3 of three-point data has a relative standard error well below 1 %.
    generator = np.random.default_rng(0)
    entries = generator.choice(POINTS, p=ODDS, size=(200_000, 3, 2))
    np.testing.assert_allclose(
        theory.gram_moments(entries), theory.iid_gram_moments(2, 3, RAW), rtol=0.02
    )
    powers = entries[..., :1] ** np.arange(3)
    np.testing.assert_allclose(
        theory.gram_moments(powers), theory.polynomial_gram_moments(3, 3, RAW), rtol=0.02
    )
    root = np.array([[1.0, 0.4], [0.0, 0.7]])
    rows = generator.normal(size=(200_000, 3, 2)) @ root
    moments = theory.gaussian_gram_moments(root.T @ root, 3)
    np.testing.assert_allclose(theory.gram_moments(rows), moments, rtol=0.03)
    query = generator.normal(size=(200_000, 2, 2)) @ root
    np.testing.assert_allclose(
        theory.limit_rate(rows, query), theory.gaussian_split_rate(root.T @ root, 3), rtol=0.03
    )


def test_isotropic_gaussian_features_are_iid():
    np.testing.assert_allclose(
        theory.gaussian_gram_moments(0.8 * np.eye(4), 5),
        theory.iid_gram_moments(4, 5, normal_moments(0.8, 6)),
        rtol=1e-12,
    )


def test_rate_limits():
    raw = normal_moments(0.5, 6)
    rate = theory.moment_rate(theory.iid_gram_moments(6000, 2000, raw), 2000)
    np.testing.assert_allclose(rate, theory.zero_mean_limit_rate(3.0, 0.5), rtol=2e-3)
    raw = np.array([1, 2.0, 4.5, 11, 28.75, 79, 230])  # N(2, 1/2)
    rate = theory.moment_rate(theory.iid_gram_moments(4000, 4000, raw), 4000)
    np.testing.assert_allclose(rate, theory.nonzero_mean_limit_rate(4000, 2.0), rtol=2e-3)


def test_printed_rates():
    exact = theory.moment_rate(theory.iid_gram_moments(1, 1, RAW), 1)
    np.testing.assert_allclose(theory.single_shot_rate_as_printed(RAW), exact, rtol=1e-12)
    wide = theory.moment_rate(theory.iid_gram_moments(2, 1, RAW), 1)
    assert abs(theory.single_shot_rate_as_printed(RAW) / wide - 1) > 0.1
    np.testing.assert_allclose(theory.many_shots_rate_as_printed(RAW), RAW[4] / RAW[6])


def test_polynomial_rate_tends_to_a_half_and_falls_with_the_variance():
    # K = 1, dim = 3: alpha_lim -> 1/2 as the variance vanishes, and ~ variance^-2 as it grows.
    def rate(variance):
        return theory.moment_rate(
            theory.polynomial_gram_moments(3, 1, normal_moments(variance, 12)), 1
        )

    np.testing.assert_allclose(rate(1e-6), 0.5, rtol=1e-4)
    slope = np.log(rate(1e8) / rate(1e6)) / np.log(1e2)
    np.testing.assert_allclose(slope, -2, atol=1e-3)


def test_large_counts_do_not_overflow_integers():
    moments = theory.iid_gram_moments(100_000, 100_000, normal_moments(1.0, 6).astype(np.float32))
    assert np.isfinite(moments.p3)
    assert moments.p3.dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.iid_gram_moments(0, 1, RAW), "dim is 0"),
        (lambda: theory.iid_gram_moments(1, 0, RAW), "shots is 0"),
        (lambda: theory.iid_gram_moments(1, 1, RAW[:5]), "raw_moments holds 5 moments"),
        (lambda: theory.polynomial_gram_moments(4, 1, RAW[:17]), "raw_moments holds 17 moments"),
        (lambda: theory.gaussian_gram_moments(-np.eye(2), 1), "cov has the negative eigenvalue"),
        (lambda: theory.gaussian_gram_moments(np.ones((1, 2, 2)), 1), "one .dim, dim. matrix"),
        (lambda: theory.gaussian_split_rate(np.eye(2), 0), "shots is 0"),
        (lambda: theory.zero_mean_limit_rate(-1.0, 1.0), "ratio is -1"),
        (lambda: theory.zero_mean_limit_rate(1.0, 0.0), "second_moment is 0"),
        (lambda: theory.nonzero_mean_limit_rate(3, 0.0), "mean is zero"),
        (lambda: theory.moment_rate(theory.GramMoments(1, 1, 1), 0), "shots is 0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
