"""Where MAML and first-order MAML come to rest on quadratic tasks."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from metastep._errors import check_choice
from metastep.theory._inputs import check_array, check_scalar, check_symmetric, to_common_dtype
from metastep.theory.citations import source

__all__ = ["quadratic_fixed_point", "quadratic_meta_gradient"]

Algorithm = Literal["maml", "fomaml", "hfmaml"]

# How often I - alpha A multiplies A; the central differences of HF-MAML are exact on quadratics.
_POWERS = {"maml": 2, "hfmaml": 2, "fomaml": 1}


@source("metastep", "fixed points of MAML, FO-MAML and HF-MAML on quadratics", "derived")
def quadratic_fixed_point(
    algorithm: Algorithm,
    hessians: Float[ArrayLike, "tasks dim dim"],
    minimisers: Float[ArrayLike, "tasks dim"],
    alpha: Float[ArrayLike, ""],
) -> Float[Array, " dim"]:
    """Where the expected direction of the algorithm vanishes on quadratic tasks.

        f_i(w) = (1/2) (w - c_i)' A_i (w - c_i)
        w* = (sum_i B_i)^-1 sum_i B_i c_i,   B_i = A_i (I - alpha A_i)^2   (maml, hfmaml)
                                             B_i = A_i (I - alpha A_i)     (fomaml)

    Parameters
    ----------
    algorithm : "maml", "fomaml" or "hfmaml"
    hessians : (tasks, dim, dim) symmetric A_i
    minimisers : (tasks, dim) c_i
    alpha : () adaptation rate for the loss with the factor 1/2

    Returns
    -------
    (dim,) w*; not finite when sum_i B_i is singular.

    Raises
    ------
    InputError
        For shapes that do not match, no task, non-finite entries, asymmetric Hessians or an unknown
        algorithm.

    References
    ----------
    Derived here from the updates in Fallah et al. (2020). The two differ at order alpha, which is
    why first-order MAML keeps an error floor that no batch size removes.
    """
    curvatures, centers = _adapted_curvatures(algorithm, hessians, minimisers, alpha)
    return jnp.linalg.solve(
        jnp.sum(curvatures, axis=0), jnp.einsum("tij,tj->i", curvatures, centers)
    )


@source("fallah2020", "gradient of F and expected FO-MAML direction on quadratics", "derived")
def quadratic_meta_gradient(
    algorithm: Algorithm,
    params: Float[ArrayLike, " dim"],
    hessians: Float[ArrayLike, "tasks dim dim"],
    minimisers: Float[ArrayLike, "tasks dim"],
    alpha: Float[ArrayLike, ""],
) -> Float[Array, " dim"]:
    """Expected direction of the algorithm on quadratics; for "maml" the exact gradient of F.

        mean_i B_i (w - c_i),   B_i as for `quadratic_fixed_point`

    Parameters
    ----------
    algorithm : "maml", "fomaml" or "hfmaml"
    params : (dim,) w
    hessians : (tasks, dim, dim) symmetric A_i
    minimisers : (tasks, dim) c_i
    alpha : () adaptation rate for the loss with the factor 1/2

    Returns
    -------
    (dim,) direction.

    Raises
    ------
    InputError
        For shapes that do not match, no task, non-finite entries, asymmetric Hessians or an unknown
        algorithm.

    References
    ----------
    Fallah et al. (2020), updates of MAML, FO-MAML and HF-MAML without sampling noise.
    """
    curvatures, centers = _adapted_curvatures(algorithm, hessians, minimisers, alpha)
    weights = check_array("params", params, centers.shape[1]).astype(centers.dtype)
    return jnp.einsum("tij,tj->i", curvatures, weights - centers) / len(centers)


def _adapted_curvatures(
    algorithm: Algorithm,
    hessians: Float[ArrayLike, "tasks dim dim"],
    minimisers: Float[ArrayLike, "tasks dim"],
    alpha: Float[ArrayLike, ""],
) -> tuple[Float[Array, "tasks dim dim"], Float[Array, "tasks dim"]]:
    """B_i of every task, and the checked minimisers."""
    check_choice("algorithm", algorithm, _POWERS)
    matrices = check_array("hessians", hessians, "tasks", "dim", "dim")
    check_symmetric("hessians", matrices)
    centers = check_array("minimisers", minimisers, *matrices.shape[:2])
    matrices, centers, rate = to_common_dtype(matrices, centers, check_scalar("alpha", alpha))
    shrinkage = jnp.eye(matrices.shape[-1], dtype=matrices.dtype) - rate * matrices
    for _ in range(_POWERS[algorithm]):
        matrices = matrices @ shrinkage
    return matrices, centers
