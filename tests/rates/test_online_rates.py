"""Rates that watch training: what they measure, what they remember, and that a guard can lower them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from metastep._errors import InputError
from metastep._types import Batch, Episode, MetaParams
from metastep.models import Objective, conv4
from metastep.rates import (
    RATES,
    AnilOnlineRate,
    EdgeRate,
    EstimatedRate,
    ScheduledRate,
    label_aware_terms,
    label_free_terms,
    make_rate,
)

LINEAR = Objective.of(lambda w, x: x @ w, "regression")
RNG = np.random.default_rng(3)
TASKS, K, DIM = 6, 5, 3
W = MetaParams(jnp.asarray(RNG.normal(size=(DIM, 1))))


def linear_episodes(scale: float = 1.0) -> Episode:
    rng = np.random.default_rng(5)
    x = scale * rng.normal(size=(2, TASKS, K, DIM))
    y = x @ rng.normal(size=(TASKS, DIM, 1))
    support, query = (Batch(jnp.asarray(a), jnp.asarray(b)) for a, b in zip(x, y, strict=True))
    return Episode(support, query)


def watched(rate, steps: int, episodes: Episode):
    state = rate.init(W.params)[1]
    update = jax.jit(lambda s: rate.update(s, LINEAR, W, episodes))
    for _ in range(steps):
        state = update(state)
    return state


def test_the_label_aware_running_mean_is_that_of_sums():
    # Written out: numerator and denominator each in a running mean that began at start * d and d.
    rate = EstimatedRate(0.7, estimate="label-aware", decay=0.5, num_tasks=TASKS)
    episodes = linear_episodes()
    terms = jax.vmap(lambda e: label_aware_terms(LINEAR, W.params, e))(episodes)
    n, d = terms.slope.mean(), terms.curvature.mean()
    top, bottom = 0.7 * d, d
    for _ in range(3):
        top, bottom = 0.5 * top + 0.5 * n, 0.5 * bottom + 0.5 * d
    state = watched(rate, 3, episodes)
    np.testing.assert_allclose(rate.alpha(W, state), top / bottom, rtol=1e-12)


def test_the_label_free_rate_comes_to_rest_at_h6():
    # One random probe for each task and meta-step is unbiased: after 4,000 of them the ratio has a standard error
    # of about 1 % here; 5 % is five of those.
    rate = EstimatedRate(0.5, decay=0.999, num_tasks=TASKS)
    episodes = linear_episodes()
    keys = jax.random.split(jax.random.key(0), TASKS)
    exact = jax.vmap(lambda e, k: label_free_terms(LINEAR, W.params, e, k))(episodes, keys)
    state = rate.init(W.params)[1]
    step = lambda _, s: rate.update(s, LINEAR, W, episodes)  # noqa: E731
    state = jax.jit(lambda s: jax.lax.fori_loop(0, 8_000, step, s))(state)
    expected = float(exact.second.sum() / exact.third.sum())
    assert float(rate.alpha(W, state)) == pytest.approx(expected, rel=0.05)


def test_never_decreasing_keeps_the_largest():
    falling = EstimatedRate(5.0, estimate="label-aware", decay=0.5, num_tasks=TASKS)
    kept = dataclasses.replace(falling, never_decreasing=True)
    episodes = linear_episodes()
    assert float(falling.alpha(W, watched(falling, 5, episodes))) < 1
    assert float(kept.alpha(W, watched(kept, 5, episodes))) == 5.0


def test_the_edge_rate_finds_the_largest_curvature():
    episodes = linear_episodes()
    grams = [np.asarray(x).T @ np.asarray(x) * 2 / K for x in episodes.support.x]
    largest = np.linalg.eigvalsh(np.mean(grams, axis=0)).max()
    rate = EdgeRate(0.1, share=0.5, decay=0.5, num_tasks=TASKS)
    state = watched(rate, 200, episodes)
    np.testing.assert_allclose(rate.alpha(W, state), 1 / largest, rtol=1e-6)


def test_a_measurement_that_is_not_finite_is_not_remembered():
    rate = EstimatedRate(0.3, estimate="label-aware", num_tasks=TASKS)
    good = watched(rate, 2, linear_episodes())
    after = rate.update(good, LINEAR, W, linear_episodes(scale=1e200))
    assert float(rate.alpha(W, after)) == float(rate.alpha(W, good))


@pytest.mark.parametrize(("reading", "factor"), [("mean square", 1.0), ("variance", 4.0)])
def test_the_anil_rate_is_the_printed_running_mean(reading, factor):
    model = conv4((16, 16, 1), 4, filters=6)
    params = model.init(jax.random.key(0))
    x = jnp.asarray(RNG.uniform(size=(2, 4, 16, 16, 1)))
    episodes = Episode(Batch(x, jnp.zeros((2, 4), int)), Batch(x, jnp.zeros((2, 4), int)))
    rate = AnilOnlineRate(1.5, features=model.features, reading=reading, loss_factor=factor)
    state = rate.update(rate.init(params)[1], LINEAR, MetaParams(params), episodes)
    features = np.stack([np.asarray(model.features(params, task)) for task in x])
    features = features / np.linalg.norm(features, axis=-1, keepdims=True)
    spread = (features**2).mean() if reading == "mean square" else features.var()
    expected = 0.9 * 1.5 + 0.1 * factor / (2 * 4 * spread)
    np.testing.assert_allclose(rate.alpha(MetaParams(params), state), expected, rtol=1e-6)
    if reading == "mean square":  # the finding: normalised features leave nothing to measure
        np.testing.assert_allclose(spread, 1 / 6, rtol=1e-6)


def test_a_schedule_is_followed_from_its_beginning():
    rate = ScheduledRate(optax.linear_schedule(1.0, 0.0, 10))
    state = rate.init(W.params)[1]
    seen = []
    for _ in range(3):
        state = rate.update(state, LINEAR, W, linear_episodes())
        seen.append(float(rate.alpha(W, state)))
    np.testing.assert_allclose(seen, [1.0, 0.9, 0.8], rtol=1e-6)


@pytest.mark.parametrize("kind", RATES)
def test_every_kind_starts_where_told_and_can_be_lowered(kind):
    rate = make_rate(kind, 0.25)
    rates, state = rate.init(W.params)
    meta = MetaParams(W.params, rates)
    for factor, expected in ((1.0, 0.25), (0.5, 0.125)):
        lowered, lowered_state = rate.scaled(meta, state, jnp.asarray(factor))
        for leaf in jax.tree.leaves(rate.alpha(lowered, lowered_state)):
            np.testing.assert_allclose(leaf, expected, rtol=1e-6)


@pytest.mark.parametrize("make", [
    EstimatedRate, EdgeRate, lambda a: EstimatedRate(a, estimate="label-aware"),
])  # fmt: skip
def test_a_lowered_rate_stays_lowered(make):
    rate, episodes = make(0.25), linear_episodes()
    plain = rate.alpha(W, rate.update(rate.init(W.params)[1], LINEAR, W, episodes))
    _, lowered = rate.scaled(W, rate.init(W.params)[1], jnp.asarray(0.5))
    after = rate.alpha(W, rate.update(lowered, LINEAR, W, episodes))
    np.testing.assert_allclose(after, 0.5 * plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EstimatedRate(0.1, estimate="oracle"), "estimate is 'oracle'"),
        (lambda: EstimatedRate(0.1, num_tasks=0), "num_tasks"),
        (lambda: EdgeRate(0.1, share=0.0), "share"),
        (lambda: make_rate("magic", 0.1), "rate is 'magic'"),
    ],
)
def test_impossible_rates_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_loss_without_curvature_leaves_the_rate_where_it_began():
    absolute = Objective.of(lambda w, x: x @ w, "regression", lambda o, y: jnp.mean(jnp.abs(o - y)))
    for rate in (
        EstimatedRate(0.3, num_tasks=TASKS),
        EstimatedRate(0.3, estimate="label-aware", num_tasks=TASKS),
        EdgeRate(0.3, num_tasks=TASKS),
    ):
        state = rate.init(W.params)[1]
        for _ in range(3):
            state = rate.update(state, absolute, W, linear_episodes())
        assert float(rate.alpha(W, state)) == pytest.approx(0.3)
