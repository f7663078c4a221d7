"""Extreme eigenvalues of a curvature that is only known through its products with vectors (Lanczos)."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax.tree_utils as otu
from jaxtyping import Array, Float, PRNGKeyArray
from matfree import decomp

from metastep._errors import InputError, check_count
from metastep._types import Loss, Params

Product = Callable[[Params], Params]
"""v -> A v for a symmetric A: all that is ever known of a curvature."""

LANCZOS_STEPS = 40
"""Products per spectrum: the extreme eigenvalues of a network's curvature have settled long before."""

CONVERGED = 1e-2
"""A residual above this share of the largest absolute eigenvalue is worth a warning."""


class Extremes(eqx.Module):
    """The two ends of a spectrum, and how far to trust them.

    Attributes
    ----------
    largest, smallest : Ritz values, never outside the true spectrum by more than rounding
    largest_residual, smallest_residual : ||A v - theta v|| for the unit Ritz vector v; some eigenvalue of A lies
        within this distance of theta
    """

    largest: Float[Array, "..."]
    smallest: Float[Array, "..."]
    largest_residual: Float[Array, "..."]
    smallest_residual: Float[Array, "..."]

    @property
    def norm(self) -> Float[Array, "..."]:
        """The largest absolute eigenvalue."""
        return jnp.maximum(jnp.abs(self.largest), jnp.abs(self.smallest))

    @property
    def residual(self) -> Float[Array, "..."]:
        """Residual of the largest eigenvalue as a share of `norm`; 0 for a curvature that is all zero."""
        return self.largest_residual / jnp.where(self.norm > 0, self.norm, 1)


def extreme_eigenvalues(
    product: Product, start: Params, iterations: int = LANCZOS_STEPS
) -> Extremes:
    """Largest and smallest eigenvalue of a symmetric operator on a pytree.

    Parameters
    ----------
    product : v -> A v
    start : where the Krylov space begins, not zero; `random_like` for no preference. If it lies in a subspace
        that A maps into itself, such as the head of a model, the spectrum is that of A on this subspace.
    iterations : products with A, at least 1. Memory is that many copies of `start`, never its square.

    Returns
    -------
    `Extremes`; exact, with residuals of the size of rounding, once `iterations` reaches the number of distinct
    eigenvalues. Can be traced, mapped and compiled.

    Raises
    ------
    InputError
        When `iterations` is below 1 or `start` holds no number.
    """
    diagonal, below, tail, _ = tridiagonal(product, start, iterations)
    values, vectors = jnp.linalg.eigh(
        jnp.diag(diagonal) + jnp.diag(below[:-1], 1) + jnp.diag(below[:-1], -1)
    )
    residuals = jnp.abs(jnp.sum(tail[:, None] * vectors, axis=0))
    return Extremes(values[-1], values[0], residuals[-1], residuals[0])


def tridiagonal(
    product: Product, start: Params, iterations: int
) -> tuple[Array, Array, Array, Params]:
    """Lanczos with full reorthogonalisation, A Q = Q T + (rest), that ends cleanly when the space is used up.

    The algorithm is matfree's. What it computes after the Krylov space is exhausted is rounding noise, or NaN:
    those rows of T are cut off and filled with its first Rayleigh quotient, which lies inside the spectrum and
    so changes neither end of it.

    Returns
    -------
    diagonal : (iterations,) of T
    below : (iterations,) its subdiagonal; the last entry belongs to the row that was not computed, and is 0
    tail : (iterations,) such that |tail . s| is the residual of a Ritz pair with eigenvector s of T
    basis : Q, every leaf with the iterations on its first axis; the rows cut off are zero
    """
    check_count("iterations", iterations)
    size = sum(leaf.size for leaf in jax.tree.leaves(start))
    if size == 0:
        raise InputError("start holds no number; there is no curvature to look at")
    steps = min(int(iterations), size)
    lanczos = decomp.hessenberg(steps, reortho="full", custom_vjp=False)
    found = lanczos(product, start)
    small = jnp.asarray(found.J_small)
    diagonal = jnp.diagonal(small)
    norms = jnp.concatenate([jnp.diagonal(small, -1), otu.tree_norm(found.residual)[None]])
    scale = jax.lax.cummax(jnp.maximum(jnp.abs(diagonal), norms))
    goes_on = norms > 100 * jnp.finfo(norms.dtype).eps * scale
    used = jnp.concatenate([jnp.ones(1, bool), jnp.cumprod(goes_on[:-1]).astype(bool)])
    last = jnp.arange(steps) == jnp.sum(used) - 1
    return (
        jnp.where(used, diagonal, diagonal[0]),
        jnp.where(used & goes_on & ~last, norms, 0),
        jnp.where(last, norms, 0),
        jax.tree.map(lambda rows: _only(used, rows), found.Q_tall),
    )


def _only(used: Array, rows: Array) -> Array:
    return jnp.where(used.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0)


def random_like(params: Params, key: PRNGKeyArray) -> Params:
    """Standard normal numbers in the shape and dtypes of a pytree."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(
        structure,
        [
            jax.random.normal(k, leaf.shape, leaf.dtype)
            for k, leaf in zip(keys, leaves, strict=False)
        ],
    )


def hessian_product(loss: Loss, params: Params, vector: Params) -> Params:
    """H vector, with H the Hessian of `loss` at `params`: forward over reverse, no matrix."""
    return jax.jvp(jax.grad(loss), (params,), (vector,))[1]
