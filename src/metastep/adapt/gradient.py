"""Gradient descent on the support loss, of all parameters or of the masked ones alone."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from metastep._errors import InputError, check_count
from metastep._trees import descend
from metastep._types import Params, PerStep, Rate, Scalar
from metastep.adapt.core import AbstractAdapter, AdaptInfo, InnerGradient
from metastep.theory.citations import source

# Up to this many inner steps are laid out one after another: the compiler then fuses across them, and finds that a
# body which is not adapted (ANIL) gives the same features at each. More go through a loop, all but the first: that
# one starts from parameters which tasks side by side still share, and in a loop they would each get a copy.
UNROLLED_STEPS = 5


@source("finn2017", "equation (1)", "as printed")
@source("raghu2020", "section 4 (ANIL: adapt the head alone)", "as printed")
class GradientAdapter(AbstractAdapter):
    """w <- w - alpha grad L(w; support), `steps` times.

    Attributes
    ----------
    steps : number of inner steps, at least 0
    trainable : params -> pytree of bool, True where the inner loop may step; None adapts everything.
        The head of a model here gives ANIL.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> loss = lambda w: jnp.sum((w - 1.0) ** 2)
    >>> adapted, info = GradientAdapter(steps=1)(jax.value_and_grad(loss), jnp.zeros(2), 0.25)
    >>> adapted.tolist()
    [0.5, 0.5]
    """

    steps: int = eqx.field(static=True, default=1)
    trainable: Callable[[Params], PyTree[bool]] | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_count("steps", self.steps, minimum=0)

    def __call__(
        self, inner_gradient: InnerGradient, params: Params, alpha: Rate
    ) -> tuple[Params, AdaptInfo]:
        """Adapt all or part of `params`.

        Parameters
        ----------
        inner_gradient : params -> (support loss, gradient), such as jax.value_and_grad(loss)
        params : where to start
        alpha : a scalar, a pytree prefix of `params`, or `PerStep` of either

        Raises
        ------
        InputError
            When `PerStep` does not have one rate for each step.
        """

        def step(current: Params, rate: Rate) -> tuple[Params, Scalar]:
            value, gradient = inner_gradient(current)
            moved = descend(current, alpha if rate is None else rate, gradient)
            return self._keep_fixed(moved, current), value

        rates = alpha.values if isinstance(alpha, PerStep) else None
        _check_schedule(rates, self.steps)
        first = self.steps if self.steps <= UNROLLED_STEPS else 1
        losses = []
        for number in range(first):
            rate = jax.tree.map(lambda leaf, i=number: leaf[i], rates)
            params, value = step(params, rate)
            losses.append(value)
        if first == self.steps and losses:
            return params, AdaptInfo(jnp.stack(losses))
        others = jax.tree.map(lambda leaf: leaf[first:], rates)
        adapted, values = jax.lax.scan(step, params, others, length=self.steps - first)
        return adapted, AdaptInfo(jnp.concatenate([*(value[None] for value in losses), values]))

    def _keep_fixed(self, moved: Params, current: Params) -> Params:
        """Undo the step where the mask says so; the compiler drops the gradients nobody uses."""
        if self.trainable is None:
            return moved
        mask = self.trainable(current)
        return jax.tree.map(lambda moves, new, old: new if moves else old, mask, moved, current)

    def restrict(self, tree: Params) -> Params:
        """Zero outside the parameters that adapt, such as a gradient about to be followed."""
        if self.trainable is None:
            return tree
        mask = self.trainable(tree)
        return jax.tree.map(lambda moves, leaf: leaf if moves else jnp.zeros_like(leaf), mask, tree)


def _check_schedule(rates: Rate, steps: int) -> None:
    """Raise unless every leaf has the inner steps on its first axis."""
    for leaf in jax.tree.leaves(rates):
        count = jnp.shape(leaf)[0] if jnp.ndim(leaf) else "no"
        if count != steps:
            raise InputError(
                f"alpha has {count} rates along its first axis, but there are {steps} inner steps; give one "
                f"rate per step"
            )
