"""The convolution by products against JAX's own, in values and second derivatives, and the warning."""

import copy
import inspect
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from metastep._types import Batch
from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact
from metastep.models import (
    Model,
    NativeConvolutionWarning,
    Objective,
    conv4,
    conv_general_dilated,
    cross_entropy,
    has_native_convolution,
    im2col,
    warn_of_native_convolution,
)
from metastep.rates import FixedRate, make_optimizer
from metastep.tasks import FewShot
from metastep.train import Learner, advance, initial_state

NHWC = ("NHWC", "HWIO", "NHWC")

# (image, kernel, strides, padding, window dilation, layouts): odd and even sizes, and a layout that mixes all axes
CASES = {
    "same": ((2, 5, 6, 3), (3, 3, 3, 4), (1, 1), "SAME", None, NHWC),
    "same, strides": ((2, 7, 6, 3), (3, 2, 3, 4), (2, 3), "SAME", None, NHWC),
    "same lower": ((2, 6, 6, 1), (2, 2, 1, 3), (2, 2), "SAME_LOWER", None, NHWC),
    "valid": ((2, 6, 5, 2), (3, 2, 2, 3), (2, 1), "VALID", None, NHWC),
    "explicit": ((1, 6, 5, 2), (3, 3, 2, 3), (2, 2), [(0, 3), (2, -1)], None, NHWC),
    "dilated": ((1, 9, 8, 2), (3, 2, 2, 3), (1, 2), "SAME", (2, 3), NHWC),
    "1 by 1": ((2, 4, 4, 3), (1, 1, 3, 2), (1, 1), "VALID", None, NHWC),
    "channels first": ((2, 3, 5, 6), (4, 3, 3, 3), (2, 1), "SAME", None, None),
    "mixed": ((5, 2, 6, 3), (3, 4, 2, 3), (1, 2), "SAME", None, ("HNWC", "HOWI", "CWNH")),
    "sequence": ((2, 9, 3), (4, 3, 5), (2,), "SAME", None, ("NWC", "WIO", "NWC")),
    "volume": ((1, 4, 3, 5, 2), (2, 3, 2, 2, 3), (1, 2, 2), "SAME", None, ("NDHWC", "DHWIO", "NDHWC")),
}  # fmt: skip


def to_the_second_derivative(convolve, case, rng):
    """Value, gradient and Hessian-vector product, compiled: of cos, whose second depends on both arguments."""
    image, kernel, strides, padding, gaps, layouts = CASES[case]
    draw = lambda: tuple(jnp.asarray(rng.normal(size=shape)) for shape in (image, kernel))  # noqa: E731

    def loss(x, w):
        y = convolve(x, w, strides, padding, rhs_dilation=gaps, dimension_numbers=layouts)
        return jnp.sum(jnp.cos(y)), y

    gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(lambda at, along: jax.jvp(gradient, at, along))(draw(), draw())


BY_JAX = {}  # case -> the same by JAX's own convolution, once for all tests of a case


