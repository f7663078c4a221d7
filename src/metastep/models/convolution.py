"""Convolution for models of any library that meet every task with its own weights.

On a CPU, XLA's native convolution is slow where kernels differ from task to task, and in the derivatives of kernels;
a gather of neighbourhoods and one large product is not. Flax and Equinox layers can be handed the function below in
place of `jax.lax.conv_general_dilated`.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from metastep._primitives import primitives
from metastep._types import Batch, Params
from metastep.models.im2col import Padding, convolve_by_product, explicit_padding
from metastep.models.stride_one import convolve_images


class NativeConvolutionWarning(UserWarning):
    """A model convolves natively on a CPU."""


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
    *,
    native: bool | None = None,
) -> Array:
    """`jax.lax.conv_general_dilated`, on a CPU as neighbourhoods (im2col) times a matrix.

    Of two-dimensional images at stride 1, with one kernel for all, only the derivative of the kernel is such a
    product, see `stride_one`.

    Parameters
    ----------
    lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
    batch_group_count, precision, preferred_element_type, out_sharding : as in JAX, for any number of spatial
        dimensions
    native : use JAX's own convolution and derivatives. None does on accelerators, and on a CPU only for what has no
        product here: transposed convolutions (`lhs_dilation`), groups, and outputs with a sharding of their own

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> image, kernel = jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 8))
    >>> conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).shape
    (1, 2, 2, 8)
    """
    spec = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    window = [rhs.shape[axis] for axis in spec.rhs_spec[2:]]
    gaps = tuple(rhs_dilation or (1,) * len(window))
    strides = tuple(window_strides)
    special = feature_group_count > 1 or batch_group_count > 1 or set(lhs_dilation or (1,)) != {1}
    special = special or out_sharding is not None
    if native is None:
        native = jax.default_backend() != "cpu"
    if native or special or 0 in (*lhs.shape, *rhs.shape):
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, batch_group_count, precision, preferred_element_type, out_sharding,
        )  # fmt: skip
    x = jnp.transpose(lhs, (spec.lhs_spec[0], *spec.lhs_spec[2:], spec.lhs_spec[1]))
    kernel = jnp.transpose(rhs, (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0]))
    around = explicit_padding(padding, x.shape[1:-1], window, strides, gaps)
    usual = precision is None and preferred_element_type is None
    if usual and strides == gaps == (1, 1) and _may_slide(x, kernel, around):
        rows, columns = ((int(before), int(after)) for before, after in around)
        out = convolve_images(x, kernel, (rows, columns))
    else:
        options = {"precision": precision, "preferred_element_type": preferred_element_type}
        out = convolve_by_product(x, kernel, strides, around, gaps, **options)
    from_last = (0, out.ndim - 1, *range(1, out.ndim - 1))  # (batch, feature, space...)
    order = sorted(range(out.ndim), key=lambda i: spec.out_spec[i])
    return jnp.transpose(out, [from_last[i] for i in order])


def _may_slide(x: Array, kernel: Array, around: Sequence[tuple[int, int]]) -> bool:
    """Whether `convolve_images` takes these: on a CPU, in usual precision, with room for the window.

    Images alone, as XLA's own is the slower one on sequences and volumes.
    """
    room = [
        low + size + high - wide
        for (low, high), size, wide in zip(around, x.shape[1:-1], kernel.shape[:-2], strict=True)
    ]
    known = x.dtype == kernel.dtype and x.dtype in (jnp.float32, jnp.float64)
    return jax.default_backend() == "cpu" and known and min(room) >= 0


def has_native_convolution(function: Callable, *arguments: Any) -> bool:
    """Whether `function` calls XLA's convolution for arguments of these shapes; it is traced, not run."""
    return "conv_general_dilated" in primitives(function, *arguments)


def warn_of_native_convolution(
    loss: Callable[[Params, Batch], Array], params: Params, support: Batch
) -> None:
    """Say what to do about a model that convolves natively on a CPU, where that is slow."""
    if jax.default_backend() != "cpu" or not has_native_convolution(loss, params, support):
        return
    warnings.warn(
        "the model uses jax.lax.conv_general_dilated, which is many times slower than need be on a CPU when every "
        "task has weights of its own; hand metastep.models.conv_general_dilated to its layers (flax: "
        "nnx.Conv(..., conv_general_dilated=...)), see the guide on speed",
        NativeConvolutionWarning,
        stacklevel=2,
    )
