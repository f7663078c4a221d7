"""Convolution as one product: the neighbourhood of every pixel is a row (im2col), the kernel a matrix."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from metastep._trees import group_size

Padding = str | Sequence[tuple[int, int]]

# Neighbourhoods that are in memory at once, about half of a core's own cache.
_CACHED_BYTES = 1_000_000

# From so many rows of neighbourhoods on, transposing the kernel costs nothing beside the products.
_MANY_PLACES = 1_000

# From here on, the channels of a pixel are worth copying by themselves.
_MANY_CHANNELS = 8


def convolve_by_product(
    x: Array,
    kernel: Array,
    strides: tuple[int, ...],
    padding: Sequence[tuple[int, int]],
    gaps: tuple[int, ...] | None = None,
    **product: Any,
) -> Array:
    """Convolve (n, space..., channels) with a kernel (window..., channels, features).

    Parameters
    ----------
    x, kernel : with one or more spatial dimensions
    strides, padding, gaps : as those of `jax.lax.conv_general_dilated`, padding in numbers, gaps its `rhs_dilation`
    product : options of `jax.lax.dot_general`

    Returns
    -------
    (n, fewer..., features)
    """
    window = kernel.shape[:-2]
    gaps = gaps or (1,) * len(window)
    cut = partial(_shifted, window=window, strides=strides, gaps=gaps, padding=padding)
    gather = _by_pixels if kernel.shape[-2] >= _MANY_CHANNELS else _by_planes
    convolve = partial(
        gather,
        cut=cut,
        product=partial(lax.dot_general, **product),
        matrix=kernel.reshape(-1, kernel.shape[-1]),
    )
    size = sum(math.prod(part.shape) for part in jax.eval_shape(cut, x)) * x.dtype.itemsize
    return _in_groups(convolve, x, size)


def explicit_padding(
    padding: Padding,
    space: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    gaps: Sequence[int],
) -> Sequence[tuple[int, int]]:
    """Pixels to add on either side of each spatial dimension; those to take away are negative."""
    if not isinstance(padding, str):
        return padding
    return lax.padtype_to_pads(space, _reach(window, gaps), strides, padding)


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
    last = patches.ndim - 1
    if patches.size < _MANY_PLACES * len(matrix):
        return product(patches, matrix, (((last,), (0,)), ((), ())))
    # The derivative of the matrix is the product of outputs and neighbourhoods, and comes transposed. XLA would save
    # that transposition by exchanging the two, and be slower by half: the wider one of two tall matrices goes second.
    transposed = lax.optimization_barrier(matrix.T)
    return product(patches, transposed, (((last,), (1,)), ((), ())))


def _by_planes(x: Array, cut: Callable, product: Callable, matrix: Array) -> Array:
    """The same with neighbourhoods as columns: shifted planes are copied row by row, not a few channels at a time."""
    n, *space, channels = x.shape
    planes = jnp.moveaxis(x, -1, 0).reshape(channels * n, *space, 1)
    patches = jnp.stack(cut(planes))  # (window size, channels n, space..., 1)
    places = (n, *patches.shape[2:-1])
    rows = patches.reshape(len(matrix), math.prod(places))
    out = product(rows, matrix, (((0,), (0,)), ((), ())))
    return out.reshape(*places, matrix.shape[1])


def _shifted(
    x: Array,
    window: Sequence[int],
    strides: Sequence[int],
    gaps: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> list[Array]:
    """(n, space..., channels) -> what each pixel of the window sees, (n, fewer..., channels) each."""
    edges = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    sizes = [
        max(0, (size - far) // stride + 1)
        for size, far, stride in zip(x.shape[1:-1], _reach(window, gaps), strides, strict=True)
    ]
    shifted = []
    for offset in itertools.product(*map(range, window)):
        starts = [i * gap for i, gap in zip(offset, gaps, strict=True)]
        cut = tuple(
            slice(start, start + stride * size, stride)
            for start, stride, size in zip(starts, strides, sizes, strict=True)
        )
        shifted.append(x[(slice(None), *cut)])
    return shifted


def _reach(window: Sequence[int], gaps: Sequence[int]) -> list[int]:
    """How many pixels a window with gaps spans, in each dimension."""
    return [(size - 1) * gap + 1 for size, gap in zip(window, gaps, strict=True)]
