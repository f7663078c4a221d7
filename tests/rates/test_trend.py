"""When a training loss is flat: against its definition in NumPy, and what it must and must not be taken in by."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metastep.rates import Trend


@jax.jit
def _found(losses, horizon, reference):
    """The meta-step at which a whole run of these losses was found flat."""

    def step(trend, seen):
        number, loss = seen
        return trend.after(number, horizon, loss, reference), None

    steps = jnp.arange(1, losses.shape[0] + 1)
    return jax.lax.scan(step, Trend.begin(losses.shape[0]), (steps, losses))[0].flat_since


def found(losses, reference=10.0) -> int:
    losses = jnp.asarray(np.asarray(losses), float)
    return int(_found(losses, jnp.asarray(len(losses)), jnp.asarray(reference)))


def expected(losses, reference=10.0) -> int:
    """The definition, with all losses at hand: -1, or the first end of a period at which they are flat."""
    horizon, logs = len(losses), np.log(np.asarray(losses, float))
    bounds, end = [math.floor(0.05 * horizon)], 0.05 * horizon
    while bounds[-1] <= horizon:
        end = math.ceil(max(math.sqrt(2) * end, end + 1))
        bounds.append(end)
    for first, middle, last in zip(bounds, bounds[2:], bounds[4:], strict=False):
        early, late = logs[first:middle], logs[middle:last]
        if last > horizon or len(early) < 10:
            continue
        error = math.sqrt(early.var() / len(early) + late.var() / len(late))
        gain, learned = early.mean() - late.mean(), math.log(reference) - late.mean()
        if gain + 1.645 * error < 0.1 and learned > 0.1:
            return last
    return -1


def power(horizon: int, exponent: float, scatter: float = 0.0, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=horizon)
    return np.arange(1, horizon + 1) ** -exponent * np.exp(scatter * noise)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([30, 100, 437, 1000]),
    st.floats(-0.1, 0.4),
    st.floats(0.0, 1.0),
    st.integers(0, 10**6),
)
def test_it_is_found_where_the_definition_says(horizon, exponent, scatter, seed):
    losses = power(horizon, exponent, scatter, seed)
    assert found(losses) == expected(losses)


@pytest.mark.parametrize("horizon", [200, 5_000])
def test_a_loss_that_falls_by_a_tenth_or_less_in_a_doubling_is_flat_as_soon_as_there_is_a_doubling(
    horizon,
):
    assert found(power(horizon, 0.1)) == expected(power(horizon, 0.1)) <= 0.25 * horizon
    assert found(power(horizon, 0.3)) == -1


def test_single_hard_tasks_do_not_decide():
    """One meta-step in twenty with a hundred times the loss: the means scatter, the fall goes on."""
    losses = power(2_000, 0.4, 0.2)
    losses[::20] *= 100
    assert found(losses, reference=1e4) == -1


def test_a_loss_that_has_not_begun_to_fall_is_not_flat():
    """A network at its plateau before it has learned anything: the fall is still to come."""
    plateau = power(1_000, 0.0, 0.1)
    assert found(plateau, reference=1.0) == -1
    assert found(plateau, reference=2.0) > 0


@pytest.mark.parametrize("loss", [0.0, -1.0, math.nan, math.inf])
def test_losses_without_a_logarithm_are_never_flat(loss):
    assert found(np.full(500, loss)) == -1


def test_too_few_meta_steps_tell_nothing():
    assert found(np.full(30, 0.5)) == -1


def test_it_is_found_once():
    """What is flat stays found where it was, whatever comes after."""
    flat = np.full(1_000, 0.5)
    flat[600:] = np.geomspace(0.5, 1e-3, 400)
    assert found(flat) == expected(flat) < 300


def test_a_run_that_goes_on_for_longer_keeps_its_trend_and_compiles_nothing():
    trend = Trend.begin(100)
    step = jax.jit(lambda trend, horizon: trend.after(jnp.asarray(50), horizon, 1.0, 2.0))
    shorter, longer = (step(trend, jnp.asarray(horizon)) for horizon in (100, 400))
    assert step._cache_size() == 1
    assert jax.tree.map(jnp.shape, shorter) == jax.tree.map(jnp.shape, longer)
    assert all(a.dtype == b.dtype for a, b in zip(*map(jax.tree.leaves, (trend, shorter)), strict=True))  # fmt: skip
