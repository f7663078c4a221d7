"""Sampling without replacement below a number known only at run time."""

import functools
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metastep.tasks.draws import distinct

P_VALUE = 1e-5


@functools.partial(jax.jit, static_argnums=(2, 3))
def draws(keys, among, count, at_most):
    return jax.vmap(lambda key: distinct(key, among, count, at_most))(keys)


@pytest.mark.parametrize("among", range(3, 9))
def test_draws_are_different_and_below_the_limit(rng, among):
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), 500)
    drawn = np.asarray(draws(keys, jnp.asarray(among), 3, 8))
    assert drawn.min() == 0
    assert (
        drawn.max() == among - 1
    )  # in 500 draws of 3, the last is missed less than 1e-5 of the time
    assert all(len(set(row)) == 3 for row in drawn.tolist())


def test_taking_all_is_a_permutation(rng):
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), 50)
    drawn = np.asarray(draws(keys, jnp.asarray(4), 4, 7))
    np.testing.assert_array_equal(np.sort(drawn, axis=1), np.tile(np.arange(4), (50, 1)))


def test_every_ordered_draw_is_equally_likely(rng):
    # Chi-square over the 20 ordered pairs below 5; false alarm for fewer than one seed in 100,000.
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), 20_000)
    for at_most in (5, 9):
        drawn = np.asarray(draws(keys, jnp.asarray(5), 2, at_most))
        counts = [np.sum((drawn == pair).all(axis=1)) for pair in permutations(range(5), 2)]
        assert sum(counts) == 20_000
        assert scipy.stats.chisquare(counts).pvalue > P_VALUE


def test_a_plain_number_is_its_own_bound():
    key = jax.random.key(0)
    np.testing.assert_array_equal(distinct(key, 6, 3), distinct(key, jnp.asarray(6), 3, at_most=6))
    assert distinct(key, 6, 3).dtype == jnp.result_type(int)
