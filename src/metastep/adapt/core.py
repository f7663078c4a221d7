"""The interface of an adapter, and what it reports."""

import abc
from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, Float

from metastep._types import Params, Rate, Scalar

InnerGradient = Callable[[Params], tuple[Scalar, Params]]
"""params -> (support loss, its gradient): all that an adapter knows of a task.

`jax.value_and_grad(loss)` is one. What differentiating *through* it yields (the Hessian, nothing, a
difference quotient) is decided by the meta-gradient that hands it over.
"""


class AdaptInfo(eqx.Module):
    """Diagnostics of one adaptation.

    Attributes
    ----------
    losses : (steps,) support loss before each inner step
    """

    losses: Float[Array, " steps"]


class AbstractAdapter(eqx.Module):
    """Turns meta-parameters into task parameters; differentiable, and unaware of who differentiates it."""

    @abc.abstractmethod
    def __call__(
        self, inner_gradient: InnerGradient, params: Params, alpha: Rate
    ) -> tuple[Params, AdaptInfo]:
        """Adapt `params` to the task behind `inner_gradient`, at adaptation rate `alpha`."""
