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
    with pytest.raises(InputError, match=r"schedule is 'steps'; choose one of: .*constant.*linear.*wsd"):  # fmt: skip
        schedule_factor("steps", jnp.asarray(0), jnp.asarray(1))
