"""Raw moments of three laws against quadrature of their densities."""

import math

import numpy as np
import pytest
import scipy.integrate

from metastep import theory
from metastep._errors import InputError

LAWS = {
    "normal": (
        theory.normal_raw_moments,
        {"mean": 0.3, "variance": 0.7},
        lambda x: math.exp(-((x - 0.3) ** 2) / 1.4) / math.sqrt(1.4 * math.pi),
        (-20, 20),
    ),
    "uniform": (theory.uniform_raw_moments, {"low": -0.5, "high": 2}, lambda x: 0.4, (-0.5, 2)),
    "exponential": (
        theory.exponential_raw_moments,
        {"scale": 1.5},
        lambda x: math.exp(-x / 1.5) / 1.5,
        (0, 150),
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_moments_are_integrals_of_the_density(name):
    function, parameters, density, ends = LAWS[name]
    integrals = [
        scipy.integrate.quad(lambda x, r=r: x**r * density(x), *ends, limit=500)[0]
        for r in range(8)
    ]
    np.testing.assert_allclose(function(7, **parameters), integrals, rtol=1e-7)


def test_standard_laws_of_the_papers():
    np.testing.assert_array_equal(theory.normal_raw_moments(6), [1, 0, 1, 0, 3, 0, 15])
    np.testing.assert_array_equal(theory.exponential_raw_moments(4), [1, 1, 2, 6, 24])
    np.testing.assert_allclose(theory.uniform_raw_moments(4, -5, 5), [1, 0, 25 / 3, 0, 125])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.normal_raw_moments(0), "order is 0"),
        (lambda: theory.normal_raw_moments(4, variance=-1.0), "variance is -1.0; it must not be"),
        (lambda: theory.uniform_raw_moments(4, 1.0, 1.0), "low must be below high"),
        (lambda: theory.exponential_raw_moments(4, 0.0), "scale is 0.0; it must be above 0"),
    ],
)
def test_impossible_laws_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
