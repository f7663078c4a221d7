"""Raw moments E x^r of the laws that the examples of Zou et al. draw from, for the `..._gram_moments` functions.

In NumPy and double precision: the moments needed go up to order 6 (dim - 1), which outgrows float32.
"""

import math

import numpy as np

from metastep._errors import InputError, check_count
from metastep.theory.citations import source

__all__ = ["exponential_raw_moments", "normal_raw_moments", "uniform_raw_moments"]


@source("zou2022", "Examples 1 and 2 for normal data", "derived")
def normal_raw_moments(order: int, mean: float = 0.0, variance: float = 1.0) -> np.ndarray:
    """Moments of N(mean, variance), by integration by parts.

    m_0 = 1,   m_1 = mean,   m_(r+1) = mean m_r + r variance m_(r-1)

    Parameters
    ----------
    order : of the highest moment, at least 1
    mean, variance : of the law, variance >= 0

    Returns
    -------
    (order + 1,) E x^0, ..., E x^order.

    Raises
    ------
    InputError
        If `order` is below 1 or `variance` negative.

    References
    ----------
    Derived for Zou et al. (2022), Examples 1 and 2.
    """
    check_count("order", order)
    if variance < 0:
        raise InputError(f"variance is {variance}; it must not be negative")
    moments = [1.0, mean]
    for r in range(1, order):
        moments.append(mean * moments[r] + r * variance * moments[r - 1])
    return np.array(moments)


@source("zou2022", "Examples 1 and 2 for uniform data", "derived")
def uniform_raw_moments(order: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Moments of U(low, high).

    m_r = (high^(r+1) - low^(r+1)) / ((r + 1) (high - low))

    Parameters
    ----------
    order : of the highest moment, at least 1
    low, high : ends of the range, low < high

    Returns
    -------
    (order + 1,) E x^0, ..., E x^order.

    Raises
    ------
    InputError
        If `order` is below 1 or the range is empty.

    References
    ----------
    Derived for Zou et al. (2022), Examples 1 and 2.
    """
    check_count("order", order)
    if not low < high:
        raise InputError(f"low is {low} and high is {high}; low must be below high")
    powers = np.arange(1, order + 2)
    return (float(high) ** powers - float(low) ** powers) / (powers * (high - low))


@source("zou2022", "Examples 1 and 2 for exponential data", "derived")
def exponential_raw_moments(order: int, scale: float = 1.0) -> np.ndarray:
    """Moments of the exponential law of mean `scale`.

    m_r = r! scale^r

    Parameters
    ----------
    order : of the highest moment, at least 1
    scale : mean, > 0

    Returns
    -------
    (order + 1,) E x^0, ..., E x^order.

    Raises
    ------
    InputError
        If `order` is below 1 or `scale` not positive.

    References
    ----------
    Derived for Zou et al. (2022), Examples 1 and 2.
    """
    check_count("order", order)
    if not scale > 0:
        raise InputError(f"scale is {scale}; it must be above 0")
    return np.array([math.factorial(r) * float(scale) ** r for r in range(order + 1)])
