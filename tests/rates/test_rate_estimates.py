"""The ratio of means and its interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastep._errors import InputError
from metastep.rates import ratio_estimate


def test_it_is_a_ratio_of_means_and_not_a_mean_of_ratios():
    estimate = ratio_estimate(np.array([1.0, 1.0]), np.array([1.0, 4.0]))
    assert estimate.value == 2 / 5  # the mean of ratios is 5/8
    # Resampling two tasks gives the ratios 1, 2/5 and 1/4, the outer two a quarter of the time each.
    assert estimate.interval == [0.25, 1.0]


@given(
    tasks=st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 10)), min_size=2, max_size=20),
    factor=st.sampled_from([0.25, 2.0, 1024.0]),  # powers of two: scaling them is exact
)
def test_units_and_signs_go_through(tasks, factor):
    top, bottom = np.array(tasks).T
    one = ratio_estimate(top, bottom)
    assert one.value == pytest.approx(top.sum() / bottom.sum(), rel=1e-12, abs=1e-12)
    scaled = ratio_estimate(factor * top, bottom)
    assert [scaled.value, *scaled.interval] == [factor * v for v in (one.value, *one.interval)]
    shrunk = ratio_estimate(top, factor * bottom)
    assert [shrunk.value, *shrunk.interval] == [v / factor for v in (one.value, *one.interval)]
    negative = ratio_estimate(-top, bottom)
    assert negative.interval == pytest.approx([-one.high, -one.low], rel=1e-9, abs=1e-12)


def test_tasks_are_resampled_whole(rng):
    # If numerators and denominators were resampled apart, this interval would not be a point.
    denominators = rng.exponential(size=30)
    estimate = ratio_estimate(3 * denominators, denominators)
    assert [estimate.low, estimate.high] == pytest.approx([3, 3], rel=1e-12)


def test_the_interval_covers_the_truth_as_often_as_it_says(rng):
    # Tasks of unequal curvature whose slopes follow it with noise; E slope / E curvature = 0.4. Over 400
    # samples the share covered has a standard error of 1.1 %: 90 to 98 % leaves more than 2.5 of them on
    # either side of the 94 % that a percentile interval of 60 skewed tasks reaches.
    covered = 0
    for _ in range(400):
        curvature = rng.lognormal(0, 0.6, 60)
        slope = 0.4 * curvature * rng.lognormal(-0.08, 0.4, 60) + rng.normal(0, 0.3, 60)
        estimate = ratio_estimate(slope, curvature, seed=int(rng.integers(2**31)))
        assert estimate.low <= estimate.value <= estimate.high
        covered += estimate.low <= 0.4 <= estimate.high
    assert 0.90 <= covered / 400 <= 0.98


def test_more_tasks_make_it_narrower(rng):
    bottom = rng.uniform(1, 2, 4000)
    top = bottom + rng.normal(size=4000)
    few, many = (ratio_estimate(top[:n], bottom[:n]) for n in (40, 4000))
    ratio = (few.high - few.low) / (many.high - many.low)
    assert 5 < ratio < 20  # 10 for a hundred times the tasks


def test_the_seed_decides():
    top, bottom = np.arange(9.0), np.arange(1.0, 10.0)
    assert ratio_estimate(top, bottom) == ratio_estimate(top, bottom)
    assert ratio_estimate(top, bottom, seed=1).interval != ratio_estimate(top, bottom).interval


def test_resamples_without_curvature_are_left_out():
    estimate = ratio_estimate(np.array([1.0, 1.0]), np.array([0.0, 1.0]))
    assert estimate.interval == [1.0, 2.0]


@pytest.mark.parametrize(
    ("top", "bottom", "message"),
    [
        ([1.0], [1.0], "an interval over tasks needs at least 2 tasks, not 1"),
        (
            [1.0, np.nan],
            [1.0, 1.0],
            "the loss or its derivatives are not finite at these parameters; check the data for huge values",
        ),
        (
            [1.0, 1.0],
            [1.0, np.inf],
            "the loss or its derivatives are not finite at these parameters; check the data for huge values",
        ),
        (
            [1.0, 1.0],
            [0.0, 0.0],
            "the loss has no curvature along the inner gradient: every rate is the same",
        ),
    ],
)
def test_what_has_no_ratio_is_refused(top, bottom, message):
    with pytest.raises(InputError) as caught:
        ratio_estimate(np.array(top), np.array(bottom))
    assert str(caught.value) == message
