"""The course of the meta rate: against its description in NumPy, and what every course has to keep."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastep._errors import InputError
from metastep.rates import SCHEDULES, schedule_factor

_SHAPES = {
    "wsd": ([0, 0.05, 0.8, 1], [0, 1, 1, 0]),
    "linear": ([0, 0.05, 1], [0, 1, 0]),
    "until-flat": ([0, 0.05, 0.8, 1], [0, 1, 1, 0]),
    "constant": ([0, 1], [1, 1]),
}


def course(name: str, horizon: int) -> np.ndarray:
    steps = jnp.arange(horizon)
    return np.array([schedule_factor(name, step, jnp.asarray(horizon)) for step in steps])


@pytest.mark.parametrize("name", _SHAPES)
@pytest.mark.parametrize("horizon", [1, 7, 100])
def test_a_course_is_the_line_through_its_corners(name, horizon):
    middles = (np.arange(horizon) + 0.5) / horizon
    expected = np.interp(middles, *_SHAPES[name])
    np.testing.assert_allclose(course(name, horizon), expected, rtol=1e-12)


@pytest.mark.parametrize(("flat", "falls_from"), [(0, 0.0), (30, 0.3), (80, 0.8), (95, 0.8)])
def test_until_flat_falls_from_where_the_loss_was_found_flat(flat, falls_from):
    steps, horizon = jnp.arange(100), jnp.asarray(100)
    shares = [schedule_factor("until-flat", step, horizon, flat) for step in steps]
    progress = (np.arange(100) + 0.5) / 100
    rising, falling = progress / 0.05, (1 - progress) / (1 - falls_from)
    expected = np.minimum(rising, 1) * np.minimum(falling, 1)
    np.testing.assert_allclose(shares, expected, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"until-flat"}))
def test_other_courses_do_not_ask_whether_the_loss_falls(name):
    step, horizon = jnp.asarray(60), jnp.asarray(100)
    assert schedule_factor(name, step, horizon, 10) == schedule_factor(name, step, horizon)


def test_cosine_is_half_a_wave_after_the_warm_up():
    progress = (np.arange(200) + 0.5) / 200
    wave = (1 + np.cos(np.pi * (progress - 0.05) / 0.95)) / 2
    expected = np.where(progress < 0.05, progress / 0.05, wave)
    np.testing.assert_allclose(course("cosine", 200), expected, rtol=1e-12)


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(0, 10_000), st.integers(0, 10_000))
def test_every_course_stays_between_0_and_1_even_beyond_its_horizon(name, step, horizon):
    assert 0 <= float(schedule_factor(name, jnp.asarray(step), jnp.asarray(horizon))) <= 1


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_no_meta_step_of_a_run_is_wasted(name):
    assert (course(name, 100) > 0).all()


def test_an_unknown_course_is_refused_with_the_known_ones():
    known = r"schedule is .steps.; choose one of: .*constant.*until-flat.*wsd"
    with pytest.raises(InputError, match=known):
        schedule_factor("steps", jnp.asarray(0), jnp.asarray(1))