@pytest.mark.parametrize("cached", [1, 10**9], ids=["image by image", "all at once"])
@pytest.mark.parametrize(
    ("many", "places"),
    [(1, 1), (1, 10**9), (100, 1)],
    ids=["by pixels", "by few pixels", "by planes"],
)
@pytest.mark.parametrize("case", CASES)
def test_equals_jax_to_the_second_derivative(rng, monkeypatch, case, many, places, cached):
    if case not in BY_JAX:
        again = copy.deepcopy(rng)  # every test's numbers are the same
        BY_JAX[case] = to_the_second_derivative(lax.conv_general_dilated, case, again)
    monkeypatch.setattr(im2col, "_CACHED_BYTES", cached)
    monkeypatch.setattr(im2col, "_MANY_CHANNELS", many)
    monkeypatch.setattr(im2col, "_MANY_PLACES", places)
    found = to_the_second_derivative(conv_general_dilated, case, rng)
    for a, b in zip(*map(jax.tree.leaves, (found, BY_JAX[case])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("count", "groups"), [(1, 1), (2, 1), (3, 3), (4, 2), (7, 7), (12, 6)])
def test_images_are_taken_in_equal_groups_that_fit_the_cache(rng, monkeypatch, count, groups):
    x, w = (
        jnp.asarray(rng.normal(size=(count, 4, 5, 2))),
        jnp.asarray(rng.normal(size=(3, 3, 2, 4))),
    )
    monkeypatch.setattr(im2col, "_CACHED_BYTES", 2 * x[0].nbytes * 9)
    call = lambda x: im2col.convolve_by_product(x, w, (1, 1), AROUND)  # noqa: E731
    lengths = [
        equation.params["length"]
        for equation in jax.make_jaxpr(call)(x).eqns
        if equation.primitive.name == "scan"
    ]
    assert lengths == ([groups] if groups > 1 else [])
    one_by_one = jnp.concatenate([call(image[None]) for image in x])
    np.testing.assert_allclose(call(x), one_by_one, rtol=1e-12, atol=1e-14)


AROUND = [(1, 1), (1, 1)]


def third_derivative(convolve, x, w):
    """Of the kernel's derivative in the images in the kernel: reverse mode, thrice."""

    def loss(x, w):
        y = convolve(x, w, (1, 1), [(4, 0), (1, -1)], dimension_numbers=NHWC)
        return jnp.sum(jnp.cos(y))

    of_kernel = lambda x, w: jnp.sum(jnp.sin(jax.grad(loss, 1)(x, w)))  # noqa: E731
    of_images = lambda x, w: jnp.sum(jnp.sin(jax.grad(of_kernel, 0)(x, w)))  # noqa: E731
    return jax.grad(of_images, (0, 1))(x, w)


def of_both_modes(convolve, x, w):
    """Forward over reverse, and reverse over that."""

    def loss(x, w):
        return jnp.sum(jnp.cos(convolve(x, w, (1, 1), "SAME", dimension_numbers=NHWC)))

    along = lambda x, w: jax.jvp(jax.grad(loss, 1), (x, w), (x, w))[1]  # noqa: E731
    return jax.vjp(along, x, w)[1](w)


@pytest.mark.parametrize("axes", [(None, None), (0, None), (None, 0), (0, 0), (1, 2)], ids=str)
def test_stride_one_of_tasks_side_by_side(rng, axes):
    # Images of several tasks go on as one batch, kernels of several as a product; to every order, and either way.
    x, w = (
        jnp.asarray(rng.normal(size=np.insert(shape, axis or 0, 3) if axis is not None else shape))
        for shape, axis in zip(((2, 5, 4, 3), (3, 2, 3, 4)), axes, strict=True)
    )
    mapped = lambda one: jax.jit(one if axes == (None, None) else jax.vmap(one, axes))  # noqa: E731
    for derive in (third_derivative, of_both_modes):
        found, wanted = (
            mapped(lambda x, w, convolve=convolve, derive=derive: derive(convolve, x, w))(x, w)
            for convolve in (conv_general_dilated, lax.conv_general_dilated)
        )
        for a, b in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_stride_one_without_a_compiler(rng):
    x, w = (
        jnp.asarray(rng.normal(size=(2, 5, 4, 3))),
        jnp.asarray(rng.normal(size=(3, 2, 3, 4))),
    )
    with jax.disable_jit():
        found = of_both_modes(conv_general_dilated, x, w)
    for a, b in zip(found, of_both_modes(lax.conv_general_dilated, x, w), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_a_window_larger_than_its_image(rng):
    x, w = jnp.asarray(rng.normal(size=(1, 2, 5, 1))), jnp.asarray(rng.normal(size=(4, 3, 1, 2)))
    shapes = [
        convolve(x, w, (1, 1), "VALID", dimension_numbers=NHWC).shape
        for convolve in (conv_general_dilated, lax.conv_general_dilated)
    ]
    assert shapes == [(1, 0, 3, 2)] * 2


def jaxpr_has_it(convolve, image=(1, 4, 4, 2), kernel=(3, 3, 2, 4), **options):
    call = lambda x, w: convolve(x, w, (1, 1), AROUND, dimension_numbers=NHWC, **options)  # noqa: E731
    return has_native_convolution(call, jnp.zeros(image), jnp.zeros(kernel))


def test_products_on_cpu_unless_told_otherwise():
    assert jaxpr_has_it(lax.conv_general_dilated)
    assert not jaxpr_has_it(conv_general_dilated)
    assert jaxpr_has_it(conv_general_dilated, native=True)


def test_what_has_no_product_is_native(rng):
    grouped = {"feature_group_count": 2, "kernel": (3, 3, 1, 4)}
    assert jaxpr_has_it(conv_general_dilated, **grouped)
    assert jaxpr_has_it(conv_general_dilated, lhs_dilation=(2, 1))
    x, w = jnp.asarray(rng.normal(size=(1, 4, 4, 2))), jnp.asarray(rng.normal(size=(3, 3, 2, 4)))
    options = {"dimension_numbers": NHWC, "lhs_dilation": (2, 2)}
    np.testing.assert_array_equal(
        conv_general_dilated(x, w, (1, 1), AROUND, **options),
        lax.conv_general_dilated(x, w, (1, 1), AROUND, **options),
    )


def test_types_pass_through():
    x, w = jnp.ones((1, 4, 4, 2), jnp.bfloat16), jnp.ones((3, 3, 2, 4), jnp.bfloat16)
    half = conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
    assert half.dtype == jnp.bfloat16
    whole = conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=NHWC, preferred_element_type=jnp.float32
    )
    assert whole.dtype == jnp.float32


class Conv(eqx.nn.Conv2d):
    """An Equinox layer that convolves by products: what the guide on speed shows."""

    def __call__(self, x, *, key=None):
        y = conv_general_dilated(x[None], self.weight, self.stride, self.padding)[0]
        return y if self.bias is None else y + self.bias


def test_it_takes_whatever_jax_takes():
    # Layers of other libraries hand on every argument by its name, and new ones come with new versions.
    theirs = inspect.signature(lax.conv_general_dilated).parameters
    ours = inspect.signature(conv_general_dilated).parameters
    assert list(ours)[: len(theirs)] == list(theirs)


def test_an_equinox_layer_can_use_it(rng):
    options = {"kernel_size": 3, "stride": 2, "padding": 1, "key": jax.random.key(0)}
    ours, theirs = Conv(2, 3, **options), eqx.nn.Conv2d(2, 3, **options)
    x = jnp.asarray(rng.normal(size=(2, 6, 5)))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-12, atol=1e-14)


