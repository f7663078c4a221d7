"""Meta-gradients that differentiate through the inner loop; they differ in the derivative of an inner gradient.

With inner gradient g(w; D_in), outer gradient g_o at the adapted parameters and one step, the chain rule gives
(I - alpha H) g_o. Exact differentiation forms the product with H, the first-order rule drops it, and the
Hessian-free rule replaces it by a difference of two gradients.
"""

import abc

import jax
import jax.numpy as jnp
import optax.tree_utils as otu

from metastep._types import Batch, Episode, MetaParams, Params, Rate, Scalar
from metastep.adapt import AbstractAdapter, InnerGradient
from metastep.metagrad.core import AbstractMetaGradient, RateRule, TaskOutcome, judge
from metastep.models import Objective
from metastep.theory.citations import source


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
            alpha = rate(meta)
            gradient = self.inner_gradient(objective, episode, alpha)
            adapted, info = adapter(gradient, meta.params, alpha)
            task = judge(objective, adapted, episode, info)
            return task.loss, task

        (_, task), gradient = jax.value_and_grad(query_loss, has_aux=True)(meta)
        return task, gradient


@source("finn2017", "equation (1)", "as printed")
@source("fallah2020", "equation (5), with D_in, D_h and D_o", "corrected")
class Exact(AbstractThrough):
    """MAML: (I - alpha H(w; D_h)) g(w'; D_o), to the last inner step.

    With `Episode.curvature` the Hessians are taken on D_h instead of D_in; the path of the inner loop is that
    of D_in either way.
    """

    def inner_gradient(self, objective: Objective, episode: Episode, alpha: Rate) -> InnerGradient:
        del alpha
        on_support = jax.value_and_grad(objective.on(episode.support))
        if episode.curvature is None:
            return on_support
        on_curvature = jax.grad(objective.on(episode.curvature))

        def gradient(params: Params) -> tuple[Scalar, Params]:
            value, wanted = on_support(params)
            differentiable = on_curvature(params)
            # The value of one gradient, the derivative of the other.
            shift = jax.lax.stop_gradient(otu.tree_sub(wanted, differentiable))
            return value, otu.tree_add(differentiable, shift)

        return gradient


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

    H v is taken as (g(w + s v/||v||) - g(w - s v/||v||)) ||v|| / (2 s) on D_h (D_in by default), where the
    displacement s is the smaller of eps^(1/3) (1 + ||w||), which balances truncation against rounding, and
    1 / (6 rho alpha), which is the printed rule delta = 1 / (6 rho alpha ||v||). The printed rule alone leaves
    a bias that more data does not remove; with rho = 0 it sets no limit, and for v = 0 the product is 0.

    Attributes
    ----------
    hessian_lipschitz : rho >= 0, a Lipschitz constant of the Hessian, for the cap; 0 for none
    """

    hessian_lipschitz: float = 0.0

    def inner_gradient(self, objective: Objective, episode: Episode, alpha: Rate) -> InnerGradient:
        largest = jnp.max(jnp.array([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(alpha)]))
        cap = _printed_displacement(self.hessian_lipschitz, largest)
        curvature = episode.support if episode.curvature is None else episode.curvature
        rule = _difference_rule(objective)
        return lambda params: rule(params, episode.support, curvature, cap)


def _printed_displacement(hessian_lipschitz: float, alpha: Scalar) -> Scalar:
    """delta ||v|| of the printed rule, 1 / (6 rho alpha); infinite where the rule sets no limit."""
    product = 6 * hessian_lipschitz * jax.lax.stop_gradient(alpha)
    return jnp.where(product > 0, 1 / jnp.where(product > 0, product, 1), jnp.inf)


def _difference_rule(objective: Objective):
    """A support gradient whose backward pass is two more gradients instead of a Hessian product."""

    @jax.custom_vjp
    def gradient(params: Params, support: Batch, curvature: Batch, cap: Scalar):
        return jax.value_and_grad(objective.on(support))(params)

    def forward(params: Params, support: Batch, curvature: Batch, cap: Scalar):
        return gradient(params, support, curvature, cap), (params, curvature, cap)

    def backward(saved: tuple[Params, Batch, Scalar], cotangent: tuple[Scalar, Params]):
        params, curvature, cap = saved
        product = hessian_product(objective, params, curvature, cotangent[1], cap)
        return product, None, None, None

    gradient.defvjp(forward, backward)
    return gradient


def hessian_product(
    objective: Objective, params: Params, batch: Batch, direction: Params, cap: Scalar
) -> Params:
    """H direction by a central difference of gradients, with displacement at most `cap`."""
    length = otu.tree_norm(direction)
    epsilon = jnp.finfo(length.dtype).eps
    natural = epsilon ** (1 / 3) * (1 + otu.tree_norm(params))
    displacement = jnp.minimum(natural, jnp.asarray(cap, length.dtype))
    scale = jnp.where(length > 0, displacement / jnp.where(length > 0, length, 1), 0)
    gradient = jax.grad(objective.on(batch))
    ahead = gradient(otu.tree_add_scale(params, scale, direction))
    behind = gradient(otu.tree_add_scale(params, -scale, direction))
    return otu.tree_scale(length / (2 * displacement), otu.tree_sub(ahead, behind))
