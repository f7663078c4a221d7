"""Convolution of images at stride 1 on a CPU: XLA's own, but for the derivative of the kernel, which is a product.

XLA:CPU is fast at sliding one small kernel over many images, and so it is at the derivative of the images, which is
a convolution with the kernel turned round. Both slow down by an order of magnitude where the "kernel" is as large as
the images, as in the derivative of the kernel, or where every image has its own, as side by side over tasks. JAX
picks one way for all three. The two functions here are each other's derivatives, to any order, and pick for each.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from metastep.models.im2col import convolve_by_product

Images = Float[Array, "n height width channels"]
Kernel = Float[Array, "rows columns channels features"]
Around = tuple[tuple[int, int], tuple[int, int]]
"""Rows and columns of zeros to add before and after; those to take away are negative."""


def convolve_images(x: Images, kernel: Kernel, around: Around) -> Array:
    """Slide the kernel over every place where it fits: (n, fewer rows, fewer columns, features)."""
    return _convolve.bind(x, kernel, around=around)


def kernel_derivative(x: Images, out: Array, window: tuple[int, int], around: Around) -> Kernel:
    """The transpose of `convolve_images` in its kernel: (rows, columns, channels, features)."""
    return _derive.bind(x, out, window=window, around=around)


def _images_derivative(out: Array, kernel: Kernel, around: Around) -> Images:
    """The transpose of `convolve_images` in its images."""
    rest = [
        (size - 1 - before, size - 1 - after)
        for size, (before, after) in zip(kernel.shape[:2], around, strict=True)
    ]
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return convolve_images(out, turned, (rest[0], rest[1]))


def _by_xla(x: Images, kernel: Kernel, *, around: Around) -> Array:
    layouts = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), around, dimension_numbers=layouts)


def _by_product(x: Images, kernel: Kernel, *, around: Around) -> Array:
    return convolve_by_product(x, kernel, (1, 1), around)


def _derive_by_product(x: Images, out: Array, *, window: tuple[int, int], around: Around) -> Kernel:
    kernel = jax.ShapeDtypeStruct((*window, x.shape[-1], out.shape[-1]), x.dtype)
    (found,) = jax.linear_transpose(partial(_by_product, x, around=around), kernel)(out)
    return found


def _shape_of_convolved(x: Any, kernel: Any, *, around: Around) -> ShapedArray:
    space = [
        before + size + after - wide + 1
        for size, wide, (before, after) in zip(x.shape[1:3], kernel.shape, around, strict=False)
    ]
    return ShapedArray((x.shape[0], *space, kernel.shape[-1]), x.dtype)


def _shape_of_kernel(x: Any, out: Any, *, window: tuple[int, int], around: Around) -> ShapedArray:
    del around
    return ShapedArray((*window, x.shape[-1], out.shape[-1]), x.dtype)


def _primitive(name: str, shape: Callable, one: Callable, static: tuple[str, ...]) -> Primitive:
    found = Primitive(name)
    found.def_abstract_eval(shape)
    found.def_impl(jax.jit(one, static_argnames=static))
    mlir.register_lowering(found, mlir.lower_fun(one, multiple_results=False))
    return found


_convolve = _primitive("convolve_images", _shape_of_convolved, _by_xla, ("around",))
_derive = _primitive(
    "kernel_derivative", _shape_of_kernel, _derive_by_product, ("window", "around")
)

ad.defbilinear(
    _convolve,
    lambda out, x, kernel, around: _images_derivative(out, kernel, around),
    lambda out, x, kernel, around: kernel_derivative(x, out, kernel.aval.shape[:2], around),
)
ad.defbilinear(
    _derive,
    lambda kernel, x, out, window, around: _images_derivative(out, kernel, around),
    lambda kernel, x, out, window, around: convolve_images(x, kernel, around),
)


def _many_convolved(
    arguments: tuple[Array, Array], axes: tuple, *, around: Around
) -> tuple[Array, int]:
    """Images of several tasks and a kernel they share are so many more images; kernels of their own are a product."""
    (x, kernel), (of_x, of_kernel) = arguments, axes
    if of_kernel is not None:
        return jax.vmap(partial(_by_product, around=around), axes)(x, kernel), 0
    x = jnp.moveaxis(x, of_x, 0)
    out = convolve_images(x.reshape(-1, *x.shape[2:]), kernel, around)
    return out.reshape(*x.shape[:2], *out.shape[1:]), 0


def _many_derived(arguments: tuple[Array, Array], axes: tuple, **static: Any) -> tuple[Array, int]:
    return jax.vmap(partial(_derive_by_product, **static), axes)(*arguments), 0


batching.primitive_batchers[_convolve] = _many_convolved
batching.primitive_batchers[_derive] = _many_derived
