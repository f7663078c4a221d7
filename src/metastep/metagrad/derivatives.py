"""Three ways to differentiate an inner gradient: the same numbers, at different costs in time and memory.

Reverse-mode differentiation through k inner steps keeps what each step computed on its way: activations, k times.
With g(w) the inner gradient and v a cotangent, all that the way back needs of a step is H(w) v, which can be had
from w alone: by computing the step again, or, because H is symmetric, as the derivative of g along v.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import optax.tree_utils as otu
from jax.custom_derivatives import SymbolicZero

from metastep._errors import InputError
from metastep._types import Batch, Params, Scalar
from metastep.adapt import InnerGradient
from metastep.models import Objective

Derivative = Literal["plain", "checkpointed", "forward"]
DERIVATIVES: tuple[Derivative, ...] = get_args(Derivative)
"""From the one that is usually fastest to the leanest: plain, checkpointed, forward."""


def support_gradient(
    objective: Objective, support: Batch, curvature: Batch | None, derivative: Derivative = "plain"
) -> InnerGradient:
    """params -> (support loss, support gradient), differentiable once more in the way that is asked for.

    Parameters
    ----------
    objective : the loss
    support : D_in, which value and gradient are taken on
    curvature : D_h, which the Hessian is taken on; None for D_in
    derivative : "plain" keeps all intermediate values of every inner step until the way back. "checkpointed" keeps
        the parameters of each step and computes the rest again, one step at a time. "forward" keeps the parameters
        too, and takes the product with the Hessian in forward mode over the gradient, so that not even one step's
        second-order intermediates are ever held at once. It knows derivatives with respect to parameters alone.

    Raises
    ------
    InputError
        While tracing, when "forward" is differentiated with respect to the data: it has no such derivative.
    """
    if derivative == "forward":
        rule = _forward_rule(objective)
        return lambda params: rule(params, support, support if curvature is None else curvature)
    gradient = _reverse_rule(objective, support, curvature)
    return jax.checkpoint(gradient) if derivative == "checkpointed" else gradient


def _reverse_rule(objective: Objective, support: Batch, curvature: Batch | None) -> InnerGradient:
    on_support = jax.value_and_grad(objective.on(support))
    if curvature is None:
        return on_support
    on_curvature = jax.grad(objective.on(curvature))

    def gradient(params: Params) -> tuple[Scalar, Params]:
        value, wanted = on_support(params)
        differentiable = on_curvature(params)
        # The value of one gradient, the derivative of the other.
        shift = jax.lax.stop_gradient(otu.tree_sub(wanted, differentiable))
        return value, otu.tree_add(differentiable, shift)

    return gradient


def _forward_rule(objective: Objective) -> Callable[[Params, Batch, Batch], tuple[Scalar, Params]]:
    """The gradient on D_in, whose backward pass is a Jacobian-vector product of the gradient on D_h."""

    @jax.custom_vjp
    def gradient(params: Params, support: Batch, curvature: Batch) -> tuple[Scalar, Params]:
        return jax.value_and_grad(objective.on(support))(params)

    def ahead(params: Any, support: Any, curvature: Any):
        if any(
            leaf.perturbed for leaf in jax.tree.leaves((support, curvature), is_leaf=_is_primal)
        ):
            raise InputError(
                "derivative 'forward' gives no gradient with respect to the data or features it is handed; use "
                "'checkpointed', which is as lean in the number of inner steps, or 'plain'"
            )
        values = _values((params, support, curvature))
        result = gradient(*values)
        return result, (*values, result[1])

    def back(saved: tuple[Params, Batch, Batch, Params], cotangents: tuple[Any, Params]):
        params, _, curvature, slope = saved
        of_value, direction = cotangents
        direction = jax.tree.map(_instantiated, direction, params, is_leaf=_is_zero)
        _, product = jax.jvp(jax.grad(objective.on(curvature)), (params,), (direction,))
        if not _is_zero(of_value):  # the loss itself was used, not only its gradient
            product = jax.tree.map(lambda h, g: h + of_value.astype(g.dtype) * g, product, slope)
        return product, None, None

    gradient.defvjp(ahead, back, symbolic_zeros=True)
    return gradient


def _is_primal(leaf: Any) -> bool:
    return hasattr(leaf, "perturbed")


def _is_zero(leaf: Any) -> bool:
    return isinstance(leaf, SymbolicZero)


def _values(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.value, tree, is_leaf=_is_primal)


def _instantiated(cotangent: Any, like: Any) -> Any:
    return jax.numpy.zeros_like(like) if _is_zero(cotangent) else cotangent
