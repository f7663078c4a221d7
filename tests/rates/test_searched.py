"""Rates found by trying: exact where one step can be, of the right units, honest about what is not finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastep._errors import InputError
from metastep.rates import least_loss_rate, rates_to_search

POSITIVE = st.floats(1e-3, 1e3)


@given(POSITIVE, POSITIVE, st.floats(-50, 50).filter(lambda x: abs(x) > 1e-3))
def test_one_step_on_one_absolute_error_lands_on_its_label(scale, label, x):
    # |w x - y| at w = 0: the gradient is -x sign(y), its square x^2, and Polyak's step |y| / x^2.
    label, x = label * scale, np.array([x])
    rates = rates_to_search(np.array([label]), x**2)
    losses = np.abs(rates * x * x - label)[None]
    found = least_loss_rate(rates, np.repeat(losses, 2, axis=0))
    assert found.value == pytest.approx(label / x[0] ** 2)
    assert found.interval == [found.value, found.value]
    assert losses.min() < 1e-9 * label


@given(POSITIVE, POSITIVE)
def test_rates_have_the_unit_of_a_loss_over_a_squared_slope(loss_factor, length_factor):
    loss, slope = np.array([1.0, 3.0]), np.array([0.5, 2.0])
    rates = rates_to_search(loss_factor * loss, length_factor * slope)
    np.testing.assert_allclose(rates, loss_factor / length_factor * rates_to_search(loss, slope))
    assert rates[0] == 0
    assert (np.diff(rates) > 0).all()


def test_a_loss_below_zero_has_a_scale_too():
    loss, slope = np.array([-2.0, -2.0]), np.ones(2)
    np.testing.assert_array_equal(rates_to_search(loss, slope), rates_to_search(-loss, slope))


@pytest.mark.parametrize(("loss", "slope"), [([1.0, 1.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 1.0])])
def test_what_does_not_change_has_no_rate(loss, slope):
    with pytest.raises(InputError) as caught:
        rates_to_search(np.array(loss), np.array(slope))
    assert str(caught.value) == (
        "the loss has no curvature along the inner gradient, and no slope either: every rate is the same"
    )


def test_a_rate_at_which_one_task_is_lost_is_not_the_best():
    rates = np.array([0.0, 1.0, 2.0, 4.0])
    losses = np.array([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, np.nan, -np.inf]])
    assert least_loss_rate(rates, losses).value == 1.0
    # A resample without the second task would take the largest.
    assert least_loss_rate(rates, losses).interval == [1.0, 4.0]


def test_the_interval_covers_the_best_rate_of_all_tasks():
    # Losses |alpha - a| with a of the task's own: the mean is least at the median of a, here 1. Of 200 intervals of
    # 95 % 180 cover it at least, or the chance is below 0.002.
    rng = np.random.default_rng(0)
    rates, covered = np.linspace(0, 3, 301), 0
    for _ in range(200):
        own = 1 + 0.5 * rng.standard_normal(60)
        found = least_loss_rate(rates, np.abs(rates - own[:, None]), seed=int(rng.integers(2**31)))
        covered += found.low <= 1 <= found.high
    assert covered >= 180
