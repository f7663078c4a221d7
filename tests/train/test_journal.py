"""What a run says of itself: between which rates nine tenths of them lie."""

import numpy as np
import pytest

from metastep.train.journal import middle


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1761])
def test_nine_tenths_of_the_rates_lie_between_the_two_that_are_shown(rng, count):
    alphas = np.exp(rng.standard_normal((3, count)))
    before = alphas.copy()
    low, high = middle(alphas).T[:, :, None]
    assert (((low <= alphas) & (alphas <= high)).mean(1) >= 0.9).all()
    # And no more than that, but for rounding to whole rates.
    assert ((alphas < low).sum(1) <= 0.05 * count).all()
    assert ((alphas > high).sum(1) <= 0.05 * count).all()
    np.testing.assert_array_equal(alphas, before)
    if count == 1761:
        exact = np.quantile(alphas, [0.05, 0.95], axis=1)
        np.testing.assert_allclose([low[:, 0], high[:, 0]], exact, rtol=0.05)
