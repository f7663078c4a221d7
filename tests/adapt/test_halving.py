"""Inner steps that overstep are taken at half the rates, on quadratics and against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from metastep import PerStep
from metastep._errors import InputError
from metastep.adapt import GradientAdapter, adapt_halving

CURVATURES = np.array([0.5, 1.0, 4.0])


def bowl(params):
    """Half of sum_i h_i w_i^2: the step at rate alpha multiplies w_i by 1 - alpha h_i."""
    return 0.5 * jnp.sum(jnp.asarray(CURVATURES) * params["w"] ** 2)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def run(start, alpha, steps, halvings, loss):
    gradient = jax.value_and_grad(loss)
    return adapt_halving(GradientAdapter(steps), gradient, {"w": start}, alpha, halvings)


def adapt(start, alpha, steps=1, halvings=10, loss=bowl):
    return run(jnp.asarray(start), jax.tree.map(jnp.asarray, alpha), steps, halvings, loss)


def oracle(start, rates, halvings=10):
    """In NumPy, for rates of shape (steps, 3): where it ends, halvings so far, and how near a tie came.

    Plain steps, and steps that are halved until the loss does not rise; after each, the lower of the two counts.
    """
    loss = lambda w: (CURVATURES * w**2).sum()  # noqa: E731
    w = plain = np.array(start)
    total, counts, nearest = 0, [], np.inf
    for rate in rates:
        for times in range(halvings + 1):
            moved = w * (1 - rate / 2**times * CURVATURES)
            change = loss(moved) / loss(w) - 1
            nearest = min(nearest, abs(change))
            if change < 0:
                break
        total += times
        w = moved if change < 0 else w
        plain = plain * (1 - rate * CURVATURES)
        is_back = total > 0 and loss(plain) <= loss(w)
        nearest = min(nearest, abs(loss(plain) / loss(w) - 1)) if total else nearest
        counts.append(0 if is_back else total)
    return plain if is_back else w, counts, nearest


@given(
    start=st.lists(st.floats(0.1, 3.0), min_size=3, max_size=3),
    # Each number of steps is a program.
    rates=st.sampled_from([1, 3, 7]).flatmap(
        lambda steps: st.lists(
            st.lists(st.floats(1e-3, 30.0) | st.floats(0.2, 3.0), min_size=3, max_size=3),
            min_size=steps,
            max_size=steps,
        )
    ),
)
def test_steps_are_halved_until_the_loss_does_not_rise_unless_plain_ones_end_lower(start, rates):
    expected, counts, nearest = oracle(start, np.array(rates))
    assume(nearest > 1e-7)  # rounding decides a tie
    found = adapt(start, PerStep({"w": np.array(rates)}), steps=len(rates))
    assert found.halvings.tolist() == counts
    assert not found.unadapted.any()
    np.testing.assert_allclose(found.params["w"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("far", [1, 5])
def test_rates_that_overstep_by_intent_are_taken_as_they_are(far):
    # Curvatures 1 and 4: Chebyshev steps of 1 / 1 and 1 / 4 reach the minimum of both in any order, though the first
    # doubles the loss. Padded with steps of no length, to the number of steps that goes through a loop.
    rates = PerStep(jnp.array([1.0, 0.25, *[0.0] * far]))
    found = adapt([0.0, 1.0, 1.0], rates, steps=2 + far)
    assert found.halvings[0] > 0
    assert not found.halvings[1:].any()
    assert not found.unadapted.any()
    np.testing.assert_allclose(found.params["w"], 0, atol=1e-15)


def test_steps_that_never_come_back_are_not_taken():
    found = adapt([0.1, 0.1, 1.0], 0.51, steps=8)  # -1.04 at each step
    assert (found.halvings > 0).all()
    assert float(jnp.max(jnp.abs(found.params["w"]))) < 0.1


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_what_does_not_rise_is_left_alone(rng, steps):
    start, alpha = rng.normal(size=3), 0.31
    plain = jax.jit(lambda w: GradientAdapter(steps)(jax.value_and_grad(bowl), {"w": w}, alpha)[0])
    found = adapt(start, alpha, steps=steps)
    assert not found.halvings.any()
    np.testing.assert_allclose(found.params["w"], plain(jnp.asarray(start))["w"], rtol=1e-14)


@pytest.mark.parametrize("steps", [2, 8])
def test_zero_halvings_are_plain_steps(steps):
    found = adapt([0.0, 0.0, 1.0], 1.0, steps=steps, halvings=0)
    assert not found.halvings.any()
    assert float(found.params["w"][2]) == (-3.0) ** steps


def test_after_the_last_halving_a_step_is_left_out():
    # 1e6 / 2^10 is still beyond the edge of 2 / 4.
    found = adapt([0.2, -0.3, 1.0], PerStep(jnp.array([1e6, 0.25])), steps=2)
    assert found.halvings.tolist() == [10, 10]
    assert found.unadapted.tolist() == [True, False]
    np.testing.assert_allclose(found.params["w"], [0.2 * 0.875, -0.3 * 0.75, 0.0], atol=1e-15)
    assert not adapt([0.2, -0.3, 1.0], 1e6, halvings=30).unadapted.any()


@pytest.mark.parametrize("alpha", [1e300, np.inf])
@pytest.mark.parametrize("steps", [2, 7])
def test_infinite_and_undefined_losses_count_as_risen(alpha, steps):
    found = adapt([1.0, 1.0, 1.0], alpha, steps=steps)
    assert found.unadapted.all()
    np.testing.assert_array_equal(found.params["w"], [1.0, 1.0, 1.0])


def test_undefined_beyond_a_wall():
    # sqrt(1 - w) is undefined above 1, where a rate of 8 would lead.
    def walled(params):
        return jnp.sum(jnp.sqrt(1.0 - params["w"]))

    found = adapt([0.0], 8.0, loss=walled)
    assert int(found.halvings[0]) == 2
    assert float(found.params["w"][0]) == 1.0


def test_a_gradient_that_is_not_finite_leaves_the_parameters_alone():
    def cusp(params):  # finite at 0, its slope is not
        return jnp.sum(jnp.sqrt(params["w"]))

    found = adapt([0.0], 0.1, loss=cusp)
    assert found.unadapted.all()
    assert float(found.params["w"][0]) == 0.0


def test_negative_rates_climb_by_intent():
    found = adapt([0.0, 0.0, 1.0], -0.25)
    assert (int(found.halvings[0]), float(found.params["w"][2])) == (0, 2.0)


def test_rates_that_run_out_keep_the_last():
    short = adapt([1.0, 1.0, 1.0], PerStep(jnp.array([0.3, 0.1])), steps=6)
    long = adapt([1.0, 1.0, 1.0], PerStep(jnp.array([0.3, *[0.1] * 5])), steps=6)
    np.testing.assert_array_equal(short.params["w"], long.params["w"])


@pytest.mark.parametrize("steps", [3, 8])
def test_every_step_is_watched_and_is_the_end_of_a_shorter_adaptation(rng, steps):
    start = {"w": jnp.asarray(rng.normal(size=3))}
    gradient = jax.value_and_grad(bowl)
    long = adapt_halving(
        GradientAdapter(steps), gradient, start, 1.1, watch=lambda params: params["w"]
    )
    assert long.halvings[0] > 0
    for taken in (1, steps - 1, steps):
        short = adapt_halving(GradientAdapter(taken), gradient, start, 1.1)
        np.testing.assert_allclose(short.params["w"], long.watched[taken - 1], rtol=1e-12)
    assert adapt_halving(GradientAdapter(0), gradient, start, 1.1).params is start


def test_what_is_kept_fixed_stays(rng):
    adapter = GradientAdapter(2, lambda params: {"body": False, "head": True})
    loss = lambda p: jnp.sum((p["body"] * p["head"] - 1) ** 2)  # noqa: E731
    start = {"body": jnp.asarray([2.0, 3.0]), "head": jnp.asarray([0.0, 0.0])}
    found = adapt_halving(adapter, jax.value_and_grad(loss), start, 4.0)
    assert found.params["body"] is start["body"]
    assert found.halvings[0] > 0
    assert float(loss(found.params)) < 2.0


def test_side_by_side_as_one_by_one(rng):
    starts = jnp.asarray(rng.normal(size=(20, 3)))
    alphas = jnp.asarray(rng.uniform(0.01, 5.0, size=20))
    together = jax.vmap(
        lambda w, a: adapt_halving(GradientAdapter(2), jax.value_and_grad(bowl), {"w": w}, a)
    )(starts, alphas)
    assert 0 < int(jnp.count_nonzero(together.halvings[:, 0])) < 20
    for number in range(20):
        alone = adapt(starts[number], alphas[number], steps=2)
        assert alone.halvings.tolist() == together.halvings[number].tolist()
        np.testing.assert_allclose(
            alone.params["w"], together.params["w"][number], rtol=1e-12, atol=1e-14
        )


def test_negative_counts_are_refused():
    with pytest.raises(InputError, match="halvings is -1"):
        adapt([1.0, 1.0, 1.0], 0.1, halvings=-1)
