"""What XLA is asked for when it compiles our programs on a CPU: the same speed, in less time."""

import os
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array, Bool

Tree = TypeVar("Tree")

# Compiling is most of a first start, and a good part of it goes to a last level of optimisation. Programs of dense
# models are as fast without; those of convolutional ones are 4 % slower, which is a matter of those that run for
# minutes (docs/speed.md, benchmarks/compiling.py).
ON_CPU = {"xla_backend_optimization_level": 2}


def compiler_options() -> dict[str, Any]:
    """For `jax.jit`: nothing on accelerators, and nothing that somebody has already decided or XLA does not know.

    `XLA_FLAGS` and JAX's own `jax_disable_most_optimizations` win.
    """
    if jax.default_backend() != "cpu":
        return {}
    said = os.environ.get("XLA_FLAGS", "")
    if jax.config.read("jax_disable_most_optimizations"):
        said += "xla_backend_optimization_level"
    return {name: value for name, value in ON_CPU.items() if name not in said and _known(name)}


@cache
def _known(name: str) -> bool:
    """Whether this XLA has an option of that name: options come and go, and it refuses what it does not know."""
    try:
        jax.jit(lambda: 0, compiler_options={name: ON_CPU[name]}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def computed_once(make: Callable[[], Tree], truth: Bool[Array, ""]) -> Tree:
    """make(), within a program, computed before anything that uses it and not again in each of its uses.

    XLA on a CPU computes what is elementwise anew in whatever uses it: a sine once for each hidden unit that sees it.
    It drops `jax.lax.optimization_barrier` before it decides so, but does not look beyond a branch.

    Parameters
    ----------
    make : returns a pytree of arrays
    truth : always true, which XLA must not be able to tell
    """
    if jax.default_backend() != "cpu":
        return make()
    shapes = jax.eval_shape(make)
    return jax.lax.cond(truth, make, lambda: jax.tree.map(jnp.zeros_like, shapes))


class TunedJit:
    """`jax.jit(function)` for arrays, compiled with `compiler_options`.

    Within another program, which is compiled as a whole, and in transformations it is `jax.jit` as usual.

    Attributes
    ----------
    function : what is compiled
    within : the same without options, which JAX takes for a whole program only
    """

    def __init__(self, function: Callable, *, long_running: bool = False, **how: Any):
        """Those that are `long_running` are compiled as XLA does by itself; `how` is for `jax.jit`."""
        self.function, self._long_running, self._how = function, long_running, how
        self.within = jax.jit(function, **how)

    def options(self) -> dict[str, Any]:
        """What it is compiled with where it is a whole program."""
        return {} if self._long_running else compiler_options()

    @cached_property
    def _alone(self) -> Any:
        if not (options := self.options()):
            return self.within
        return jax.jit(self.function, compiler_options=options, **self._how)

    def __call__(self, *arguments: Any) -> Any:
        return self._program()(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """As that of a jitted function."""
        return self._program().lower(*arguments)

    def compiled(self) -> int:
        """How many programs it has by now, one for each kind of arguments."""
        return self._program()._cache_size()

    def _program(self) -> Any:
        return self.within if is_traced() else self._alone


with jax.ensure_compile_time_eval():  # as nothing is traced here, wherever this is imported
    _UNTRACED = get_opaque_trace_state()


def is_traced() -> bool:
    """Whether what is computed here and now becomes part of a program or of a derivative."""
    return get_opaque_trace_state() != _UNTRACED
