"""The convolutional network against explicit loops in float64, and against the library's convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep import Batch
from metastep._errors import InputError
from metastep.models import Model, Objective, conv4, mlp, standardised, with_unit_features
from metastep.models.conv4 import batch_norm, convolve_3x3, max_pool


def convolve(x, kernel, stride):
    """3x3 correlation with a border of zeros, at every `stride`-th pixel; kernel (3, 3, in, out)."""
    n, height, width, _ = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    result = np.zeros((n, rows, columns, kernel.shape[-1]))
    for r in range(rows):
        for c in range(columns):
            for i in range(3):
                for j in range(3):
                    y, z = stride * r + i - 1, stride * c + j - 1
                    if 0 <= y < height and 0 <= z < width:
                        result[:, r, c] += x[:, y, z] @ kernel[i, j]
    return result


def normalise(x, scale, offset):
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    return (x - mean) / np.sqrt(variance + 1e-3) * scale + offset


def pool(x):
    n, height, width, channels = x.shape
    result = np.zeros((n, height // 2, width // 2, channels))
    for r in range(height // 2):
        for c in range(width // 2):
            result[:, r, c] = x[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max(axis=(1, 2))
    return result


def forward(params, x, pooling):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for i in range(1, 5):
        block = params[f"block{i}"]
        kernel = block["kernel"].reshape(3, 3, x.shape[-1], -1)
        x = convolve(x, kernel, stride=2 if pooling == "stride" else 1)
        x = np.maximum(normalise(x, block["scale"], block["offset"]), 0)
        x = pool(x) if pooling == "max" else x
    x = x.mean(axis=(1, 2)) if pooling == "stride" else x.reshape(len(x), -1)
    return x @ params["head"]["weight"] + params["head"]["bias"]


def any_params(model, rng):
    """Parameters of the right shapes; scales and offsets away from 1 and 0, so that a slip in them shows."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)
    for i in range(1, 5):  # positive offsets keep most units alive
        params[f"block{i}"]["offset"] = jnp.abs(params[f"block{i}"]["offset"])
    return params


@pytest.mark.parametrize(
    ("pooling", "shape"),
    [
        ("stride", (8, 8, 1)),
        ("stride", (7, 10, 2)),
        ("stride", (1, 3, 1)),
        ("max", (16, 16, 1)),
        ("max", (17, 35, 3)),
    ],
)
def test_equals_loops_over_pixels(rng, pooling, shape):
    model = conv4(shape, 3, filters=4, pooling=pooling)
    params = any_params(model, rng)
    x = rng.uniform(size=(3, *shape))
    expected = forward(params, x, pooling)
    assert expected.std(axis=0).min() > 1e-3  # alive: the outputs tell the images apart
    found = jax.jit(model.apply)(params, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(5, 8), (28, 28), (1, 1), (2, 7)])
def test_convolve_is_a_padded_convolution(rng, stride, size):
    x, kernel = rng.normal(size=(2, *size, 3)), rng.normal(size=(3, 3, 3, 4))
    expected = jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel),
        window_strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = convolve_3x3(jnp.asarray(x), jnp.asarray(kernel.reshape(27, 4)), stride)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_batch_norm_uses_this_batch(rng):
    x = rng.normal(3, 2, size=(4, 5, 6, 2))
    ones, zeros = jnp.ones(2), jnp.zeros(2)
    found = np.asarray(batch_norm(jnp.asarray(x), ones, zeros))
    np.testing.assert_allclose(found, normalise(x, np.ones(2), np.zeros(2)), atol=1e-12)
    np.testing.assert_allclose(found.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    variance = x.var(axis=(0, 1, 2))
    np.testing.assert_allclose(found.var(axis=(0, 1, 2)), variance / (variance + 1e-3), rtol=1e-10)


def test_max_pool_drops_an_odd_rim(rng):
    x = rng.normal(size=(2, 5, 7, 3))
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), pool(x))


def test_of_equal_pixels_the_first_gets_the_gradient():
    image = jnp.asarray([[1.0, 1, 0, 2], [1, 1, 2, 2]])[None, :, :, None]
    slope = jax.grad(lambda x: jnp.sum(max_pool(x)))(image)
    np.testing.assert_array_equal(slope[0, :, :, 0], [[1, 0, 0, 1], [0, 0, 0, 0]])


