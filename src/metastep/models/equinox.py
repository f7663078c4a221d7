"""An Equinox module as a model."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray

from metastep._types import Params
from metastep.models.core import Model


def from_equinox(make: Callable[[PRNGKeyArray], Callable[[Array], Array]], **more: Any) -> Model:
    """A model whose parameters are the floating-point arrays of an Equinox module.

    Parameters
    ----------
    make : key -> module, which takes one example and gives (outputs,), as Equinox's layers do
    more : other attributes of `Model`, such as `is_head`, `task_mapping` or `name`

    Modules that keep a state between calls, as `equinox.nn.BatchNorm` does, do not fit: a model is a pure function.

    Examples
    --------
    >>> import equinox as eqx
    >>> model = from_equinox(lambda key: eqx.nn.MLP(1, 1, 40, 2, key=key), name="eqx-mlp")
    """
    # What is no parameter, such as activations and sizes, is the same whatever the key.
    rest = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)[1]

    def init(key: PRNGKeyArray) -> Params:
        return eqx.filter(make(key), eqx.is_inexact_array)

    def apply(params: Params, x: Array) -> Array:
        module: Any = eqx.combine(params, rest)
        return jax.vmap(module)(x)

    return Model(init, apply, **more)
