"""Gram matrices of tasks and the traces of their powers, which every formula here is made of.

For features Phi (shots x dim) the traces of G = Phi^T Phi and of k = Phi Phi^T agree, so the
smaller of the two is formed; which one that is depends on shapes alone. Before sixth powers are
taken, features are divided by their largest entry: float32 would overflow or vanish otherwise.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep.theory._inputs import check_features, check_not_all_zero
from metastep.theory.citations import source

contract = partial(jnp.einsum, precision="highest")
"""einsum without the reduced precision that accelerators would otherwise use for float32."""


class GramMoments(NamedTuple):
    """Expected traces of the powers of a task's Gram matrix, p_j = E tr G^j.

    Attributes
    ----------
    p1, p2, p3 : scalars
    """

    p1: Array
    p2: Array
    p3: Array


@jax.jit
def unit_scale(*arrays: Array) -> Array:
    """The largest magnitude among all entries, or 1 if all are zero; not differentiated."""
    largest = jnp.stack([jnp.max(jnp.abs(array)) for array in arrays]).max()
    return jax.lax.stop_gradient(jnp.where(largest > 0, largest, jnp.ones_like(largest)))


@jax.jit
def small_gram(phi: Array) -> Array:
    """Phi Phi^T or Phi^T Phi per task, whichever is smaller: (tasks, m, m), m = min(shots, dim)."""
    shots, dim = phi.shape[-2:]
    pattern = "nkd,nld->nkl" if shots <= dim else "nkd,nke->nde"
    return contract(pattern, phi, phi)


@jax.jit
def mean_trace_powers(gram: Array) -> GramMoments:
    """Means over tasks of tr k, tr k^2 = ||k||_F^2 and tr k^3 = <k k, k>."""
    p1 = jnp.trace(gram, axis1=-2, axis2=-1)
    p2 = jnp.sum(gram * gram, axis=(-2, -1))
    p3 = jnp.sum(contract("nij,njk->nik", gram, gram) * gram, axis=(-2, -1))
    return GramMoments(p1.mean(), p2.mean(), p3.mean())


@source("zou2022", "traces in equation 3.3", "derived")
def gram_moments(phi: ArrayLike) -> GramMoments:
    """Sample means of the traces of the powers of the tasks' Gram matrices.

    p_j = (1/N) sum_i tr (Phi_i^T Phi_i)^j,   j = 1, 2, 3.

    Parameters
    ----------
    phi : (tasks, shots, dim) features

    Returns
    -------
    GramMoments
        Three scalars. They grow as the second, fourth and sixth power of the features, so very
        large or small float32 features overflow here; `limit_rate` and its kin rescale first.

    Raises
    ------
    InputError
        If `phi` has another rank, is empty or not finite.

    References
    ----------
    Zou et al. (2022), equation 3.3.
    """
    return mean_trace_powers(small_gram(check_features("phi", phi)))


@source("zou2022", "spectra of the Gram matrices in Assumption 2", "derived")
def gram_eigenvalues(phi: ArrayLike) -> Array:
    """Eigenvalues of every task's smaller Gram matrix: what the multi-step rates are computed from.

    Parameters
    ----------
    phi : (tasks, shots, dim) features

    Returns
    -------
    (tasks, min(shots, dim)) array, ascending in every row, rounding below zero cut off. If shots <
    dim, the dim - shots further eigenvalues of Phi^T Phi are zero and are left out.

    Raises
    ------
    InputError
        If `phi` has another rank, is empty or not finite.

    References
    ----------
    Zou et al. (2022), Assumption 2.
    """
    return jnp.maximum(jnp.linalg.eigvalsh(small_gram(check_features("phi", phi))), 0)


def nonzero_features(name: str, phi: Any) -> Array:
    """Checked features that are not all zero, as every ratio of traces needs."""
    return check_not_all_zero(name, check_features(name, phi))


@jax.jit
def adapted_features(phi: Array, step: Array, phi_query: Array | None = None) -> Array:
    """C = Phi_t (I - step G_u), the features after one inner step; step = 2 alpha / shots."""
    query = phi if phi_query is None else phi_query
    return query - step * second_features(phi, query)


@jax.jit
def second_features(phi: Array, query: Array) -> Array:
    """Phi_t G_u = k_tu Phi_u per task, through the smaller product: (tasks, query shots, dim)."""
    if max(phi.shape[1], query.shape[1]) <= phi.shape[2]:
        return contract("nqk,nkd->nqd", contract("nqd,nkd->nqk", query, phi), phi)
    return contract("nqd,nde->nqe", query, contract("nkd,nke->nde", phi, phi))


@jax.jit
def gram_power_sums(phi: Array) -> Array:
    """S_j = sum_i G_i^j for j = 1..6, without a (tasks, dim, dim) array: (6, dim, dim)."""
    powers = [phi]  # A_j = Phi G^j; then S_(i+j+1) = sum A_i^T A_j
    for _ in range(3):
        powers.append(second_features(phi, powers[-1]))
    pairs = [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3)]
    return jnp.stack([contract("nkd,nke->de", powers[i], powers[j]) for i, j in pairs])
