"""Convolution as a product of matrices, for models of any library that meet every task with its own weights.

On a CPU, XLA's native convolution is slow where kernels differ from task to task, and slower still in the second
derivatives of meta-learning; a gather of neighbourhoods and one large product is not. Flax and Equinox layers can
be handed the function below in place of `jax.lax.conv_general_dilated`.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jaxtyping import Array

from metastep._trees import group_size
from metastep._types import Batch, Params

# Neighbourhoods that are in memory at once, about half of a core's own cache.
_CACHED_BYTES = 1_000_000

# From here on, the channels of a pixel are worth copying by themselves.
_MANY_CHANNELS = 8

Padding = str | Sequence[tuple[int, int]]


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

    Parameters
    ----------
    lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
    batch_group_count, precision, preferred_element_type, out_sharding : as in JAX, for any number of spatial
        dimensions
    native : use JAX's own convolution. None does on accelerators, and on a CPU only for what has no product here:
        transposed convolutions (`lhs_dilation`), groups, and outputs with a sharding of their own

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
    matrix = kernel.reshape(-1, kernel.shape[-1])
    cut = partial(
        _shifted, window=window, strides=tuple(window_strides), gaps=gaps, padding=padding
    )
    product = partial(
        lax.dot_general, precision=precision, preferred_element_type=preferred_element_type
    )
    gather = _by_pixels if kernel.shape[-2] >= _MANY_CHANNELS else _by_planes
    convolve = partial(gather, cut=cut, product=product, matrix=matrix)
    size = sum(math.prod(part.shape) for part in jax.eval_shape(cut, x)) * x.dtype.itemsize
    out = _in_groups(convolve, x, size)  # (n, space..., features)
    from_last = (0, out.ndim - 1, *range(1, out.ndim - 1))  # (batch, feature, space...)
    order = sorted(range(out.ndim), key=lambda i: spec.out_spec[i])
    return jnp.transpose(out, [from_last[i] for i in order])


def _in_groups(convolve: Callable[[Array], Array], x: Array, size: int) -> Array:
    """`convolve(x)`, on a CPU a few images at a time if the neighbourhoods of all would not fit its cache.

    Neighbourhoods are several times the images: written to memory and read back, once forwards and once for each
    derivative, they cost more than the products. Those of a group are gathered again for its derivatives instead.

    Parameters
    ----------
    convolve : of images (n, ...), each by itself
    x : images, (n, ...)
    size : bytes of the neighbourhoods of all images
    """
    count = len(x)
    most = max(1, _CACHED_BYTES * count // max(size, 1))
    if jax.default_backend() != "cpu" or count <= most:
        return convolve(x)
    width = group_size(count, most)
    groups = x.reshape(count // width, width, *x.shape[1:])
    out = lax.map(jax.checkpoint(convolve), groups)
    return out.reshape(count, *out.shape[2:])


def _by_pixels(x: Array, cut: Callable, product: Callable, matrix: Array) -> Array:
    """Neighbourhoods as the rows of a matrix, (n, space..., window size x channels), times the kernel."""
    patches = jnp.concatenate(cut(x), axis=-1)
    return product(patches, matrix, (((patches.ndim - 1,), (0,)), ((), ())))


def _by_planes(x: Array, cut: Callable, product: Callable, matrix: Array) -> Array:
    """The same with neighbourhoods as columns: shifted planes are copied row by row, not a few channels at a time."""
    n, *space, channels = x.shape
    planes = jnp.moveaxis(x, -1, 0).reshape(channels * n, *space, 1)
    patches = jnp.stack(cut(planes))  # (window size, channels n, space..., 1)
    out = product(patches.reshape(len(matrix), -1), matrix, (((0,), (0,)), ((), ())))
    return out.reshape(n, *patches.shape[2:-1], -1)


def _shifted(
    x: Array,
    window: Sequence[int],
    strides: tuple[int, ...],
    gaps: tuple[int, ...],
    padding: Padding,
) -> list[Array]:
    """(n, space..., channels) -> what each pixel of the window sees, (n, fewer..., channels) each."""
    reach = [(size - 1) * gap + 1 for size, gap in zip(window, gaps, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)
    edges = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), edges)
    sizes = [
        max(0, (size - far) // stride + 1)
        for size, far, stride in zip(padded.shape[1:-1], reach, strides, strict=True)
    ]
    shifted = []
    for offset in itertools.product(*map(range, window)):
        starts = [i * gap for i, gap in zip(offset, gaps, strict=True)]
        cut = tuple(
            slice(start, start + stride * size, stride)
            for start, stride, size in zip(starts, strides, sizes, strict=True)
        )
        shifted.append(padded[(slice(None), *cut)])
    return shifted


def has_native_convolution(function: Callable, *arguments: Any) -> bool:
    """Whether `function` calls XLA's convolution for arguments of these shapes; it is traced, not run."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    return "conv_general_dilated" in _primitives(jax.make_jaxpr(function)(*shapes).jaxpr)


def _primitives(jaxpr: Jaxpr) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _primitives(inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner)


def _is_program(value: Any) -> bool:
    return isinstance(value, (Jaxpr, ClosedJaxpr))


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
