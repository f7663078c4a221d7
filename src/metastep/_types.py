"""The few nouns every layer shares: Batch, Episode, MetaParams, and the aliases for pytrees and losses."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
from jaxtyping import Array, Float, PyTree

Kind = Literal["regression", "classification"]
"""What a task asks for: real targets, or class labels."""

Params = PyTree[Array]
"""Parameters of a model: any pytree of floating-point arrays."""

Scalar = Float[Array, ""]

Loss = Callable[[Params], Scalar]
"""A loss with its data already bound: parameters to the mean over examples."""


class Batch(eqx.Module):
    """Labelled examples of one task; every array has the examples on its leading axis.

    Attributes
    ----------
    x : (examples, ...) inputs
    y : (examples, ...) real targets, or (examples,) integer class labels
    """

    x: Array
    y: Array


class Episode(eqx.Module):
    """One draw of a task: what to adapt on and what to be judged by.

    In Fallah et al. (2020) `support` is D_in, `query` is D_o and `curvature` is D_h, the sample that
    the Hessian of the inner step is taken on; None stands for the usual choice D_h = D_in.
    """

    support: Batch
    query: Batch
    curvature: Batch | None = None


class MetaParams(eqx.Module):
    """All that meta-training differentiates: the initialisation and, where they are learned, the rates."""

    params: Params
    rates: PyTree[Array] = None


class PerStep(eqx.Module):
    """Adaptation rates that differ from one inner step to the next.

    Attributes
    ----------
    values : an array, or a pytree prefix of the parameters, with the steps on every leading axis
    """

    values: PyTree[Array]


Rate = Any
"""An adaptation rate: an array that fits every leaf, a pytree prefix of the parameters, or `PerStep`."""