@pytest.mark.parametrize("pooling", ["stride", "max"])
def test_second_derivatives_as_compiled_for_users(rng, pooling):
    # Fully optimised: XLA then computes a value again where it is needed, and the copy may round differently. A
    # maximum whose derivative compares the two loses its gradient.
    model = conv4((16, 16, 3), 5, filters=32, pooling=pooling)
    params = any_params(model, rng)
    loss = Objective.of(model.apply, "classification")
    images, labels = jnp.asarray(rng.uniform(size=(2, 5, 16, 16, 3))), jnp.arange(5)

    def adapted_loss(params):
        slope = jax.grad(loss)(params, Batch(images[0], labels))
        adapted = jax.tree.map(lambda leaf, g: leaf - 0.05 * g, params, slope)
        return loss(adapted, Batch(images[1], labels))

    lowered = jax.jit(jax.value_and_grad(adapted_loss)).lower(params)
    options = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    compiled = lowered.compile(options)
    slope = compiled(params)[1]
    for _ in range(3):
        direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
        ahead, behind = (
            compiled(jax.tree.map(lambda a, d, h=h: a + h * d, params, direction))[0]
            for h in (1e-7, -1e-7)
        )
        along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, slope, direction)))
        assert float(along) == pytest.approx(float(ahead - behind) / 2e-7, rel=1e-5)


def test_predictions_depend_on_the_batch(rng):
    # Transductive, as documented: the other images of the batch change the output of the first.
    model = conv4((8, 8, 1), 2, filters=3)
    params, apply = any_params(model, rng), jax.jit(model.apply)
    x = rng.uniform(size=(3, 8, 8, 1))
    others = np.concatenate([x[:1], rng.uniform(0, 3, size=(2, 8, 8, 1))])
    before, after = (np.asarray(apply(params, jnp.asarray(batch)))[0] for batch in (x, others))
    assert np.abs(before - after).max() > 1e-3


def test_constant_images_have_finite_gradients(rng):
    # The variance of a channel is then zero: without epsilon inside the root this is 0/0.
    model = conv4((6, 6, 1), 3, filters=3)
    objective = Objective.of(model.apply, "classification")

    @jax.jit
    def gradient(params, value):
        images = jnp.full((3, 6, 6, 1), value)
        return jax.value_and_grad(objective)(params, Batch(images, jnp.arange(3)))

    params = any_params(model, rng)
    params["block1"]["offset"] = jnp.zeros(3)  # as at the start: on the kink of the ReLU
    for value in (0.0, 1.0, 1e-20):
        leaves = jax.tree.leaves(gradient(params, jnp.asarray(value)))
        assert all(np.isfinite(leaf).all() for leaf in leaves)


def test_initial_parameters():
    model = conv4((28, 28, 1), 5)
    params = model.init(jax.random.key(0))
    shapes = {name: layer["kernel"].shape for name, layer in params.items() if "kernel" in layer}
    inner = {f"block{i}": (576, 64) for i in (2, 3, 4)}
    assert shapes == {"block1": (9, 64)} | inner
    assert params["head"]["weight"].shape == (64, 5)
    kernels = [np.asarray(params[name]["kernel"]) for name in sorted(shapes)]
    for kernel in kernels:  # Glorot: uniform within sqrt(6 / (inputs + outputs))
        bound = np.sqrt(6 / sum(kernel.shape))
        assert 0.95 * bound < np.abs(kernel).max() <= bound
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert len({kernel.tobytes() for kernel in kernels}) == 4
    for name in shapes:
        assert (params[name]["scale"] == 1).all()
        assert (params[name]["offset"] == 0).all()


@pytest.mark.parametrize(
    ("pooling", "shape", "features"),
    [("stride", (84, 84, 3), 7), ("max", (84, 84, 3), 7 * 25), ("max", (31, 47, 1), 7 * 1 * 2)],
)
def test_size_of_the_head(pooling, shape, features):
    model = conv4(shape, 5, filters=7, pooling=pooling)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert params["head"]["weight"].shape == (features, 5)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.result_type(float))
    assert jax.eval_shape(model.apply, params, x).shape == (2, 5)


