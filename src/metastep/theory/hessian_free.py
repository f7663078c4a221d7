"""Finite-difference steps of Hessian-free MAML (Fallah et al.), and what they cost in accuracy."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from metastep.theory._inputs import check_nonnegative, check_positive_values, to_common_dtype
from metastep.theory.citations import source

__all__ = ["hessian_free_delta", "hessian_free_step", "hessian_vector_error_bound"]

Number = Float[ArrayLike, ""]


@source("fallah2020", "delta of HF-MAML", "as printed", "an upper limit, not a good choice")
def hessian_free_delta(
    gradient_norm: Float[ArrayLike, "..."],
    *,
    alpha: Number,
    hessian_lipschitz: Number,
    default: float = 1e-3,
) -> Float[Array, "..."]:
    """Largest finite-difference step the theorem for HF-MAML allows.

        delta = 1 / (6 rho alpha |g|)

    The parameters move by delta |g| = 1/(6 rho alpha) whatever g is, so with this rule HF-MAML
    keeps a bias that no batch size removes. Train with `hessian_free_step`, which takes the rule as
    a cap.

    Parameters
    ----------
    gradient_norm : (...) norm of the outer gradient g
    alpha : adaptation rate >= 0
    hessian_lipschitz : rho >= 0
    default : delta where the rule is undefined, that is where rho, alpha or |g| is 0

    Returns
    -------
    (...) delta.

    Raises
    ------
    InputError
        For negative or non-finite arguments.

    References
    ----------
    Fallah et al. (2020), theorem for HF-MAML, as printed.
    """
    norm, rate, lipschitz, fallback = to_common_dtype(
        check_nonnegative("gradient_norm", gradient_norm),
        check_nonnegative("alpha", alpha),
        check_nonnegative("hessian_lipschitz", hessian_lipschitz),
        check_positive_values("default", default),
    )
    product = 6 * lipschitz * rate * norm
    is_defined = product > 0
    return jnp.where(is_defined, 1 / jnp.where(is_defined, product, 1), fallback)


@source("metastep", "finite-difference step of HF-MAML", "derived")
def hessian_free_step(
    gradient_norm: Float[ArrayLike, "..."],
    *,
    alpha: Number,
    hessian_lipschitz: Number,
    scale: Number = 1.0,
) -> Float[Array, "..."]:
    """Finite-difference step for HF-MAML that balances truncation and rounding, capped by the
    theorem.

        delta = min(1 / (6 rho alpha |g|), eps^(1/3) scale / |g|)

    Parameters
    ----------
    gradient_norm : (...) norm of the outer gradient g
    alpha : adaptation rate >= 0
    hessian_lipschitz : rho >= 0
    scale : distance over which the gradient changes noticeably, > 0; 1 suits parameters of order 1

    Returns
    -------
    (...) delta; eps is the rounding unit of its type. eps^(1/3) scale where |g| is 0.

    Raises
    ------
    InputError
        For negative or non-finite arguments or a scale that is not positive.

    References
    ----------
    Derived here: central differences err by rho delta |g|^2 / 2 and round off by eps / (delta |g|).
    """
    norm, length = to_common_dtype(
        check_nonnegative("gradient_norm", gradient_norm), check_positive_values("scale", scale)
    )
    is_moving = norm > 0
    balanced = jnp.finfo(norm.dtype).eps ** (1 / 3) * length / jnp.where(is_moving, norm, 1)
    limit = hessian_free_delta(norm, alpha=alpha, hessian_lipschitz=hessian_lipschitz, default=1.0)
    rule = limit.astype(norm.dtype)
    product = jnp.asarray(alpha, norm.dtype) * jnp.asarray(hessian_lipschitz, norm.dtype) * norm
    return jnp.where(product > 0, jnp.minimum(rule, balanced), balanced)


@source("fallah2020", "error of the central difference", "corrected", "half the printed bound")
def hessian_vector_error_bound(
    delta: Float[ArrayLike, "..."], vector_norm: Float[ArrayLike, "..."], hessian_lipschitz: Number
) -> Float[Array, "..."]:
    """Bound on the error of a Hessian-vector product by central differences.

        |[grad f(w + delta v) - grad f(w - delta v)] / (2 delta) - H v| <= rho delta |v|^2 / 2

    Parameters
    ----------
    delta : (...) finite-difference step >= 0
    vector_norm : (...) |v| >= 0
    hessian_lipschitz : rho >= 0

    Returns
    -------
    (...) the bound.

    Raises
    ------
    InputError
        For negative or non-finite arguments.

    References
    ----------
    Fallah et al. (2020), before HF-MAML; the printed rho delta |v|^2 is valid but twice as large.
    """
    step, norm, lipschitz = to_common_dtype(
        check_nonnegative("delta", delta),
        check_nonnegative("vector_norm", vector_norm),
        check_nonnegative("hessian_lipschitz", hessian_lipschitz),
    )
    return lipschitz * step * norm**2 / 2
