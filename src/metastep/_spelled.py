"""A function written out in full, so that two starts of Python can tell whether they mean the same one."""

import dataclasses
import functools
import hashlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PACKAGES = ("metastep", "jax", "jaxlib", "optax", "equinox", "matfree", "numpy")
"""Code that a version, or for our own the source, stands for: of a function from here, name and place say enough."""


class UnspellableError(Exception):
    """Something of which one cannot say in words what it is, such as a function of the user's."""


def spelled(value: Any) -> str:
    """Text that is the same for two values only if programs made of them are the same.

    Functions are spelled with all they close over, arrays to the bit. What functions find in their modules is not in
    it: versions and sources of `PACKAGES` have to be compared apart from that.

    Raises
    ------
    UnspellableError
        For code from elsewhere and objects of unknown make.
    """
    return "".join(_spell(value, ()))


def _spell(value: Any, above: tuple[int, ...]) -> Iterator[str]:
    if id(value) in above:  # a function that closes over itself
        yield f"<{len(above) - above.index(id(value))} up>"
        return
    above = (*above, id(value))
    yield f"{_name(type(value))}("
    for part in _parts(value):
        if isinstance(part, _Text):
            yield part
        else:
            yield from _spell(part, above)
        yield ","
    yield ")"


class _Text(str):
    """Text that is spelled already."""


def _parts(value: Any) -> list[Any]:
    """What a value consists of: text, or values to be spelled in turn."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.dtype):
        return [_Text(repr(value))]
    if isinstance(value, type):
        return [_Text(_name(value))]
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return [_Text(_of_array(value))]
    if isinstance(value, dict):
        return [part for item in value.items() for part in item]
    if isinstance(value, tuple | list):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.BuiltinFunctionType):
        return [_Text(_name(value)), value.__self__ if value.__module__ is None else None]
    if isinstance(value, types.FunctionType):
        return _of_function(value)
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if _name(type(value)).startswith("jax") and hasattr(value, "__wrapped__"):  # jit, custom_jvp
        return [value.__wrapped__]
    raise UnspellableError(f"an object of {type(value)}")


def _name(value: Any) -> str:
    """Module and name of a class or function from a package that is known."""
    module = getattr(value, "__module__", None) or "builtins"
    package = module.partition(".")[0]
    if package not in PACKAGES and package not in sys.stdlib_module_names:
        raise UnspellableError(f"{value}, which is from {module}")
    # Layers are the user's choice, and some of them are warned of while they are traced.
    if package == "__main__" or module.startswith("equinox.nn"):
        raise UnspellableError(f"{value}, which is the user's")
    return f"{module}.{value.__qualname__}"


def _of_array(value: Any) -> str:
    """Type and bits."""
    dtype, weak = value.dtype, getattr(value, "weak_type", False)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    bits = np.ascontiguousarray(value)
    return f"{dtype}{bits.shape}{weak}{hashlib.sha256(bits.tobytes()).hexdigest()}"


def _of_function(function: types.FunctionType) -> list[Any]:
    """Place in the source, defaults, and what it closes over. Several may share a line, but not their code."""
    code = function.__code__
    spot = f"{_name(function)}:{code.co_firstlineno}:{list(code.co_positions())}"
    parts = [
        _Text(spot),
        code.co_code,
        code.co_names,
        function.__defaults__,
        function.__kwdefaults__,
    ]
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts += [name, cell.cell_contents]
        except ValueError:  # not assigned yet
            parts += [name, _Text("empty")]
    return parts
