"""MAML for models with more parameters than examples, in terms of their kernel alone.

Nothing here has an axis of the size of the parameters. The model is f(v) = sum_j k(v, x_j) c_j over
the training examples x_j, where k is the tangent kernel and c the coefficients found here.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import InputError, check_count
from metastep.theory._inputs import (
    as_float_array,
    check_array,
    check_nonnegative,
    check_not_all_zero,
    check_scalar,
    check_symmetric,
    is_concrete,
    to_common_dtype,
)
from metastep.theory.citations import source
from metastep.theory.grams import contract, unit_scale

DEFAULT_RIDGE = 1e-6
"""Ridge on an ill-conditioned Gram matrix, as a fraction of its mean diagonal."""


class SolveStatus(eqx.Enumeration):
    """How the coefficients of least norm were found."""

    exact = "the Gram matrix is well conditioned: no ridge was added"
    regularised = "a ridge was added: directions with smaller eigenvalues are damped"
    ill_conditioned = "too ill-conditioned for the ridge asked for: the coefficients are NaN"


class MinimumNorm(eqx.Module):
    """Coefficients in Gram space and how far to trust them.

    Attributes
    ----------
    coefficients : (examples,) or (examples, outputs), the c in f(v) = k(v, X) c
    ridge : what was added to the diagonal of the matrix that was solved with
    condition_number : of that matrix before the ridge; infinite if an eigenvalue is not positive
    status : a `SolveStatus`; `SolveStatus[result.status]` is its text
    """

    coefficients: Array
    ridge: Array
    condition_number: Array
    status: Any


@source("zou2022", "equations H.9 and H.10 in Gram space, support and query apart", "derived")
def minimum_norm_coefficients(
    gram: ArrayLike,
    labels: ArrayLike,
    alpha: ArrayLike = 0.0,
    *,
    num_query: int = 0,
    ridge: float | None = None,
) -> MinimumNorm:
    """The MAML solution of least norm, as coefficients on the kernel of the training examples.

    With K1 support and `num_query` query examples per task, and block-diagonal
    B_i = [-(2 alpha / K1) k_tu, I],

        c = B^T (B k B^T + ridge I)^-1 B y.

    Adapting and judging on the same examples (`num_query` = 0) the solution is the same for every
    alpha, c = (k + ridge I)^-1 y, and `alpha` is not used.

    Parameters
    ----------
    gram : (n, n) kernel of all examples, n = tasks * examples, task by task, support first
    labels : (tasks, examples) or (tasks, examples, outputs) labels in the same order
    alpha : adaptation rate
    num_query : how many of a task's examples, its last ones, are query examples; 0: all are both
    ridge : added to the diagonal, as a fraction of the mean diagonal of B k B^T; >= 0. By default
        nothing is added up to a condition number of eps^(-2/3), about 3e10 in float64 and 4e4 in
        float32; above it 1e-6, or more where rounding asks for it: 2 eps^(2/3) of the largest
        eigenvalue

    Returns
    -------
    MinimumNorm
        With a `ridge` too small for the precision the status is `ill_conditioned` and the
        coefficients are NaN, never rounding noise.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite, `gram` is not symmetric positive semi-definite,
        or `ridge` is negative.

    References
    ----------
    Derived from Zou et al. (2022), equations H.7 to H.10.
    """
    targets = as_float_array("labels", labels)
    has_outputs = targets.ndim == 3
    axes = ("tasks", "examples", "outputs") if has_outputs else ("tasks", "examples")
    targets = check_array("labels", targets, *axes)
    tasks, examples = targets.shape[:2]
    kernel = check_not_all_zero("gram", check_symmetric("gram", gram, tasks * examples))
    if kernel.ndim != 2:
        raise InputError(f"gram has shape {kernel.shape}; it must be one (n, n) matrix")
    check_count("num_query", num_query, minimum=0)
    if num_query >= examples:
        raise InputError(
            f"num_query is {num_query} of {examples} examples per task; leave some to adapt on"
        )
    amount = None if ridge is None else check_nonnegative("ridge", check_scalar("ridge", ridge))
    targets = targets if has_outputs else targets[..., None]
    kernel, targets, rate = to_common_dtype(kernel, targets, check_scalar("alpha", alpha))
    result, smallest, largest = _least_norm(kernel, targets, rate, num_query, amount)
    _check_semidefinite(smallest, largest, kernel.shape[0])
    if has_outputs:
        return result
    return eqx.tree_at(lambda tree: tree.coefficients, result, result.coefficients[:, 0])


def _check_semidefinite(smallest: Array, largest: Array, size: int) -> None:
    """Raise if an eigenvalue is negative beyond rounding."""
    if is_concrete(smallest):
        rounding = 100 * size * float(np.finfo(smallest.dtype).eps) * abs(float(largest))
        if float(smallest) < -rounding:
            raise InputError(
                f"gram has a negative eigenvalue, {float(smallest):.3g} against "
                f"{float(largest):.3g}; a kernel must be positive semi-definite"
            )


@eqx.filter_jit
def _least_norm(
    kernel: Array, targets: Array, alpha: Array, num_query: int, amount: Array | None
) -> tuple[MinimumNorm, Array, Array]:
    """Solve in the space of query examples and spread the solution over all examples."""
    tasks, examples, outputs = targets.shape
    if num_query == 0:
        solution, *found = _solve(kernel, targets.reshape(-1, outputs), amount)
        coefficients = solution
    else:
        support = examples - num_query
        blocks = kernel.reshape(tasks, examples, tasks, examples)
        own = jnp.diagonal(blocks, axis1=0, axis2=2)  # (examples, examples, tasks)
        cross = 2 * alpha / support * jnp.moveaxis(own[support:, :support], 2, 0)
        left = _adapt(blocks, cross, support)  # B k: (tasks, query, tasks, examples)
        both = _adapt(jnp.moveaxis(left, (2, 3), (0, 1)), cross, support)
        right = _adapt(targets, cross, support).reshape(-1, outputs)
        solution, *found = _solve(both.reshape(right.shape[0], -1), right, amount)
        on_query = solution.reshape(tasks, num_query, outputs)
        on_support = -contract("nqk,nqo->nko", cross, on_query)
        coefficients = jnp.concatenate([on_support, on_query], axis=1).reshape(-1, outputs)
    ridge, condition_number, status, smallest, largest = found
    return MinimumNorm(coefficients, ridge, condition_number, status), smallest, largest


def _adapt(rows: Array, cross: Array, support: int) -> Array:
    """B applied to the first two axes, (tasks, examples): query rows less their adapted share."""
    return rows[:, support:] - jnp.einsum(
        "nqk,nk...->nq...", cross, rows[:, :support], precision="highest"
    )


def _solve(matrix: Array, right: Array, amount: Array | None) -> tuple[Any, ...]:
    """(matrix + ridge I)^-1 right, with the ridge, condition number, status and extreme eigenvalues."""
    matrix = (matrix + matrix.T) / 2
    eps = jnp.finfo(matrix.dtype).eps
    spectrum = jnp.linalg.eigvalsh(jax.lax.stop_gradient(matrix))
    smallest, largest = spectrum[0], spectrum[-1]
    mean_diagonal = jax.lax.stop_gradient(jnp.trace(matrix)) / matrix.shape[0]
    floor = eps ** (2 / 3) * largest  # below it, rounding decides
    if amount is None:
        least = 2 * (floor - jnp.minimum(smallest, 0))  # rounding may leave an eigenvalue below 0
        ridge = jnp.where(smallest > floor, 0, jnp.maximum(DEFAULT_RIDGE * mean_diagonal, least))
    else:
        ridge = amount.astype(matrix.dtype) * mean_diagonal
    safe = smallest + ridge >= floor
    status = SolveStatus.where(ridge > 0, SolveStatus.regularised, SolveStatus.exact)
    status = SolveStatus.where(safe, status, SolveStatus.ill_conditioned)
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    system = jnp.where(safe, matrix + ridge * identity, identity)
    solution = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(system), right)
    positive = smallest > 0
    condition_number = jnp.where(positive, largest / jnp.where(positive, smallest, 1), jnp.inf)
    solution = jnp.where(safe, solution, jnp.nan)
    return solution, ridge, condition_number, status, smallest, largest


@source("zou2022", "the inner step of equation 2.4 in function space", "derived")
def function_space_step(
    values: ArrayLike, cross: ArrayLike, residual: ArrayLike, alpha: ArrayLike
) -> Array:
    """Predictions after one inner step, f'(v) = f(v) - (2 alpha / K) k(v, u) (f(u) - y_u).

    Parameters
    ----------
    values : (tasks, m) or (tasks, m, outputs) predictions f(v) before the step
    cross : (tasks, m, shots) kernel between these points and the support examples
    residual : (tasks, shots) or (tasks, shots, outputs) prediction minus label on the support
    alpha : adaptation rate

    Returns
    -------
    Array of the shape of `values`.

    Raises
    ------
    InputError
        If shapes do not match or a number is not finite.

    References
    ----------
    Derived from Zou et al. (2022), equation 2.4.
    """
    kernel = check_array("cross", cross, "tasks", "m", "shots")
    before = _per_example("values", values, kernel.shape[0], kernel.shape[1])
    error = _per_example("residual", residual, kernel.shape[0], kernel.shape[2])
    if before.shape[2:] != error.shape[2:]:
        raise InputError(
            f"residual has shape {error.shape} and values {before.shape}; their outputs must agree"
        )
    before, kernel, error, rate = to_common_dtype(
        before, kernel, error, check_scalar("alpha", alpha)
    )
    moved = jnp.einsum("nmk,nk...->nm...", kernel, error, precision="highest")
    return before - 2 * rate / kernel.shape[2] * moved


@source("zou2022", "equation H.1 at the current parameters, in Gram space", "derived")
def gram_label_aware_rate(
    cross: ArrayLike, residual: ArrayLike, residual_query: ArrayLike | None = None
) -> Array:
    """`label_aware_rate` from kernels: the exact optimum of the loss after `function_space_step`.

    alpha = (K/2) sum r_t . (k_tu r_u) / sum ||k_tu r_u||^2

    Parameters
    ----------
    cross : (tasks, query shots, shots) kernel between query and support examples
    residual : (tasks, shots) or (tasks, shots, outputs) prediction minus label on the support
    residual_query : (tasks, query shots[, outputs]) on the query; default: the query is the support

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If shapes do not match, a number is not finite, or kernel or residuals are all zero.

    References
    ----------
    Derived from Zou et al. (2022), equation H.1.
    """
    kernel = check_not_all_zero("cross", check_array("cross", cross, "tasks", "query", "shots"))
    tasks, queries, shots = kernel.shape
    error = check_not_all_zero("residual", _per_example("residual", residual, tasks, shots))
    target = error
    if residual_query is not None:
        target = _per_example("residual_query", residual_query, tasks, queries)
    if target.shape != (tasks, queries, *error.shape[2:]):
        raise InputError(
            f"residual_query has shape {target.shape}; with cross of shape {kernel.shape} it must be "
            f"{(tasks, queries, *error.shape[2:])}"
        )
    kernel, error, target = to_common_dtype(kernel, error, target)
    scale, size = unit_scale(kernel), unit_scale(error, target)
    error, target = error / size, target / size
    change = jnp.einsum("nqk,nk...->nq...", kernel / scale, error, precision="highest")
    return shots / 2 * jnp.sum(target * change) / jnp.sum(change**2) / scale


class LossParabola(NamedTuple):
    """The loss of every task after one inner step as a function of alpha: a parabola, exactly.

    Attributes
    ----------
    constant, linear, square : (tasks,) coefficients of 1, alpha and alpha^2
    """

    constant: Array | np.ndarray
    linear: Array | np.ndarray
    square: Array | np.ndarray

    def at(self, alphas: Any) -> Any:
        """The losses at rates of any shape, (tasks, *shape of alphas), in NumPy if the coefficients are."""
        constant, linear, square = (
            part.reshape(part.shape + (1,) * np.ndim(alphas)) for part in self
        )
        return constant + linear * alphas + square * alphas**2


@source("zou2022", "equation 2.5 after one step, in Gram space", "derived")
def gram_loss_parabola(
    cross: ArrayLike, residual: ArrayLike, residual_query: ArrayLike | None = None
) -> LossParabola:
    """The mean squared error of every task after `function_space_step`, for all alpha at once.

    (1/m) ||r_t - (2 alpha / K) k_tu r_u||^2 over the m query examples; `gram_label_aware_rate` is where the
    mean over tasks is least.

    Parameters
    ----------
    cross : (tasks, query shots, shots) kernel between query and support examples
    residual : (tasks, shots) prediction minus label on the support
    residual_query : (tasks, query shots) on the query; default: the query is the support

    Returns
    -------
    LossParabola

    Raises
    ------
    InputError
        If shapes do not match or a number is not finite.

    References
    ----------
    Derived from Zou et al. (2022), equations 2.4 and 2.5.
    """
    kernel = check_array("cross", cross, "tasks", "query", "shots")
    tasks, queries, shots = kernel.shape
    error = check_array("residual", residual, tasks, shots)
    target = residual if residual_query is None else residual_query
    before = check_array("residual_query", target, tasks, queries)
    kernel, error, before = to_common_dtype(kernel, error, before)
    moved = 2 / shots * contract("nqk,nk->nq", kernel, error)
    return LossParabola(
        constant=jnp.mean(before**2, 1),
        linear=-2 * jnp.mean(before * moved, 1),
        square=jnp.mean(moved**2, 1),
    )


def _per_example(name: str, value: ArrayLike, tasks: int, examples: int) -> Array:
    """(tasks, examples) or (tasks, examples, outputs)."""
    array = as_float_array(name, value)
    if array.ndim == 3:
        return check_array(name, array, tasks, examples, "outputs")
    return check_array(name, array, tasks, examples)
