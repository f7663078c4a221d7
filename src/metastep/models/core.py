"""What metastep asks of a model: two pure functions, and which parameters form the head."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from metastep._errors import InputError
from metastep._types import Params

_SMALL = 1e-8  # a ReLU network may see an example with no feature at all


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of any library, reduced to pure functions of a parameter pytree.

    Attributes
    ----------
    init : key -> params
    apply : (params, x of shape (examples, ...)) -> outputs of shape (examples, outputs)
        May look at the whole batch, as batch normalisation by batch statistics does.
    is_head : params -> pytree of bool, shaped like params
        True where ANIL adapts. The default, everything, makes ANIL the same as MAML.
    features : (params, x) -> what the head sees, (examples, dim); None where that has no meaning
    task_mapping : "vmap" or "sequential"
        How many tasks share a CPU best: matrices this small gain from being batched ("vmap"),
        convolutions from staying in cache one task at a time ("sequential"). Ignored on accelerators.
    name : shown in reports
    head : (params, features) -> outputs, from what `features` gives: ANIL then computes the features of a task once,
        and not at every inner step

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> scale_only = Model(init=lambda key: jnp.ones(()), apply=lambda scale, x: scale * x)
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[[Params, Array], Array]
    is_head: Callable[[Params], PyTree[bool]] = lambda params: jax.tree.map(lambda _: True, params)
    features: Callable[[Params, Array], Array] | None = None
    task_mapping: Literal["vmap", "sequential"] = "vmap"
    name: str = "model"
    head: Callable[[Params, Array], Array] | None = None


def head_named(name: str) -> Callable[[Params], PyTree[bool]]:
    """Mark the entry `name` of a dict of layers as the head."""

    def is_head(params: Params) -> PyTree[bool]:
        return {
            layer: jax.tree.map(lambda _: layer == name, leaves)  # noqa: B023 - used at once
            for layer, leaves in params.items()
        }

    return is_head


def with_unit_features(model: Model) -> Model:
    """The same model with every feature vector scaled to length 1 before the head sees it.

    The setting of the ANIL rate of Zou et al. (2022), section H.3, which takes its estimate from normalised
    features: `metastep.rates.AnilOnlineRate` on the features of this model is the rate of what is adapted.

    Parameters
    ----------
    model : with `features` and `head`, such as `conv4`

    Returns
    -------
    Model
        With the parameters and the start of `model`.

    Raises
    ------
    InputError
        If the model does not say which features its head sees.

    References
    ----------
    Zou et al. (2022), section H.3.
    """
    raw, head = model.features, model.head
    if raw is None or head is None:
        raise InputError(
            f"with_unit_features: {model.name} has no features or no head; give both to Model"
        )

    def features(params: Params, x: Array) -> Array:
        found = raw(params, x)
        return found / (jnp.linalg.norm(found, axis=1, keepdims=True) + _SMALL)

    def apply(params: Params, x: Array) -> Array:
        return head(params, features(params, x))

    return dataclasses.replace(model, apply=apply, features=features)


Columns = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each column, or one of each for all."""


def standardised(
    model: Model, inputs: Columns | None = None, labels: Columns | None = None
) -> Model:
    """The same model for data in units of its own: what it sees has zero mean and unit variance.

        apply(params, x) = mean_y + deviation_y * model.apply(params, (x - mean_x) / deviation_x)

    Losses and predictions stay in the units of the labels.

    Parameters
    ----------
    model : any
    inputs : mean and standard deviation along the last axis of x, above 0; None leaves inputs as they are
    labels : those of each output; None leaves outputs as they are

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> scale_only = Model(init=lambda key: jnp.ones(()), apply=lambda scale, x: scale * x)
    >>> standardised(scale_only, inputs=([10.0], [2.0])).apply(jnp.ones(()), jnp.array([[14.0]])).tolist()
    [[2.0]]
    """

    def seen(x: Array) -> Array:
        if inputs is None:
            return x
        mean, deviation = (jnp.asarray(values, x.dtype) for values in inputs)
        return (x - mean) / deviation

    def told(outputs: Array) -> Array:
        if labels is None:
            return outputs
        mean, deviation = (jnp.asarray(values, outputs.dtype) for values in labels)
        return mean + deviation * outputs

    raw, head = model.features, model.head
    return dataclasses.replace(
        model,
        apply=lambda params, x: told(model.apply(params, seen(x))),
        features=None if raw is None else lambda params, x: raw(params, seen(x)),
        head=None if head is None else lambda params, found: told(head(params, found)),
    )