def test_a_flax_layer_can_use_it(rng):
    options = {"kernel_size": (3, 3), "strides": 2, "rngs": nnx.Rngs(0), "param_dtype": float}
    layer = nnx.Conv(2, 4, conv_general_dilated=conv_general_dilated, **options)
    x = jnp.asarray(rng.normal(size=(2, 6, 5, 2)))
    assert not has_native_convolution(layer, x)
    expected = lax.conv_general_dilated(
        x, layer.kernel[...], (2, 2), "SAME", dimension_numbers=NHWC
    )
    np.testing.assert_allclose(layer(x), expected + layer.bias[...], rtol=1e-6)


def test_a_native_convolution_on_cpu_is_warned_of():
    def loss(params, batch):
        convolved = lax.conv_general_dilated(
            batch.x, params, (1, 1), "SAME", dimension_numbers=NHWC
        )
        return jnp.sum(jax.jit(jnp.square)(convolved))

    batch = Batch(jnp.ones((2, 4, 4, 1)), jnp.zeros(2, int))
    # Hidden in a loop inside a compiled function, as in a model that scans over its layers.
    hidden = jax.jit(lambda p, b: lax.fori_loop(0, 2, lambda i, total: total + loss(p, b), 0.0))
    with pytest.warns(NativeConvolutionWarning, match=r"metastep\.models\.conv_general_dilated"):
        warn_of_native_convolution(hidden, jnp.ones((3, 3, 1, 2)), batch)


def test_training_warns_before_it_compiles():
    def apply(params, x):
        convolved = lax.conv_general_dilated(x, params, (1, 1), "SAME", dimension_numbers=NHWC)
        return jnp.mean(convolved, axis=(1, 2))

    family = FewShot(np.zeros((6, 4, 4, 1), np.uint8), np.full(3, 2), ways=2, queries=1)
    model = Model(lambda key: jnp.ones((3, 3, 1, 2)), apply)
    learner = Learner(
        model, Objective.of(apply, family.kind), GradientAdapter(1), Exact(), FixedRate(0.1),
        make_optimizer("sgd", 0.1), tasks_per_step=2,
    )  # fmt: skip
    key = jax.random.key(0)
    state = jax.eval_shape(lambda: initial_state(learner, key))
    with pytest.warns(NativeConvolutionWarning):
        jax.eval_shape(lambda s: advance(learner, family, key, s, jnp.asarray(1)), state)


def test_conv4_is_not_warned_of():
    model = conv4((8, 8, 1), 3, filters=2)
    batch = Batch(jnp.ones((3, 8, 8, 1)), jnp.arange(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_native_convolution(
            lambda p, b: cross_entropy(model.apply(p, b.x), b.y), model.init(jax.random.key(0)), batch
        )  # fmt: skip
