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

from metastep.models.im2col import convolve_by_product, padded

Images = Float[Array, "n height width channels"]
Kernel = Float[Array, "rows columns channels features"]


def convolve_images(x: Images, kernel: Kernel) -> Array:
    """Slide the kernel over every place where it fits: (n, height - rows + 1, width - columns + 1, features)."""
    return _convolve.bind(x, kernel)


def kernel_derivative(x: Images, out: Array, window: tuple[int, int]) -> Kernel:
    """The transpose of `convolve_images` in its kernel: (rows, columns, channels, features)."""
    return _derive.bind(x, out, window=window)


def _images_derivative(out: Array, kernel: Kernel) -> Images:
    """The transpose of `convolve_images` in its images."""
    rows, columns = kernel.shape[:2]
    around = padded(out, [(rows - 1, rows - 1), (columns - 1, columns - 1)])
    return convolve_images(around, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


def _by_xla(x: Images, kernel: Kernel) -> Array:
    layouts = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layouts)


def _by_product(x: Images, kernel: Kernel) -> Array:
    return convolve_by_product(x, kernel, (1, 1), "VALID")


def _derive_by_product(x: Images, out: Array, *, window: tuple[int, int]) -> Kernel:
    kernel = jax.ShapeDtypeStruct((*window, x.shape[-1], out.shape[-1]), x.dtype)
    (found,) = jax.linear_transpose(partial(_by_product, x), kernel)(out)
    return found


def _shape_of_convolved(x: Any, kernel: Any) -> ShapedArray:
    space = (x.shape[1] - kernel.shape[0] + 1, x.shape[2] - kernel.shape[1] + 1)
    return ShapedArray((x.shape[0], *space, kernel.shape[-1]), x.dtype)


def _shape_of_kernel(x: Any, out: Any, *, window: tuple[int, int]) -> ShapedArray:
    return ShapedArray((*window, x.shape[-1], out.shape[-1]), x.dtype)


def _primitive(
    name: str, shape: Callable, one: Callable, static: tuple[str, ...] = ()
) -> Primitive:
    found = Primitive(name)
    found.def_abstract_eval(shape)
    found.def_impl(jax.jit(one, static_argnames=static))
    mlir.register_lowering(found, mlir.lower_fun(one, multiple_results=False))
    return found


_convolve = _primitive("convolve_images", _shape_of_convolved, _by_xla)
_derive = _primitive("kernel_derivative", _shape_of_kernel, _derive_by_product, ("window",))

ad.defbilinear(
    _convolve,
    lambda out, x, kernel: _images_derivative(out, kernel),
    lambda out, x, kernel: kernel_derivative(x, out, kernel.aval.shape[:2]),
)
ad.defbilinear(
    _derive,
    lambda kernel, x, out, window: _images_derivative(out, kernel),
    lambda kernel, x, out, window: convolve_images(x, kernel),
)


def _many_convolved(arguments: tuple[Array, Array], axes: tuple) -> tuple[Array, int]:
    """Images of several tasks and a kernel they share are so many more images; kernels of their own are a product."""
    (x, kernel), (of_x, of_kernel) = arguments, axes
    if of_kernel is not None:
        return jax.vmap(_by_product, axes)(x, kernel), 0
    x = jnp.moveaxis(x, of_x, 0)
    out = convolve_images(x.reshape(-1, *x.shape[2:]), kernel)
    return out.reshape(*x.shape[:2], *out.shape[1:]), 0


def _many_derived(
    arguments: tuple[Array, Array], axes: tuple, *, window: tuple[int, int]
) -> tuple[Array, int]:
    return jax.vmap(partial(_derive_by_product, window=window), axes)(*arguments), 0


batching.primitive_batchers[_convolve] = _many_convolved
batching.primitive_batchers[_derive] = _many_derived
