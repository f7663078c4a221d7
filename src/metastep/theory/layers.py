"""One adaptation rate per layer, or per any other group of features."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import InputError
from metastep.theory._inputs import check_not_all_zero, to_common_dtype
from metastep.theory.citations import source
from metastep.theory.grams import contract, nonzero_features, unit_scale


@source("zou2022", "equation 3.3 with a rate per block of features", "derived")
def layer_rates(blocks: Sequence[ArrayLike]) -> Array:
    """The rates, one per block of features, that are optimal together with infinitely many tasks.

    With k_l = Phi_l Phi_l^T and k = sum_l k_l, they solve A alpha = (K/2) b,

        b_l = E tr(k_l k),   A_lm = E tr(k_l k_m k).

    With a single block this is `limit_rate`.

    Parameters
    ----------
    blocks : one (tasks, shots, dim_l) array per layer; tasks and shots agree, dim_l may differ

    Returns
    -------
    (layers,) rates. Some can be negative. Where layers are linearly dependent, as two copies of one
    are, the solution of least norm is taken, so the copies share the rate.

    Raises
    ------
    InputError
        If there is no block, shapes do not match, a number is not finite or a block is all zero.

    References
    ----------
    Derived from Zou et al. (2022), equation B.6.
    """
    if len(blocks) == 0:
        raise InputError("blocks is empty; give the features of at least one layer")
    features = [nonzero_features(f"blocks[{i}]", block) for i, block in enumerate(blocks)]
    for i, block in enumerate(features):
        if block.shape[:2] != features[0].shape[:2]:
            raise InputError(
                f"blocks[{i}] has shape {block.shape}; its tasks and shots must be those of "
                f"blocks[0], {features[0].shape[:2]}"
            )
    features = to_common_dtype(*features)
    scale = unit_scale(*features)
    kernels = jnp.stack([contract("nkd,nld->nkl", x / scale, x / scale) for x in features])
    total = kernels.sum(axis=0)
    check_not_all_zero("blocks", total)
    moved = contract("akij,kjl->akil", kernels, total)  # k_l k
    right = jnp.sum(kernels * total, axis=(1, 2, 3))
    matrix = contract("akij,bkij->ab", kernels, moved)  # k_a is symmetric
    matrix = (matrix + matrix.T) / 2
    return features[0].shape[1] / 2 * _solve_scaled(matrix, right) / scale**2


def _solve_scaled(matrix: Array, right: Array) -> Array:
    """Solve A x = b for a positive semi-definite A whose rows may differ widely in size."""
    size = jnp.sqrt(jnp.diagonal(matrix))
    size = jnp.where(size > 0, size, 1)
    unit = matrix / jnp.outer(size, size)
    return jnp.linalg.pinv(unit, hermitian=True) @ (right / size) / size
