"""Rates for several inner steps: one that serves all of them, or one for each.

After m steps with rates alpha_s, the limit risk is E sum_l l prod_s (1 - 2 alpha_s l / K)^2 over
the eigenvalues l of the tasks' Gram matrices, which `gram_eigenvalues` gives.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import check_count
from metastep.theory._inputs import check_eigenvalues
from metastep.theory.citations import source
from metastep.theory.grams import unit_scale

_BISECTIONS = 70  # from any bracket below 2^17 times the root down to the rounding of float64


@source("zou2022", "equation 3.3 for several steps with one rate", "derived")
def multi_step_rate(eigenvalues: ArrayLike, shots: int, steps: int) -> Array:
    """The one rate that is best for `steps` inner steps in the limit of many tasks.

    argmin over alpha of   sum_l l (1 - 2 alpha l / K)^(2 steps),

    a convex problem; for one step it is `limit_rate`.

    Parameters
    ----------
    eigenvalues : any shape, >= 0: the spectra of all tasks' Gram matrices, see `gram_eigenvalues`
    shots : examples per task, K
    steps : inner steps, >= 1

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If an eigenvalue is negative or not finite, all are zero, or a count is below 1.

    References
    ----------
    Derived from Zou et al. (2022), equation B.6.
    """
    check_count("shots", shots)
    check_count("steps", steps)
    spectrum = check_eigenvalues("eigenvalues", eigenvalues).ravel()
    scale = unit_scale(spectrum)
    return shots / 2 * _best_single_step(spectrum / scale, steps) / scale


@partial(jax.jit, static_argnames="steps")
def _best_single_step(unit: Array, steps: int) -> Array:
    """argmin over step of sum l (1 - step l)^(2 steps), for eigenvalues up to 1."""

    def slope(step: Array) -> Array:  # of the risk, up to a negative factor: falls through its root
        factors = 1 - step * unit
        largest = unit_scale(factors)  # keeps high powers within the range of floats
        return jnp.sum(unit**2 * (factors / largest) ** (2 * steps - 1))

    return jax.lax.custom_root(
        slope,
        jnp.ones((), unit.dtype),
        _bisect,
        lambda linear, rhs: rhs / linear(jnp.ones_like(rhs)),
    )


def _bisect(function, start: Array) -> Array:
    """The root of a falling function that is not negative at `start`."""
    upper = jax.lax.while_loop(lambda x: function(x) > 0, lambda x: 2 * x, 2 * start)

    def halve(_, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) / 2
        below = function(middle) > 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (start, upper))
    return (low + high) / 2


@source("zou2022", "equation 3.3 for several steps with a rate each", "derived")
def step_schedule(eigenvalues: ArrayLike, shots: int, steps: int) -> Array:
    """The best rate for each of `steps` inner steps: the Gauss quadrature nodes of the spectrum.

    alpha_s = K / (2 r_s), with r_s the nodes of the Gauss rule with `steps` nodes for the measure
    l^2 d mu(l), mu the spectral measure of the tasks' Gram matrices. For one step it is
    `limit_rate`.

    Parameters
    ----------
    eigenvalues : any shape, >= 0: the spectra of all tasks' Gram matrices, see `gram_eigenvalues`
    shots : examples per task, K
    steps : inner steps, >= 1

    Returns
    -------
    (steps,) rates. Any order gives the same result; ascending rates, as returned, damp the large
    eigenvalues before the large rates would amplify them. With more steps than distinct
    eigenvalues, the risk is zero before the last step; the steps that are left have rate 0.

    Raises
    ------
    InputError
        If an eigenvalue is negative or not finite, all are zero, or a count is below 1.

    References
    ----------
    Derived from Zou et al. (2022), equation B.6; nodes by Golub and Welsch from Lanczos.
    """
    check_count("shots", shots)
    check_count("steps", steps)
    spectrum = check_eigenvalues("eigenvalues", eigenvalues).ravel()
    scale = unit_scale(spectrum)
    jacobi, num_nodes = _jacobi_matrix(spectrum / scale, steps)
    nodes = jnp.linalg.eigvalsh(jacobi)[::-1]  # descending; those past num_nodes are spare
    used = jnp.arange(steps) < num_nodes
    return jnp.where(used, shots / 2 / jnp.where(used, nodes, 1) / scale, 0)


@partial(jax.jit, static_argnames="size")
def _jacobi_matrix(spectrum: Array, size: int) -> tuple[Array, Array]:
    """Lanczos on diag(l) from a vector along l: the Jacobi matrix of l^2 d mu, and its rank.

    Lanczos ends early when the distinct eigenvalues are used up; the rest of the matrix is zero.
    """
    tolerance = 100 * jnp.finfo(spectrum.dtype).eps
    vector = spectrum / jnp.linalg.norm(spectrum)
    basis, diagonal, below = [vector], [], []
    for _ in range(size):
        image = spectrum * basis[-1]
        diagonal.append(jnp.sum(basis[-1] * image))
        known = jnp.stack(basis)
        for _ in range(2):  # orthogonal to working precision only the second time
            image = image - jnp.sum(known * jnp.sum(known * image, axis=1)[:, None], axis=0)
        square = jnp.sum(image * image)
        goes_on = square > tolerance**2
        norm = jnp.where(goes_on, jnp.sqrt(jnp.where(goes_on, square, 1)), 0)
        basis.append(jnp.where(goes_on, image / jnp.where(goes_on, norm, 1), 0))
        below.append(norm)
    beside = jnp.stack(below[:-1]) if size > 1 else jnp.zeros(0, spectrum.dtype)
    jacobi = jnp.diag(jnp.stack(diagonal)) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    return jacobi, 1 + jnp.sum(beside > 0)
