"""Feature maps against loops, tangent kernels against the explicit features they must not need."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracles_b as oracle
import pytest

from metastep._errors import InputError
from metastep.theory import features, tangent, two_layer


def test_identity(rng):
    x = rng.standard_normal((2, 3, 4))
    np.testing.assert_array_equal(features.identity_features(x), x)
    assert features.identity_features([[1, 2]]).dtype == jnp.float64


def test_gaussian_features_of_numbers_and_of_points(rng):
    x, centers, widths = rng.standard_normal((3, 5)), rng.standard_normal(4), rng.uniform(0.5, 2, 4)
    ours = features.gaussian_features(x, centers, widths)
    assert ours.shape == (3, 5, 4)
    for task in range(3):
        np.testing.assert_allclose(
            ours[task], oracle.gaussian_features(x[task], centers, widths), rtol=1e-13
        )
    points, middles = rng.standard_normal((5, 2)), rng.standard_normal((4, 2))
    np.testing.assert_allclose(
        features.gaussian_features(points, middles, widths),
        oracle.gaussian_features(points, middles, widths),
        rtol=1e-13,
    )
    np.testing.assert_allclose(
        features.gaussian_features(x, centers, 0.7),
        features.gaussian_features(x, centers, np.full(4, 0.7)),
        rtol=1e-15,
    )


def test_polynomial_features(rng):
    x, coefficients = rng.standard_normal(6), rng.standard_normal(5)
    np.testing.assert_allclose(
        features.polynomial_features(x, 5), oracle.polynomial_features(x, 5), rtol=1e-13
    )
    np.testing.assert_allclose(
        features.polynomial_features(x, 5, coefficients),
        oracle.polynomial_features(x, 5, coefficients),
        rtol=1e-13,
    )
    assert features.polynomial_features(x, 1).shape == (6, 1)
    slopes = jax.jacobian(lambda v: features.polynomial_features(v, 4)[0])(jnp.zeros(1))[:, 0]
    np.testing.assert_array_equal(slopes, [0, 1, 0, 0])


@pytest.mark.parametrize(
    ("law", "mean", "variance"),
    [("uniform", 0.0, 25 / 3), ("normal", 0.0, 25.0), ("exponential", 5.0, 25.0)],
)
def test_random_matrices_have_the_moments_of_their_law(law, mean, variance):
    entries = np.asarray(features.random_matrix_features(jax.random.key(4), (50, 40, 20), law, 5.0))
    assert entries.shape == (50, 40, 20)
    # 40,000 entries; five standard errors, a false alarm about once in a million.
    assert entries.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / entries.size))
    spread = np.std((entries - mean) ** 2) / np.sqrt(entries.size)
    assert entries.var() == pytest.approx(variance, abs=5 * spread)
    again = features.random_matrix_features(jax.random.key(4), (50, 40, 20), law, 5.0)
    np.testing.assert_array_equal(entries, again)
    small = features.random_matrix_features(jax.random.key(4), (2, 3), law, np.float32(5))
    assert small.dtype == jnp.float32


def network_and_numbers(rng, inputs=3, width=37):
    parts = (
        rng.standard_normal((width, inputs)),
        rng.standard_normal(width),
        rng.standard_normal(width),
        np.asarray(rng.standard_normal()),
    )
    return two_layer.TwoLayerNetwork(*map(jnp.asarray, parts)), parts


@pytest.mark.parametrize("chunk", [1, 8, 37, 1000])
def test_two_layer_gram_against_explicit_features(rng, chunk):
    network, (hidden, bias, output, _) = network_and_numbers(rng)
    x, other = rng.standard_normal((6, 3)), rng.standard_normal((4, 3))
    left = oracle.two_layer_features(hidden, bias, output, x)
    right = oracle.two_layer_features(hidden, bias, output, other)
    gram = two_layer.two_layer_tangent_gram(network, x, chunk=chunk)
    np.testing.assert_allclose(gram, left @ left.T, rtol=1e-11)
    cross = two_layer.two_layer_tangent_gram(network, x, other, chunk=chunk)
    np.testing.assert_allclose(cross, left @ right.T, rtol=1e-11)
    mean, square = two_layer.two_layer_tangent_moments(network, x, chunk=chunk)
    np.testing.assert_allclose(mean, left.mean(), rtol=1e-11)
    np.testing.assert_allclose(square, (left**2).mean(), rtol=1e-11)


def test_two_layer_gram_of_every_task_is_that_of_its_own_examples(rng):
    network, _ = network_and_numbers(rng)
    x, other = rng.standard_normal((3, 6, 3)), rng.standard_normal((3, 4, 3))
    grams = two_layer.two_layer_tangent_gram(network, x, chunk=8)
    cross = two_layer.two_layer_tangent_gram(network, x, other, chunk=8)
    assert (grams.shape, cross.shape) == ((3, 6, 6), (3, 6, 4))
    for task in range(3):
        gram, between = (
            two_layer.two_layer_tangent_gram(network, x[task], o) for o in (None, other[task])
        )
        np.testing.assert_allclose(grams[task], gram, rtol=1e-11)
        np.testing.assert_allclose(cross[task], between, rtol=1e-11)
    with pytest.raises(
        InputError, match=r"other has shape \(2, 4, 3\); it must have shape \(3, others, 3\)"
    ):
        two_layer.two_layer_tangent_gram(network, x, other[:2])
    with pytest.raises(InputError, match="x has shape"):
        two_layer.two_layer_tangent_moments(network, x)


def test_two_layer_closed_form_is_the_automatic_one(rng):
    network, (hidden, bias, output, _) = network_and_numbers(rng)
    x, other = jnp.asarray(rng.standard_normal((6, 3))), jnp.asarray(rng.standard_normal((4, 3)))

    def apply(params, points):
        return params(points)

    np.testing.assert_allclose(
        tangent.tangent_features(apply, network, x),
        oracle.two_layer_features(hidden, bias, output, np.asarray(x)),
        rtol=1e-12,
        atol=1e-14,
    )
    np.testing.assert_allclose(
        two_layer.two_layer_tangent_gram(network, x, other),
        tangent.tangent_gram(apply, network, x, other),
        rtol=1e-11,
    )


def test_gram_of_any_model_with_several_outputs(rng):
    model = eqx.nn.MLP(2, 3, 5, 2, activation=jnp.tanh, key=jax.random.key(1))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    x, other = jnp.asarray(rng.standard_normal((4, 2))), jnp.asarray(rng.standard_normal((3, 2)))

    def apply(weights, points):
        return jax.vmap(eqx.combine(weights, static))(points)

    left, right = (tangent.tangent_features(apply, params, points) for points in (x, other))
    assert left.shape == (12, sum(leaf.size for leaf in jax.tree.leaves(params)))
    # Central differences of one output in one weight.
    shifted = [
        eqx.tree_at(lambda p: p.layers[1].bias, params, replace_fn=lambda b, s=sign: b.at[2].add(s))
        for sign in (1e-6, -1e-6)
    ]
    numeric = (apply(shifted[0], x)[1, 2] - apply(shifted[1], x)[1, 2]) / 2e-6
    leaves = jax.tree.leaves(params)
    offset = sum(leaf.size for leaf in leaves[:3]) + 2
    assert leaves[3] is params.layers[1].bias
    np.testing.assert_allclose(left[1 * 3 + 2, offset], numeric, rtol=1e-7)
    for chunk in (1, 2, 100):
        np.testing.assert_allclose(
            tangent.tangent_gram(apply, params, x, other, chunk=chunk),
            left @ right.T,
            rtol=1e-10,
            atol=1e-12,
        )
    gram = jax.jit(lambda p: tangent.tangent_gram(apply, p, x))(params)
    np.testing.assert_allclose(gram, left @ left.T, rtol=1e-10, atol=1e-12)


def test_network_laws_and_types():
    uniform = two_layer.two_layer_network(jax.random.key(0), 4, 5000)
    assert uniform.hidden.dtype == jnp.float32
    assert float(jnp.abs(uniform.hidden).max()) <= 0.5
    assert float(jnp.abs(uniform.output).max()) <= 5000**-0.5
    assert float(uniform.hidden.var()) == pytest.approx(0.25 / 3, rel=0.05)
    normal = two_layer.two_layer_network(jax.random.key(0), 4, 5000, "normal", jnp.float64)
    assert float(normal.hidden.std()) == pytest.approx(1, rel=0.05)
    x = jnp.ones((3, 4), jnp.float32)
    gram = two_layer.two_layer_tangent_gram(uniform, x)
    assert gram.dtype == jnp.float32
    wide = two_layer.TwoLayerNetwork(*(leaf.astype(jnp.float64) for leaf in uniform))
    np.testing.assert_allclose(gram, two_layer.two_layer_tangent_gram(wide, x), rtol=1e-5)


def test_the_paper_s_width_and_sample_need_well_under_a_gigabyte():
    """Width 10,240 and n = 1,600 in float64: what XLA sets aside, measured without running it."""
    shapes = [(10_240, 1), (10_240,), (10_240,), ()]
    network = two_layer.TwoLayerNetwork(*(jax.ShapeDtypeStruct(s, jnp.float64) for s in shapes))
    x = jax.ShapeDtypeStruct((1_600, 1), jnp.float64)
    for function in (two_layer.two_layer_tangent_gram, two_layer.two_layer_tangent_moments):
        memory = jax.jit(function).lower(network, x).compile().memory_analysis()
        assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 200e6


def test_kernels_under_vmap_and_gradients(rng):
    network, _ = network_and_numbers(rng)
    x = jnp.asarray(rng.standard_normal((2, 4, 3)))
    batched = jax.vmap(lambda points: two_layer.two_layer_tangent_gram(network, points, chunk=8))(x)
    for task in range(2):
        np.testing.assert_allclose(
            batched[task], two_layer.two_layer_tangent_gram(network, x[task]), rtol=1e-11
        )

    def trace(scale):
        return jnp.trace(two_layer.two_layer_tangent_gram(network, x[0] * scale, chunk=8))

    numeric = (trace(1 + 1e-6) - trace(1 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(trace)(1.0), numeric, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: features.identity_features([1.0]),
            r"x has shape \(1,\); it must be \(..., examples",
        ),
        (lambda: features.identity_features(np.zeros((0, 2))), r"x has shape \(0, 2\)"),
        (lambda: features.identity_features([[np.nan]]), "x holds 1 NaN or infinite"),
        (lambda: features.polynomial_features([1.0], 0), "dim is 0; it must be a whole number"),
        (
            lambda: features.polynomial_features([1.0], 3, [1.0, 2.0]),
            r"coefficients has shape \(2,\); it must have shape \(3\)",
        ),
        (
            lambda: features.gaussian_features([1.0], [0.0, 1.0], [1.0, 1.0, 1.0]),
            r"widths has shape \(3,\); give one width, or one for each of the 2 centers",
        ),
        (
            lambda: features.gaussian_features([1.0], [0.0], -1.0),
            "widths is -1; it must be above 0",
        ),
        (
            lambda: features.gaussian_features(np.ones((3, 2)), np.ones((4, 3)), 1.0),
            r"x has shape \(3, 2\); its last axis must have the 3 inputs",
        ),
        (
            lambda: features.gaussian_features([1.0], 0.0, 1.0),
            r"centers has shape \(\); it must be",
        ),
        (
            lambda: features.random_matrix_features(jax.random.key(0), (3,)),
            r"shape is \(3,\); it must end in the number of examples",
        ),
        (
            lambda: features.random_matrix_features(jax.random.key(0), (3, 0)),
            "every size in shape is 0",
        ),
        (
            lambda: features.random_matrix_features(jax.random.key(0), (3, 2), "cauchy"),
            "law is 'cauchy'; choose one of: exponential, normal, uniform",
        ),
        (lambda: two_layer.two_layer_network(jax.random.key(0), 0), "inputs is 0"),
        (
            lambda: tangent.tangent_gram(lambda p, x: x, {}, jnp.ones(2)),
            "params has no array in it",
        ),
        (lambda: tangent.tangent_features(lambda p, x: x, [], jnp.ones(2)), "params has no array"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_networks_that_do_not_fit_are_named(rng):
    network, _ = network_and_numbers(rng)
    with pytest.raises(
        InputError, match=r"x has shape \(2, 4\); it must have shape \(examples, 3\)"
    ):
        two_layer.two_layer_tangent_gram(network, np.ones((2, 4)))
    with pytest.raises(InputError, match=r"other has shape \(2, 4\)"):
        two_layer.two_layer_tangent_gram(network, np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(InputError, match=r"network.output has shape \(5,\)"):
        two_layer.two_layer_tangent_moments(network._replace(output=jnp.ones(5)), np.ones((2, 3)))
    with pytest.raises(InputError, match="chunk is 0"):
        two_layer.two_layer_tangent_gram(network, np.ones((2, 3)), chunk=0)
