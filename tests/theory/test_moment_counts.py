"""Counts of index tuples by enumeration, and what they say of sums over indices."""

import itertools

import numpy as np
import pytest

from metastep import theory
from metastep._errors import InputError


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_counts_are_those_of_an_enumeration(dim):
    counts = theory.polynomial_moment_counts(dim)
    expected = {name: np.zeros(6 * (dim - 1) + 1) for name in counts._fields[1:]}
    for j, l in itertools.product(range(dim), repeat=2):  # noqa: E741 - the paper's indices
        expected["numerator"][j + l] += 1
    for j, l, s in itertools.product(range(dim), repeat=3):  # noqa: E741
        expected["one_shot"][2 * (j + l + s)] += 1
        expected["one_shot_as_printed"][3 * j + l + 2 * s] += 1
        expected["many_shots"][j + l + s] += 1
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(counts, name), values)
    np.testing.assert_array_equal(counts.order, np.arange(6 * dim - 5))


def test_one_shot_counts_are_the_coefficients_of_its_third_moment():
    """For one shot E tr G^3 is the sum of the moments, each as often as it is counted."""
    moments = theory.normal_raw_moments(18, 0.3, 1.2)
    third = theory.polynomial_gram_moments(4, 1, moments).p3
    counts = theory.polynomial_moment_counts(4)
    np.testing.assert_allclose(third, counts.one_shot @ np.asarray(moments), rtol=1e-9)
    printed = theory.polynomial_gram_moments_as_printed(4, 1, moments).p3
    np.testing.assert_allclose(printed, counts.one_shot_as_printed @ np.asarray(moments), rtol=1e-9)


def test_a_dimension_is_needed():
    with pytest.raises(InputError, match="dim is 0"):
        theory.polynomial_moment_counts(0)
