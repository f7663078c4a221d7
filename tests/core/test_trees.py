"""Pytree arithmetic against loops over NumPy arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._trees import (
    all_finite,
    as_array,
    copies,
    descend,
    group_size,
    norm,
    scale,
    sums,
)


def two_layers(rng, dtype=np.float64):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)  # noqa: E731
    return {"body": {"bias": draw(2), "weight": draw(3, 2)}, "head": {"weight": draw(2, 1)}}


def per_parameter(rng, tree):
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(1, 2, leaf.shape)), tree)


# (rate, the factor it stands for at each leaf, in the order bias, weight, head)
RATES = {
    "python number": lambda rng, tree: (0.3, [0.3, 0.3, 0.3]),
    "scalar": lambda rng, tree: (jnp.asarray(0.3), [0.3, 0.3, 0.3]),
    "per layer": lambda rng, tree: ({"body": 0.1, "head": jnp.asarray(7.0)}, [0.1, 0.1, 7.0]),
    "per array": lambda rng, tree: (
        {"body": {"bias": 1.0, "weight": 2.0}, "head": {"weight": 3.0}},
        [1.0, 2.0, 3.0],
    ),
    "per parameter": lambda rng, tree: (
        lambda rates: (rates, [np.asarray(leaf) for leaf in jax.tree.leaves(rates)])
    )(per_parameter(rng, tree)),
    "mixed": lambda rng, tree: (
        {"body": {"bias": 5.0, "weight": jnp.full((3, 2), 2.0)}, "head": -1.0},
        [5.0, 2.0, -1.0],
    ),
}


@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_rate_fits_every_leaf_below_it(rng, kind, compiled):
    params, gradient = two_layers(rng), two_layers(rng)
    rate, factors = RATES[kind](rng, params)
    step = jax.jit(descend) if compiled else descend
    moved = jax.tree.leaves(step(params, rate, gradient))
    scaled = jax.tree.leaves(scale(rate, gradient))
    leaves = zip(*map(jax.tree.leaves, (params, gradient)), factors, strict=True)
    for i, (leaf, slope, factor) in enumerate(leaves):
        np.testing.assert_allclose(scaled[i], factor * np.asarray(slope), rtol=1e-15)
        expected = np.asarray(leaf) - factor * np.asarray(slope)
        np.testing.assert_allclose(moved[i], expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rate", [0.1, np.float64(0.1), "float32 array", "float64 array"])
def test_every_leaf_keeps_its_dtype(rng, dtype, rate):
    # Under strict promotion a rate of another precision would raise where it was not converted.
    if isinstance(rate, str):
        rate = jnp.asarray(0.1, rate.split()[0])
    params = two_layers(rng, dtype)
    moved = descend(params, rate, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(moved)} == {np.dtype(dtype)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", range(3))
def test_one_bad_entry_anywhere_is_found(rng, bad, where):
    leaves, structure = jax.tree.flatten(two_layers(rng))
    assert bool(all_finite(jax.tree.unflatten(structure, leaves)))
    leaves[where] = leaves[where].at[-1].set(bad)
    assert not bool(jax.jit(all_finite)(jax.tree.unflatten(structure, leaves)))


def test_only_floating_point_leaves_can_be_bad():
    assert bool(all_finite({"count": jnp.arange(3), "nothing": None}))
    assert bool(all_finite({}))


def test_norm_is_that_of_all_entries_whatever_their_precision(rng):
    tree = two_layers(rng) | {"half": jnp.asarray([3.0, -4.0], jnp.float16), "count": jnp.arange(5)}
    counted = jax.tree.leaves({k: v for k, v in tree.items() if k != "count"})
    leaves = [np.asarray(leaf, float).ravel() for leaf in counted]
    assert float(norm(tree)) == pytest.approx(np.linalg.norm(np.concatenate(leaves)), rel=1e-14)
    assert float(norm({})) == 0


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(100, 25, 25), (32, 25, 16), (26, 25, 13), (101, 25, 1), (7, 100, 7), (12, 0, 1), (1, 1, 1)],
)
def test_groups_are_equal_and_as_large_as_they_may(count, most, expected):
    assert group_size(count, most) == expected


@pytest.mark.parametrize(
    "value",
    [0.1, 3, True, np.float32(2), (0.1, 5.0), (1, 2), (0, 0.5), np.arange(3), [1.0, 2.0], jnp.ones(2)],
    ids=str,
)  # fmt: skip
def test_as_array_makes_the_array_that_jnp_makes(value):
    for precise in (False, True):
        with jax.enable_x64(precise):
            made, expected = as_array(value), jnp.asarray(value)
            assert jax.typeof(made) == jax.typeof(expected)
            np.testing.assert_array_equal(made, expected)


def test_as_array_of_numbers_runs_no_program(monkeypatch):
    monkeypatch.setattr(jnp, "asarray", None)
    for value in (0.1, 3, (0.0, 5.0), np.arange(3)):
        as_array(value)


def test_as_array_leaves_what_is_traced_to_jax():
    assert jax.jit(lambda x: as_array(x) + as_array((1.0, 2.0)))(jnp.zeros(2)).tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_are_those_of_rows(rng, dtype):
    rows = jnp.asarray(rng.normal(size=(3, 1000)), dtype)
    found = sums(rows)
    assert found.dtype == dtype
    expected = np.asarray(rows, np.float64).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("count", [1, 3])
def test_copies_are_equal_and_their_derivative_is_a_sum(rng, shape, count):
    array = jnp.asarray(rng.normal(size=shape), np.float32)
    found = copies(count, array)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, np.broadcast_to(array, (count, *shape)))
    weights = rng.normal(size=(count, *shape))
    slope = jax.grad(lambda array: jnp.sum(copies(count, array) * weights))(array.astype(float))
    np.testing.assert_allclose(slope, weights.sum(axis=0), rtol=1e-12, atol=1e-14)
