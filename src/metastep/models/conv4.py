"""The four-block convolutional network of few-shot classification, fast when every task has its own weights.

Meta-learning maps a convolution over tasks whose kernels differ. XLA:CPU turns that into a grouped
convolution, which it runs very slowly; gathering the 3x3 neighbourhoods and multiplying by the kernel as a
matrix is one large product instead, on every device. At stride 1 a CPU does that for the derivative of kernels alone,
as long as tasks follow one another, see `stride_one`.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metastep._errors import InputError, check_choice, check_count
from metastep._types import Params
from metastep.models.convolution import conv_general_dilated
from metastep.models.core import Model, head_named
from metastep.models.dense import apply_dense, init_dense

_WINDOW = 3
_EPSILON = 1e-3  # of the batch variance, as in the original few-shot code


def convolve_3x3(x: Float[Array, "n height width channels"], kernel: Array, stride: int) -> Array:
    """3x3 convolution of the zero-padded images with a kernel (9 x channels, filters)."""
    window = kernel.reshape(_WINDOW, _WINDOW, x.shape[-1], -1)
    return conv_general_dilated(
        x, window, (stride, stride), ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), native=False,
    )  # fmt: skip


def batch_norm(
    x: Float[Array, "n height width channels"], scale: Array, offset: Array
) -> Float[Array, "n height width channels"]:
    """Normalise each channel by the mean and variance of this very batch (transductive)."""
    centred = x - jnp.mean(x, axis=(0, 1, 2))
    variance = jnp.mean(jnp.square(centred), axis=(0, 1, 2))
    return centred * (scale * jax.lax.rsqrt(variance + _EPSILON)) + offset


@jax.custom_jvp
def max_pool(x: Float[Array, "n height width channels"]) -> Array:
    """The maximum over 2x2 windows, of equal ones the first; an odd last row or column is dropped.

    Its derivatives follow a comparison. Those of `jnp.max` look for the entry that equals the maximum, but XLA may
    compute an expression anew, with other roundings, for the one and the other: where nothing is equal then, the
    gradient is lost without a word.
    """
    corners = _corners(x)
    return _larger(_larger(*corners[:2]), _larger(*corners[2:]))


@max_pool.defjvp
def _max_pool_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """That of the pick, as a sum over the window: its transpose is one pass, that of four slices is five."""
    (x,), (along,) = primals, tangents
    a, b, c, d = _corners(x)
    in_upper = _larger(a, b) >= _larger(c, d)
    pick = jnp.where(in_upper, jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))
    windows = _windows(along)
    place = 2 * jax.lax.broadcasted_iota(int, windows.shape, 2)
    place += jax.lax.broadcasted_iota(int, windows.shape, 4)
    picked = pick[:, :, None, :, None] == place
    return max_pool(x), jnp.sum(jnp.where(picked, windows, jnp.zeros_like(windows)), axis=(2, 4))


def _windows(x: Array) -> Float[Array, "n half_height 2 half_width 2 channels"]:
    n, height, width, channels = x.shape
    height, width = height // 2, width // 2
    return x[:, : 2 * height, : 2 * width].reshape(n, height, 2, width, 2, channels)


def _corners(x: Array) -> tuple[Array, Array, Array, Array]:
    """Of all windows: upper left, upper right, lower left, lower right."""
    windows = _windows(x)
    a, b, c, d = (windows[:, :, i, :, j] for i in range(2) for j in range(2))
    return a, b, c, d


def _larger(a: Array, b: Array) -> Array:
    return jnp.where(a >= b, a, b)


def _block(layer: Params, x: Array, pooling: str) -> Array:
    x = convolve_3x3(x, layer["kernel"], stride=2 if pooling == "stride" else 1)
    x = jax.nn.relu(batch_norm(x, layer["scale"], layer["offset"]))
    return max_pool(x) if pooling == "max" else x


def conv4(
    input_shape: Sequence[int],
    output_size: int,
    filters: int = 64,
    pooling: Literal["stride", "max"] = "stride",
) -> Model:
    """Four blocks of 3x3 convolution, batch normalisation and ReLU, then a linear head.

    Parameters
    ----------
    input_shape : (height, width, channels)
    output_size : number of classes
    filters : channels of every block; 64 for Omniglot and 32 for mini-ImageNet in the literature
    pooling : "stride" halves the image by strided convolution and averages what is left, as MAML does
        on Omniglot; "max" halves it by max-pooling and flattens, as on mini-ImageNet

    Raises
    ------
    InputError
        When the image is not (height, width, channels), or too small to be halved four times.

    Notes
    -----
    Batch normalisation uses the statistics of the batch it is given, in training and in evaluation: the
    predictions on a query set then depend on the whole set (transductive). `train.evaluate` has the
    alternative.

    References
    ----------
    Finn et al. (2017), section 5.2 and appendix A.1; Vinyals et al. (2016).
    """
    check_choice("pooling", pooling, ("stride", "max"))
    check_count("filters", filters)
    check_count("output_size", output_size)
    if len(input_shape) != 3:
        raise InputError(
            f"conv4 takes images of shape (height, width, channels), not {tuple(input_shape)}"
        )
    height, width, channels = input_shape
    if pooling == "max" and min(height, width) < 16:
        raise InputError(
            f"conv4 with max-pooling halves the image four times and needs at least 16x16 pixels, not "
            f"{height}x{width}; use pooling='stride'"
        )
    rest = 1 if pooling == "stride" else (height // 16) * (width // 16)

    def init(key: PRNGKeyArray) -> Params:
        *block_keys, head_key = jax.random.split(key, 5)
        params: Params = {"head": init_dense(head_key, rest * filters, output_size)}
        for i, block_key in enumerate(block_keys):
            patch = _WINDOW**2 * (channels if i == 0 else filters)
            kernel = jax.nn.initializers.glorot_uniform()(block_key, (patch, filters))
            params[f"block{i + 1}"] = {
                "kernel": kernel,
                "scale": jnp.ones(filters),
                "offset": jnp.zeros(filters),
            }
        return params

    def features(params: Params, x: Array) -> Array:
        for i in range(4):
            x = _block(params[f"block{i + 1}"], x, pooling)
        return jnp.mean(x, axis=(1, 2)) if pooling == "stride" else x.reshape(x.shape[0], -1)

    def head(params: Params, features: Array) -> Array:
        return apply_dense(params["head"], features)

    def apply(params: Params, x: Array) -> Array:
        return head(params, features(params, x))

    name = f"conv4-{filters}-{pooling}"
    return Model(init, apply, head_named("head"), features, "sequential", name, head)
