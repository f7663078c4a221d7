"""Linear models and perceptrons against matrix products in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metastep._errors import InputError
from metastep.models import Model, linear, mlp


def forward(params, x, activation):
    """The network written out: names sorted as layer1, layer2, ..., then the head."""
    values = np.asarray(x, np.float64).reshape(len(x), -1)
    hidden = sorted((name for name in params if name != "head"), key=lambda name: int(name[5:]))
    for name in hidden:
        values = activation(values @ np.asarray(params[name]["weight"]) + params[name]["bias"])
    return values @ np.asarray(params["head"]["weight"]) + np.asarray(params["head"]["bias"])


ACTIVATIONS = {
    "relu": (jax.nn.relu, lambda z: np.maximum(z, 0)),
    "tanh": (jnp.tanh, np.tanh),
}


@pytest.mark.parametrize(
    ("input_shape", "outputs", "hidden"),
    [((1,), 1, (40, 40)), ((3,), 2, (5,)), ((2, 3), 4, ()), ((2, 2, 1), 1, (3,) * 11)],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_affine_maps_and_activations(rng, input_shape, outputs, hidden, activation):
    function, oracle = ACTIVATIONS[activation]
    model = mlp(input_shape, outputs, hidden, function)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    x = rng.normal(size=(6, *input_shape))
    expected = forward(params, x, oracle)
    assert expected.shape == (6, outputs)
    found = model.apply(params, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-10)


def test_mlp_defaults_are_those_of_the_sinusoid_experiment():
    params = mlp((1,), 1).init(jax.random.key(0))
    shapes = {name: layer["weight"].shape for name, layer in params.items()}
    assert shapes == {"layer1": (1, 40), "layer2": (40, 40), "head": (40, 1)}
    assert mlp((1,), 1).name == "mlp-40-40"


def test_weights_and_biases_are_uniform_within_one_over_root_inputs():
    # Kolmogorov-Smirnov at p > 1e-5 and no value outside; a fixed key.
    params = mlp((25,), 300, hidden=(200,)).init(jax.random.key(3))
    for layer, inputs in ((params["layer1"], 25), (params["head"], 200)):
        bound = inputs**-0.5
        law = scipy.stats.uniform(-bound, 2 * bound).cdf
        for values in map(np.ravel, layer.values()):
            assert np.abs(values).max() <= bound
            assert scipy.stats.kstest(values, law).pvalue > 1e-5
    first = params["layer1"]
    assert not np.isin(first["bias"], first["weight"]).any()  # their keys differ


def test_the_key_decides_the_initial_parameters():
    model = mlp((2,), 2, (3,))
    same = [model.init(jax.random.key(seed)) for seed in (1, 1, 2)]
    for a, b, other in zip(*map(jax.tree.leaves, same), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, other)


def test_layers_of_one_shape_start_differently():
    params = mlp((3,), 3, (3, 3)).init(jax.random.key(0))
    assert len({np.asarray(layer["weight"]).tobytes() for layer in params.values()}) == 3


def test_linear_starts_at_zero_and_is_a_product(rng):
    model = linear((2, 3), 4)
    params = model.init(jax.random.key(5))
    assert jax.tree.map(jnp.shape, params) == {"head": {"weight": (6, 4)}}
    assert not params["head"]["weight"].any()
    x, weight = rng.normal(size=(5, 2, 3)), rng.normal(size=(6, 4))
    found = model.apply({"head": {"weight": jnp.asarray(weight)}}, jnp.asarray(x))
    np.testing.assert_allclose(found, x.reshape(5, 6) @ weight, atol=1e-13)


def test_linear_with_a_constant(rng):
    model = linear((3,), 2, bias=True)
    params = model.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == {"head": {"weight": (3, 2), "bias": (2,)}}
    assert not any(leaf.any() for leaf in jax.tree.leaves(params))
    x, weight, bias = rng.normal(size=(5, 3)), rng.normal(size=(3, 2)), rng.normal(size=2)
    params = {"head": {"weight": jnp.asarray(weight), "bias": jnp.asarray(bias)}}
    np.testing.assert_allclose(model.apply(params, jnp.asarray(x)), x @ weight + bias, atol=1e-13)


def test_linear_on_features(rng):
    model = linear((1,), 1, features=lambda x: jnp.concatenate([x, x**2, x**3], axis=1))
    assert model.init(jax.random.key(0))["head"]["weight"].shape == (3, 1)
    x, weight = rng.normal(size=(7, 1)), rng.normal(size=(3, 1))
    found = model.apply({"head": {"weight": jnp.asarray(weight)}}, jnp.asarray(x))
    np.testing.assert_allclose(found, x ** np.arange(1, 4) @ weight, atol=1e-13)


def test_features_may_use_arrays_of_the_default_precision(rng):
    # Under strict promotion, asking for their shape with float32 inputs would raise in float64.
    centres = jnp.asarray(rng.normal(size=5))
    model = linear((1,), 1, features=lambda x: jnp.exp(-((x - centres) ** 2)))
    assert model.init(jax.random.key(0))["head"]["weight"].shape == (5, 1)


@pytest.mark.parametrize("model", [mlp((2,), 1, (3, 3)), linear((2,), 1, bias=True)])
def test_the_head_is_the_last_layer_whole(model):
    params = model.init(jax.random.key(0))
    mask = model.is_head(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    for name, layer in mask.items():
        assert set(jax.tree.leaves(layer)) == {name == "head"}


def test_a_model_without_a_head_adapts_everything():
    model = Model(init=lambda key: {"a": jnp.ones(2)}, apply=lambda params, x: x)
    assert model.is_head({"a": 1, "b": (2, 3)}) == {"a": True, "b": (True, True)}
    assert (model.task_mapping, model.name) == ("vmap", "model")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear((2,), 0), "output_size is 0; it must be a whole number of at least 1"),
        (lambda: mlp((2,), 1.0), "output_size is 1.0; it must be a whole number of at least 1"),
        (
            lambda: mlp((2,), 1, (3, 0)),
            "hidden width is 0; it must be a whole number of at least 1",
        ),
    ],
)
def test_sizes_are_checked(make, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        make()


@pytest.mark.parametrize(
    "make", [lambda: mlp((2,), 1, (3,)), lambda: linear((2,), 1, bias=True)], ids=["mlp", "linear"]
)
def test_single_precision_in_single_precision_out(make):
    with jax.enable_x64(False):
        model = make()
        params = model.init(jax.random.key(0))
        outputs = model.apply(params, jnp.ones((4, 2)))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, outputs))} == {jnp.dtype("float32")}
