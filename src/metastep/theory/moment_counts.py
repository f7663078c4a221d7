"""Which raw moments the limits of Example 1 are made of, and how often each enters: Fig. 6 of Zou et al."""

from typing import NamedTuple

import numpy as np

from metastep._errors import check_count
from metastep.theory.citations import source

__all__ = ["MomentCounts", "polynomial_moment_counts"]


class MomentCounts(NamedTuple):
    """How many index tuples give each order of the moment, for polynomial features.

    Attributes
    ----------
    order : (6 (dim - 1) + 1,) orders 0, 1, ... of the raw moments
    numerator : of the pairs in E.3, j + l: g1 of Fig. 6
    one_shot : of the triples in E.4 for one shot, 2 (j + l + s)
    one_shot_as_printed : the same as the paper has it, 3 j + l + 2 s: g2 of Fig. 6
    many_shots : of the triples as the paper has them for many shots, j + l + s: g3 of Fig. 6
    """

    order: np.ndarray
    numerator: np.ndarray
    one_shot: np.ndarray
    one_shot_as_printed: np.ndarray
    many_shots: np.ndarray


@source("zou2022", "Fig. 6: coefficients of the moments in E.5 and E.6", "as printed")
@source("zou2022", "coefficients of the corrected one-shot moment of E.4", "corrected")
def polynomial_moment_counts(dim: int) -> MomentCounts:
    """Coefficients of the raw moments in the limits of `polynomial_gram_moments`.

    Indices run from 0 to dim - 1, so the number of tuples with a_1 i_1 + ... + a_n i_n = r is the coefficient
    of z^r in the product of the polynomials 1 + z^a + ... + z^(a (dim - 1)).

    Parameters
    ----------
    dim : number of features 1, x, ..., x^(dim - 1), at least 1

    Returns
    -------
    MomentCounts
        Whole numbers, padded with zeros to the highest order of all.

    Raises
    ------
    InputError
        If `dim` is below 1.

    References
    ----------
    Zou et al. (2022), Fig. 6 and equations E.3 to E.6.
    """
    check_count("dim", dim)
    orders = 6 * (dim - 1) + 1

    def count(*factors: int) -> np.ndarray:
        total = np.ones(1)
        for factor in factors:
            powers = np.zeros(factor * (dim - 1) + 1)
            powers[::factor] = 1
            total = np.convolve(total, powers)
        return np.pad(total, (0, orders - len(total)))

    return MomentCounts(
        order=np.arange(float(orders)),
        numerator=count(1, 1),
        one_shot=count(2, 2, 2),
        one_shot_as_printed=count(3, 1, 2),
        many_shots=count(1, 1, 1),
    )
