"""When MAML converges near a minimum: its largest adaptation and meta rates (Takagi et al.).

Near a minimum with Hessian H, meta-training is v <- v - beta M(alpha) v, and M depends on what of
MAML is kept:

exact       M = H (I - alpha H)^2    one-step MAML itself; every alpha has a beta that converges
simplified  M = H - alpha H^2        the poster's loss L - (alpha / 2) |g|^2
taylor      M = H - 2 alpha H^2      L - alpha |g|^2, the first order of the MAML loss in alpha

With several tasks that share the minimum, M is the mean over tasks. Losses are (1/2) v' H v here,
so for the mean squared error (1/K) |Phi w - y|^2 the Hessian is (2/K) Phi' Phi.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from metastep._errors import InputError, check_choice
from metastep._types import Loss, Params, Scalar
from metastep.theory._inputs import (
    as_float_array,
    check_covariance,
    check_eigenvalues,
    check_scalar,
    check_symmetric,
)
from metastep.theory.citations import source
from metastep.theory.grams import unit_scale

__all__ = [
    "max_adaptation_rate",
    "max_meta_rate",
    "meta_hessian",
    "negative_gradient_penalty",
    "one_step_loss",
]

MetaForm = Literal["exact", "simplified", "taylor"]

# M(alpha) = H - order * alpha H^2 for the two truncated forms.
_TRUNCATED = {"simplified": 1.0, "taylor": 2.0}
_FORMS = ("exact", *_TRUNCATED)


@source("takagi", "conditions on alpha", "as printed", "form='simplified'")
@source("metastep", "alpha_c of exact and first-order MAML", "derived", "form='exact', 'taylor'")
def max_adaptation_rate(
    eigenvalues: Float[ArrayLike, "..."], form: MetaForm = "simplified"
) -> Scalar:
    """Largest adaptation rate alpha_c at which the minimum stays a minimum of the meta-loss.

        alpha_c = 1 / (order lambda_max),   order = 1 (simplified), 2 (taylor);   infinite (exact)

    Parameters
    ----------
    eigenvalues : (dim,) eigenvalues of the Hessian at the minimum, at least 0; or the Hessian
        itself, (dim, dim); or one Hessian per task, (tasks, dim, dim), whose mean loss is
        meta-trained
    form : "simplified" (the poster's loss), "taylor" or "exact"; see the module's head

    Returns
    -------
    () alpha_c for the loss (1/2) v' H v; infinite when the Hessian is zero or `form` is "exact".
    For several tasks, the largest alpha at which mean(H) - order * alpha * mean(H^2) has no
    negative eigenvalue; only its first derivative is exact.

    Raises
    ------
    InputError
        For a wrong shape, an empty or non-finite array, a negative eigenvalue, or an asymmetric
        Hessian.

    References
    ----------
    Takagi et al., condition for the inner learning rate, as printed for "simplified". The condition
    holds for the simplified loss only: exact MAML has a convergent beta for every alpha
    (docs/errata.md).
    """
    check_choice("form", form, _FORMS)
    spectrum = _spectrum(eigenvalues)
    if form == "exact":
        return jnp.asarray(jnp.inf, spectrum.dtype)
    return _critical_alpha(spectrum, _TRUNCATED[form])


@source("takagi", "conditions on beta", "as printed", "form='simplified'")
@source("metastep", "beta_c of exact MAML, one or several tasks", "derived")
def max_meta_rate(
    eigenvalues: Float[ArrayLike, "..."],
    alpha: Float[ArrayLike, ""],
    form: MetaForm = "exact",
) -> Scalar:
    """Largest meta rate beta_c: meta-training converges locally for 0 < beta < beta_c.

        beta_c = 2 / lambda_max(M(alpha)),   M(alpha) as in the module's head

    Parameters
    ----------
    eigenvalues : (dim,) eigenvalues of the Hessian at the minimum, at least 0; or the Hessian
        itself, (dim, dim); or one Hessian per task, (tasks, dim, dim), whose mean loss is
        meta-trained
    alpha : () adaptation rate for the loss (1/2) v' H v, any sign
    form : "exact" (one-step MAML), "simplified" (the poster's loss) or "taylor"

    Returns
    -------
    () beta_c; 0 when no beta converges (a truncated form beyond its alpha_c), infinite when
    M(alpha) is zero. Directions of zero curvature neither converge nor diverge and are left out, as
    on the poster.

    Raises
    ------
    InputError
        For a wrong shape, an empty or non-finite array, a negative eigenvalue, or an asymmetric
        Hessian.

    References
    ----------
    Takagi et al., condition for the meta-learning rate, as printed for "simplified"; "exact"
    replaces it for MAML proper: lambda (1 - alpha lambda)^2 in place of lambda - alpha lambda^2.
    """
    check_choice("form", form, _FORMS)
    spectrum = _spectrum(eigenvalues)
    rate = check_scalar("alpha", alpha).astype(spectrum.dtype)
    sharpest = _largest(_meta_curvature(spectrum, rate, form))
    # At alpha_c the product alpha * lambda is one only up to rounding.
    rounding = 4 * jnp.finfo(spectrum.dtype).eps * _largest(spectrum)
    is_flat = sharpest <= rounding
    bound = jnp.where(is_flat, jnp.inf, 2 / jnp.where(is_flat, 1, sharpest))
    if form == "exact":
        return bound
    return jnp.where(rate <= _critical_alpha(spectrum, _TRUNCATED[form]), bound, 0)


@source("takagi", "simplified MAML loss, Hessian", "as printed", "form='simplified'")
@source("metastep", "Hessian of the one-step MAML loss at a shared minimum", "derived")
def meta_hessian(
    hessians: Float[ArrayLike, "..."], alpha: Float[ArrayLike, ""], form: MetaForm = "exact"
) -> Float[Array, "dim dim"]:
    """Hessian M(alpha) of the meta-loss at a minimum the tasks share.

        M(alpha) = mean_i H_i (I - alpha H_i)^2      (exact)
        M(alpha) = mean_i H_i - order alpha H_i^2    (order 1: simplified, 2: taylor)

    Parameters
    ----------
    hessians : (dim, dim) or (tasks, dim, dim) symmetric
    alpha : () adaptation rate
    form : "exact", "simplified" or "taylor"

    Returns
    -------
    (dim, dim) Hessian of the mean meta-loss.

    Raises
    ------
    InputError
        For a wrong shape, an empty or non-finite array, or an asymmetric Hessian.

    References
    ----------
    Takagi et al., H - alpha (T g + H^2) with g = 0 at the minimum, as printed for "simplified".
    """
    check_choice("form", form, _FORMS)
    stack = _stack("hessians", as_float_array("hessians", hessians), check_symmetric)
    return _meta_curvature(stack, check_scalar("alpha", alpha).astype(stack.dtype), form)


@source("takagi", "negative gradient penalty", "as printed", "form='simplified'")
@source("metastep", "first-order expansion of the MAML loss", "derived", "form='taylor'")
def negative_gradient_penalty(
    loss: Loss,
    params: Params,
    alpha: Float[ArrayLike, ""],
    form: Literal["simplified", "taylor"] = "taylor",
) -> Scalar:
    """One-step MAML seen as the plain loss with a reward for steep places.

        L(w) - (order alpha / 2) |grad L(w)|^2,   order = 2 (taylor), 1 (simplified)

    Parameters
    ----------
    loss : L, parameters to a scalar
    params : pytree of floating-point arrays, w
    alpha : () adaptation rate
    form : "taylor", the expansion of L(w - alpha grad L(w)) to first order in alpha, or
        "simplified", the poster's penalty, half as strong

    Returns
    -------
    () the penalised loss.

    Raises
    ------
    InputError
        When alpha is not a finite number or `form` is unknown.

    References
    ----------
    Takagi et al., MAML as negative gradient penalty; as printed for "simplified", corrected for
    "taylor".
    """
    check_choice("form", form, tuple(_TRUNCATED))
    value, gradient = jax.value_and_grad(loss)(params)
    squared_norm = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))
    rate = check_scalar("alpha", alpha).astype(value.dtype)
    return value - _TRUNCATED[form] * rate / 2 * squared_norm


@source("finn2017", "meta-objective of one inner step on one batch of data", "as printed")
@source("takagi", "negative gradient penalty", "as printed", "form='simplified'")
@source("metastep", "first-order expansion of the MAML loss", "derived", "form='taylor'")
def one_step_loss(
    loss: Loss, params: Params, alpha: Float[ArrayLike, ""], form: MetaForm = "exact"
) -> Scalar:
    """The loss whose descent `max_meta_rate` speaks of; at a minimum of L its Hessian is M(alpha).

        L(w - alpha grad L(w))   (exact);   `negative_gradient_penalty`   (simplified, taylor)

    Parameters
    ----------
    loss : L, parameters to a scalar
    params : pytree of floating-point arrays, w
    alpha : () adaptation rate, any sign
    form : "exact", "simplified" or "taylor"; see the module's head

    Returns
    -------
    () the loss.

    Raises
    ------
    InputError
        When alpha is not a finite number or `form` is unknown.

    References
    ----------
    Finn et al. (2017), equation 1 with one batch; Takagi et al., MAML as negative gradient penalty.
    """
    check_choice("form", form, _FORMS)
    if form != "exact":
        return negative_gradient_penalty(loss, params, alpha, form)
    rate = check_scalar("alpha", alpha)
    gradient = jax.grad(loss)(params)
    return loss(jax.tree.map(lambda w, g: w - rate.astype(w.dtype) * g, params, gradient))


def _spectrum(eigenvalues: Float[ArrayLike, "..."]) -> Array:
    """Checked eigenvalues (dim,), or Hessians as (tasks, dim, dim)."""
    array = as_float_array("eigenvalues", eigenvalues)
    if array.ndim == 1:
        return check_eigenvalues("eigenvalues", array)
    return _stack("eigenvalues", array, check_covariance)


def _stack(
    name: str, array: Array, check: Callable[[str, Array], Array]
) -> Float[Array, "tasks dim dim"]:
    if array.ndim not in (2, 3) or array.size == 0:
        raise InputError(
            f"{name} has shape {array.shape}; give eigenvalues (dim,), one Hessian (dim, dim) or "
            "one per task (tasks, dim, dim), none of them empty"
        )
    return check(name, array).reshape(-1, *array.shape[-2:])


def _meta_curvature(spectrum: Array, alpha: Scalar, form: MetaForm) -> Array:
    """M(alpha): eigenvalues (dim,) of one task, or (dim, dim) averaged over tasks."""
    if spectrum.ndim == 1:
        if form == "exact":
            return spectrum * (1 - alpha * spectrum) ** 2
        return spectrum - _TRUNCATED[form] * alpha * spectrum**2
    adapted = jnp.eye(spectrum.shape[-1], dtype=spectrum.dtype) - alpha * spectrum
    if form == "exact":
        return jnp.mean(adapted @ spectrum @ adapted, axis=0)
    return jnp.mean(spectrum - _TRUNCATED[form] * alpha * spectrum @ spectrum, axis=0)


def _largest(curvature: Array) -> Scalar:
    """Largest of eigenvalues (dim,), or of the eigenvalues of matrices (..., dim, dim)."""
    return jnp.max(curvature if curvature.ndim == 1 else jnp.linalg.eigvalsh(curvature))


def _critical_alpha(spectrum: Array, order: float) -> Scalar:
    """Largest alpha with mean(H) - order alpha mean(H^2) positive semi-definite."""
    if spectrum.ndim == 1:
        return 1 / (order * jnp.max(spectrum))
    scale = unit_scale(spectrum)  # so that no square leaves the range of float32
    unit = spectrum / scale
    mean, square = jnp.mean(unit, axis=0), jnp.mean(unit @ unit, axis=0)
    direction = _first_to_turn(*jax.lax.stop_gradient((mean, square)))
    # The direction minimises this quotient, so that its own derivative does not enter.
    steepness = order * direction @ square @ direction
    is_flat = steepness == 0
    return jnp.where(
        is_flat, jnp.inf, direction @ mean @ direction / jnp.where(is_flat, 1, steepness) / scale
    )


def _first_to_turn(mean: Array, square: Array) -> Float[Array, " dim"]:
    """The v that minimises v' mean v / v' square v, among those with v' mean v > 0."""
    eigenvalues, vectors = jnp.linalg.eigh(mean)
    rounding = len(eigenvalues) * jnp.finfo(mean.dtype).eps * eigenvalues[-1]
    is_curved = eigenvalues > rounding
    whitening = vectors * jnp.where(is_curved, jnp.where(is_curved, eigenvalues, 1) ** -0.5, 0)
    return whitening @ jnp.linalg.eigh(whitening.T @ square @ whitening)[1][:, -1]