def test_the_head_alone_is_the_head():
    model = conv4((8, 8, 1), 3, filters=2)
    mask = model.is_head(jax.eval_shape(model.init, jax.random.key(0)))
    for name, layer in mask.items():
        assert set(jax.tree.leaves(layer)) == {name == "head"}
    assert model.task_mapping == "sequential"
    assert model.name == "conv4-2-stride"


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 8), {}, "conv4 takes images of shape (height, width, channels), not (8, 8)"),
        ((9,), {}, "conv4 takes images of shape (height, width, channels), not (9,)"),
        (
            (15, 40, 1),
            {"pooling": "max"},
            "conv4 with max-pooling halves the image four times and needs at least 16x16 pixels, not 15x40; "
            "use pooling='stride'",
        ),
        ((8, 8, 1), {"pooling": "mean"}, "pooling is 'mean'; choose one of: max, stride"),
        ((8, 8, 1), {"filters": 0}, "filters is 0; it must be a whole number of at least 1"),
        (
            (8, 8, 1),
            {"output_size": 0},
            "output_size is 0; it must be a whole number of at least 1",
        ),
    ],
)
def test_what_it_cannot_be_made_for_is_refused(shape, options, message):
    with pytest.raises(InputError) as caught:
        conv4(shape, **{"output_size": 2} | options)
    assert str(caught.value) == message


def test_single_precision_in_single_precision_out():
    with jax.enable_x64(False):
        model = conv4((8, 8, 1), 2, filters=2)
        params = jax.eval_shape(model.init, jax.random.key(0))
        outputs = jax.eval_shape(model.apply, params, jnp.ones((2, 8, 8, 1)))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, outputs))} == {jnp.dtype("float32")}


def test_unit_features_have_length_one_and_feed_the_head(rng):
    plain = conv4((8, 8, 1), 3, filters=4)
    model, params = with_unit_features(plain), any_params(plain, rng)
    x = jnp.asarray(rng.uniform(size=(5, 8, 8, 1)))
    raw = np.asarray(plain.features(params, x))
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(model.features(params, x), unit, rtol=1e-6)
    expected = unit @ params["head"]["weight"] + params["head"]["bias"]
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        model.head(params, model.features(params, x)), model.apply(params, x)
    )
    assert (model.init, model.is_head, model.name) == (plain.init, plain.is_head, plain.name)


def test_an_example_without_any_feature_stays_without():
    model = Model(
        init=lambda key: jnp.ones((2, 1)),
        apply=lambda weight, x: x @ weight,
        features=lambda weight, x: x,
        head=lambda weight, features: features @ weight,
    )
    found = with_unit_features(model).apply(jnp.ones((2, 1)), jnp.array([[0.0, 0.0], [3.0, 4.0]]))
    np.testing.assert_allclose(found, [[0.0], [1.4]], rtol=1e-7)


def test_unit_features_need_features():
    with pytest.raises(InputError, match="with_unit_features: mlp-4 has no features or no head"):
        with_unit_features(mlp((1,), 1, (4,)))


def test_standardised_moves_and_stretches_what_goes_in_and_what_comes_out(rng):
    plain = conv4((16, 16, 2), 3, filters=4)
    params, x = any_params(plain, rng), jnp.asarray(rng.normal(size=(5, 16, 16, 2)))
    inputs, labels = ((7.0, -2.0), (3.0, 0.5)), ((1.0, 10.0, -5.0), (2.0, 0.1, 30.0))
    model = standardised(plain, inputs, labels)
    moved = jnp.array(inputs[0]) + jnp.array(inputs[1]) * x
    expected = jnp.array(labels[0]) + jnp.array(labels[1]) * plain.apply(params, x)
    np.testing.assert_allclose(model.apply(params, moved), expected, rtol=1e-9)
    through_head = model.head(params, model.features(params, moved))
    np.testing.assert_allclose(through_head, expected, rtol=1e-9)
    assert model.is_head is plain.is_head
    assert standardised(plain).apply(params, x).tolist() == plain.apply(params, x).tolist()
    assert standardised(mlp((2,), 1, (4,)), ((1.0,), (2.0,))).features is None
