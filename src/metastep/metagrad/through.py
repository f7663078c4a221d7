"""Meta-gradients that differentiate through the inner loop; they differ in the derivative of an inner gradient.

With inner gradient g(w; D_in), outer gradient g_o at the adapted parameters and one step, the chain rule gives
(I - alpha H) g_o. Exact differentiation forms the product with H, the first-order rule drops it, and the
Hessian-free rule replaces it by a difference of two gradients.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax.tree_utils as otu

from metastep._errors import check_choice
from metastep._trees import copies
from metastep._types import Batch, Episode, MetaParams, Params, Rate, Scalar
from metastep.adapt import AbstractAdapter, InnerGradient
from metastep.metagrad.core import AbstractMetaGradient, RateRule, TaskOutcome, judge
from metastep.metagrad.derivatives import DERIVATIVES, Derivative, support_gradient
from metastep.models import Objective
from metastep.theory.citations import source
from metastep.theory.hessian_free import hessian_free_delta, hessian_free_step


class AbstractThrough(AbstractMetaGradient):
    """Differentiates the query loss through the adapter, with `inner_gradient` deciding how."""

    @abc.abstractmethod
    def inner_gradient(self, objective: Objective, episode: Episode, alpha: Rate) -> InnerGradient:
        """The support gradient whose own derivative is the rule of this class."""

    def __call__(
        self,
        objective: Objective,
        adapter: AbstractAdapter,
        rate: RateRule,
        meta: MetaParams,
        episode: Episode,
    ) -> tuple[TaskOutcome, MetaParams]:
        def query_loss(meta: MetaParams) -> tuple[Scalar, TaskOutcome]:
            task = self._adapt_and_judge(objective, adapter, rate(meta), meta.params, episode)
            return task.loss, task

        (_, task), gradient = jax.value_and_grad(query_loss, has_aux=True)(meta)
        return task, gradient

    def of_group(
        self,
        objective: Objective,
        adapter: AbstractAdapter,
        rate: RateRule,
        meta: MetaParams,
        episodes: Episode,
    ) -> tuple[TaskOutcome, MetaParams]:
        """The gradient of the summed loss: what tasks share is computed and differentiated once for all."""

        def total_loss(meta: MetaParams) -> tuple[Scalar, TaskOutcome]:
            def of_task(alpha: Rate, episode: Episode) -> TaskOutcome:
                return self._adapt_and_judge(objective, adapter, alpha, meta.params, episode)

            tasks = jax.vmap(of_task)(_for_each_task(episodes, rate(meta)), episodes)
            return jnp.sum(tasks.loss), tasks

        (_, tasks), gradient = jax.value_and_grad(total_loss, has_aux=True)(meta)
        return tasks, gradient

    def _adapt_and_judge(
        self,
        objective: Objective,
        adapter: AbstractAdapter,
        alpha: Rate,
        params: Params,
        episode: Episode,
    ) -> TaskOutcome:
        gradient = self.inner_gradient(objective, episode, alpha)
        adapted, info = adapter(gradient, params, alpha)
        return judge(objective, adapted, episode, info)


def _for_each_task(episodes: Episode, alpha: Rate) -> Rate:
    """The rates, once for each task: their derivative is a sum over tasks, as large as the models of all of them."""
    num_tasks = jax.tree.leaves(episodes)[0].shape[0]
    return jax.tree.map(lambda leaf: copies(num_tasks, jnp.asarray(leaf)), alpha)


@source("finn2017", "equation (1)", "as printed")
@source("fallah2020", "equation (5), with D_in, D_h and D_o", "corrected")
class Exact(AbstractThrough):
    """MAML: (I - alpha H(w; D_h)) g(w'; D_o), to the last inner step.

    With `Episode.curvature` the Hessians are taken on D_h instead of D_in; the path of the inner loop is that
    of D_in either way.

    Attributes
    ----------
    derivative : how an inner gradient is differentiated, a name in `DERIVATIVES`: the result is the same, memory
        and time are not. See `support_gradient`.
    """

    derivative: Derivative = eqx.field(static=True, default="plain")

    def __check_init__(self) -> None:
        check_choice("derivative", self.derivative, DERIVATIVES)

    def inner_gradient(self, objective: Objective, episode: Episode, alpha: Rate) -> InnerGradient:
        del alpha
        return support_gradient(objective, episode.support, episode.curvature, self.derivative)

    def _adapt_and_judge(
        self,
        objective: Objective,
        adapter: AbstractAdapter,
        alpha: Rate,
        params: Params,
        episode: Episode,
    ) -> TaskOutcome:
        if self.derivative != "forward":  # which has no derivative with respect to features
            objective, episode = objective.past_features(params, episode)
        return super()._adapt_and_judge(objective, adapter, alpha, params, episode)


@source("finn2017", "section 5.2, first-order approximation", "as printed")
@source("fallah2020", "equation (9), FO-MAML", "corrected")
class FirstOrder(AbstractThrough):
    """FO-MAML: g(w'; D_o), as if the inner gradient did not depend on the parameters."""

    def inner_gradient(self, objective: Objective, episode: Episode, alpha: Rate) -> InnerGradient:
        del alpha
        on_support = jax.value_and_grad(objective.on(episode.support))
        return lambda params: jax.lax.stop_gradient(on_support(params))


@source("fallah2020", "equations (10)-(11), HF-MAML", "corrected", "the printed delta is a cap")
class HessianFree(AbstractThrough):
    """HF-MAML: Hessian products by a central difference of gradients along the outer gradient.

    H v is taken as (g(w + delta v) - g(w - delta v)) / (2 delta) on D_h (D_in by default), with delta from
    `theory.hessian_free_step`: small enough for the difference to be a derivative, large enough for rounding not
    to show, and never above the printed rule 1 / (6 rho alpha ||v||), which alone would leave a bias that more
    data does not remove.

    Attributes
    ----------
    hessian_lipschitz : rho >= 0, a Lipschitz constant of the Hessian, for the cap; 0 for none
    as_printed : take the cap itself for delta, to see its bias
    """

    hessian_lipschitz: float = 0.0
    as_printed: bool = eqx.field(static=True, default=False)

    def inner_gradient(self, objective: Objective, episode: Episode, alpha: Rate) -> InnerGradient:
        largest = jnp.max(jnp.array([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(alpha)]))
        curvature = episode.support if episode.curvature is None else episode.curvature
        rule = _difference_rule(objective, self.hessian_lipschitz, self.as_printed)
        return lambda params: rule(params, episode.support, curvature, largest)


def _difference_rule(objective: Objective, hessian_lipschitz: float, as_printed: bool):
    """A support gradient whose backward pass is two more gradients instead of a Hessian product."""

    @jax.custom_vjp
    def gradient(params: Params, support: Batch, curvature: Batch, alpha: Scalar):
        return jax.value_and_grad(objective.on(support))(params)

    def forward(params: Params, support: Batch, curvature: Batch, alpha: Scalar):
        return gradient(params, support, curvature, alpha), (params, curvature, alpha)

    def backward(saved: tuple[Params, Batch, Scalar], cotangent: tuple[Scalar, Params]):
        params, curvature, alpha = saved
        direction = cotangent[1]
        length, size = otu.tree_norm(direction), otu.tree_norm(params)
        rates: Any = {
            "alpha": alpha.astype(length.dtype),
            "hessian_lipschitz": jnp.asarray(hessian_lipschitz, length.dtype),
        }
        if as_printed:
            delta = hessian_free_delta(length, **rates)
        else:
            delta = hessian_free_step(length, **rates, scale=1 + size)
        return hessian_product(objective, params, curvature, direction, delta), None, None, None

    gradient.defvjp(forward, backward)
    return gradient


def hessian_product(
    objective: Objective, params: Params, batch: Batch, direction: Params, delta: Scalar
) -> Params:
    """H direction by a central difference of gradients, `delta` directions ahead and behind."""
    step = jnp.asarray(delta, otu.tree_norm(direction).dtype)
    gradient = jax.grad(objective.on(batch))
    ahead = gradient(otu.tree_add_scale(params, step, direction))
    behind = gradient(otu.tree_add_scale(params, -step, direction))
    return otu.tree_scale(1 / (2 * step), otu.tree_sub(ahead, behind))
