"""Which adaptation rate alpha a sample of tasks asks for: the estimators to use.

All are for the mean squared error (1/K) ||Phi w - y||^2, whose inner step is
w' = w - (2 alpha / K) Phi^T (Phi w - y). With 1/(2K) instead, the rate is twice as large.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from metastep._errors import InputError, check_count
from metastep.theory._inputs import (
    as_float_array,
    check_array,
    check_covariance,
    check_nonnegative,
    check_not_all_zero,
    check_query_features,
    check_scalar,
    check_symmetric,
    is_concrete,
    to_common_dtype,
)
from metastep.theory.citations import source
from metastep.theory.grams import contract, nonzero_features, unit_scale
from metastep.theory.minimisers import root_weights


@source("zou2022", "equation 3.3", "as printed")
@source("zou2022", "equations H.1 and H.6 (support and query apart)", "as printed")
@source(
    "zou2022", "equation 3.3 for Cov(a) other than a multiple of I, and noisy labels", "derived"
)
def limit_rate(
    phi: ArrayLike,
    phi_query: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
    task_cov: ArrayLike | None = None,
    noise_var: ArrayLike = 0.0,
    task_var: ArrayLike = 1.0,
) -> Array:
    """The adaptation rate that is optimal with infinitely many tasks, alpha_lim.

    Adapting and judging on the same examples, with S = task_var * task_cov = Cov(a) and labels
    Phi a + noise of variance s2,

        alpha = (K/2) [tr(E G^2 S) + s2 tr E G] / [tr(E G^3 S) + s2 tr E G^2],

    and on separate ones, G_u from the k1 support examples and G_t from the query examples,

        alpha = (k1/2) tr E[S G_t G_u] / [tr E[S G_u G_t G_u] + s2 tr E[G_t G_u]].

    The expectations are means over the tasks given: a ratio of means, not a mean of ratios.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the support examples
    phi_query : (tasks, query shots, dim) features of separate query examples, or None
    weights : (tasks,) weights >= 0 of the means over tasks, default all 1
    task_cov : (dim, dim) covariance of the task optima; default the identity
    noise_var : variance of the label noise, >= 0
    task_var : factor on `task_cov`, >= 0; it matters only relative to `noise_var`

    Returns
    -------
    Scalar in units of 1 / feature^2: features times c give the rate divided by c^2.

    Raises
    ------
    InputError
        If an argument has the wrong shape, is not finite, a weight or variance is negative, `task_cov`
        is not a covariance, the features or weights are all zero, or both variances are.

    References
    ----------
    Zou et al. (2022), equation 3.3 and, with `phi_query`, H.1 and H.6, as printed; the forms with
    weights, a covariance or noise are derived from the same risk.
    """
    support = nonzero_features("phi", phi)
    query = None
    if phi_query is not None:
        query = check_query_features("phi_query", phi_query, support)
        check_not_all_zero("phi_query", query)
    cov = None
    if task_cov is not None:
        cov = check_not_all_zero(
            "task_cov", check_covariance("task_cov", task_cov, support.shape[2])
        )
    noise = check_nonnegative("noise_var", check_scalar("noise_var", noise_var))
    variance = check_nonnegative("task_var", check_scalar("task_var", task_var))
    support, query, cov, noise, variance = to_common_dtype(support, query, cov, noise, variance)
    if is_concrete(noise) and is_concrete(variance) and not (noise > 0 or variance > 0):
        raise InputError("task_var and noise_var are both 0, which leaves the rate undefined")
    root = None if weights is None else root_weights(weights, support)[0]
    scale = unit_scale(support)
    step = _optimal_step(support / scale, query, root, cov, noise / scale**2, variance)
    return support.shape[1] / 2 * step / scale**2


@jax.jit
def _optimal_step(
    phi: Array,
    query: Array | None,
    root: Array | None,
    cov: Array | None,
    noise: Array,
    variance: Array,
) -> Array:
    """The minimiser of the limit risk over step = 2 alpha / shots; `root` of the weights, (tasks, 1)."""
    tied = query is None
    target = phi if tied else query / unit_scale(query)  # its scale cancels
    if root is not None:  # every trace is linear in G_t, so that its factor is the task's weight
        target = root[:, :, None] * target
    first, second, noise_second, noise_first = _risk_traces(phi, target, cov)
    numerator = variance * first + (noise * noise_first if tied else 0)
    return numerator / (variance * second + noise * noise_second)


@jax.jit
def _risk_traces(phi: Array, query: Array, cov: Array | None) -> tuple[Array, ...]:
    """Means of tr S Gt Gu, tr S Gu Gt Gu, tr Gt Gu and tr Gt, in samples or in features."""
    last = jnp.sum(query * query)
    if max(phi.shape[1], query.shape[1]) <= phi.shape[2]:
        spread = phi if cov is None else contract("nkd,de->nke", phi, cov)
        cross = contract("nqd,nkd->nqk", query, phi)
        cross_spread = cross if cov is None else contract("nqd,nkd->nqk", query, spread)
        within = contract("nkd,nld->nkl", phi, spread)
        first = jnp.sum(cross * cross_spread)
        second = jnp.sum(contract("nqk,nkl->nql", cross, within) * cross)
        traces = (first, second, jnp.sum(cross * cross), last)
    else:
        gram = contract("nkd,nke->nde", phi, phi)
        gram_query = contract("nkd,nke->nde", query, query)
        product = contract("nde,nef->ndf", gram_query, gram)
        inner = contract("nde,nef->ndf", gram, product)
        plain = jnp.sum(gram_query * gram)
        if cov is None:
            traces = (plain, jnp.trace(inner.sum(0)), plain, last)
        else:
            traces = (jnp.sum(product * cov), jnp.sum(inner * cov), plain, last)
    return tuple(trace / phi.shape[0] for trace in traces)


@source("zou2022", "equations 3.3 and H.1 at the current parameters", "derived")
def label_aware_rate(
    phi: ArrayLike,
    residual: ArrayLike,
    phi_query: ArrayLike | None = None,
    residual_query: ArrayLike | None = None,
) -> Array:
    """The rate of the best single inner step from where the parameters are now.

    With residuals r = Phi w - y at the current w and k = Phi Phi^T,

        alpha = (K/2) sum r^T k r / sum ||k r||^2,

    and with separate query examples, k_tu = Phi_t Phi_u^T,

        alpha = (k1/2) sum r_t . (k_tu r_u) / sum ||k_tu r_u||^2.

    This minimises the mean loss after one step exactly; unlike `limit_rate` it needs no assumption
    on the optima or the labels. No Gram matrix is formed.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the support examples
    residual : (tasks, shots) or (tasks, shots, outputs) prediction minus label on them
    phi_query : (tasks, query shots, dim) features of separate query examples, or None
    residual_query : (tasks, query shots) or (tasks, query shots, outputs), with `phi_query`

    Returns
    -------
    Scalar. Positive without a query set; with one it can be negative.

    Raises
    ------
    InputError
        If shapes do not match, numbers are not finite, features or residuals are all zero, or only
        one of `phi_query` and `residual_query` is given.

    References
    ----------
    Derived from the risk behind Zou et al. (2022), equations 3.3 and H.1.
    """
    support = nonzero_features("phi", phi)
    error = check_not_all_zero("residual", _check_residual("residual", residual, support))
    if (phi_query is None) != (residual_query is None):
        missing = "phi_query" if phi_query is None else "residual_query"
        raise InputError(
            f"{missing} is None; give phi_query and residual_query together, or neither"
        )
    query, query_error = support, error
    if phi_query is not None:
        query = check_query_features("phi_query", phi_query, support)
        check_not_all_zero("phi_query", query)
        query_error = _check_residual("residual_query", residual_query, query)
        if query_error.shape[2] != error.shape[2]:
            raise InputError(
                f"residual_query has {query_error.shape[2]} outputs; residual has {error.shape[2]}"
            )
    support, error, query, query_error = to_common_dtype(support, error, query, query_error)
    scale, query_scale = unit_scale(support), unit_scale(query)
    size = unit_scale(error, query_error)
    error, query_error = error / size, query_error / size
    gradient = contract("nkd,nko->ndo", support / scale, error)
    change = contract("nqd,ndo->nqo", query / query_scale, gradient)
    step = jnp.sum(query_error * change) / jnp.sum(change * change)
    return support.shape[1] / 2 * step / (scale * query_scale)


def _check_residual(name: str, residual: ArrayLike | None, phi: Array) -> Array:
    """Residuals of the examples of `phi`, one axis of outputs added if there is none."""
    tasks, shots, _ = phi.shape
    array = as_float_array(name, residual)
    if array.ndim == 3:
        return check_array(name, array, tasks, shots, "outputs")
    return check_array(name, array, tasks, shots)[..., None]


@source(
    "zou2022", "equations 3.3 and H.1: the limit risk at alpha_lim against that at 0", "derived"
)
def predicted_gain(phi: ArrayLike, phi_query: ArrayLike | None = None) -> Array:
    """The share of the limit risk that one inner step at `limit_rate` takes away.

    1 - L(alpha_lim) / L(0) = p2^2 / (p1 p3), with p_j = E tr G^j; with a query set it is
    (tr E G_t G_u)^2 / (tr E G_t  tr E G_u G_t G_u). By Cauchy-Schwarz it lies in [0, 1]; the risk
    that remains is one minus it.

    Parameters
    ----------
    phi : (tasks, shots, dim) features of the support examples
    phi_query : (tasks, query shots, dim) features of separate query examples, or None

    Returns
    -------
    Scalar in [0, 1], the same for features of any scale. 1: a single step solves every task.

    Raises
    ------
    InputError
        If a shape is wrong, a number is not finite or the features are all zero.

    References
    ----------
    Derived from Zou et al. (2022), equation B.6.
    """
    support = nonzero_features("phi", phi)
    query = support
    if phi_query is not None:
        query = check_query_features("phi_query", phi_query, support)
        check_not_all_zero("phi_query", query)
    support, query = to_common_dtype(support, query)
    first, second, _, zeroth = _risk_traces(
        support / unit_scale(support), query / unit_scale(query), None
    )
    return (first / zeroth) * (first / second)


@source("zou2022", "equations 3.3 and H.6 on Gram matrices", "as printed")
def gram_limit_rate(
    gram: ArrayLike, cross: ArrayLike | None = None, *, shots: int | None = None
) -> Array:
    """`limit_rate` from kernels instead of features, for models with more parameters than examples.

    alpha = (K/2) sum tr k^2 / sum tr k^3, or with X_i = k(query, support) of task i
    alpha = (K/2) sum ||X||_F^2 / sum tr(X k X^T).

    Parameters
    ----------
    gram : (tasks, n, n), or (n, n) for one task: the kernel of the support examples
    cross : (tasks, m, n), or (m, n): kernel between query and support examples, or None
    shots : support examples per task, K. Default n; a network with c outputs has n = K c

    Returns
    -------
    Scalar.

    Raises
    ------
    InputError
        If a matrix is not square or symmetric, shapes do not match, or all entries are zero.

    References
    ----------
    Zou et al. (2022), equations 3.3 and H.6, with traces taken in sample space.
    """
    kernel = check_not_all_zero("gram", _check_kernels("gram", gram))
    shots = kernel.shape[-1] if shots is None else shots
    check_count("shots", shots)
    scale = unit_scale(kernel)
    if cross is None:
        kernel = kernel / scale
        square = contract("nij,njk->nik", kernel, kernel)
        return shots / 2 * jnp.sum(kernel * kernel) / jnp.sum(square * kernel) / scale
    between = as_float_array("cross", cross)
    between = between[None] if between.ndim == 2 else between
    between = check_array("cross", between, kernel.shape[0], "query", kernel.shape[-1])
    check_not_all_zero("cross", between)
    kernel, between = to_common_dtype(kernel / scale, between / unit_scale(between))
    quadratic = jnp.sum(contract("nqk,nkl->nql", between, kernel) * between)
    return shots / 2 * jnp.sum(between * between) / quadratic / scale


def _check_kernels(name: str, gram: ArrayLike) -> Array:
    """A stack of symmetric matrices, tasks first; a single matrix becomes a stack of one."""
    kernel = check_symmetric(name, gram)
    kernel = kernel[None] if kernel.ndim == 2 else kernel
    if kernel.ndim != 3 or kernel.shape[0] < 1:
        raise InputError(f"{name} has shape {kernel.shape}; it must be (tasks, n, n) or (n, n)")
    return kernel


@source("zou2022", "equation 3.3, traces by Hutchinson's estimator", "derived")
def hutchinson_limit_rate(
    apply_gram: Callable[[Array], Array],
    probes: ArrayLike,
    shots: int | None = None,
) -> Array:
    """`limit_rate` for a kernel that is never formed, only applied to vectors.

    With random signs z and v = k z,  alpha = (K/2) E ||v||^2 / E v^T k v.  For a network one
    product k z is a vector-Jacobian product followed by a Jacobian-vector product.

    Parameters
    ----------
    apply_gram : maps a (tasks, n) array to the (tasks, n) array of k_i z_i, each by its own kernel
    probes : (num_probes, tasks, n) random vectors with independent entries of mean 0 and variance
        1, best signs, as `jax.random.rademacher` draws them
    shots : support examples per task, K; default n

    Returns
    -------
    Scalar. Its relative standard deviation falls as one over the square root of num_probes * tasks.

    Raises
    ------
    InputError
        If `probes` is not a rank-3 array of finite numbers or `apply_gram` changes the shape.

    References
    ----------
    Derived from Zou et al. (2022), equation 3.3.
    """
    vectors = check_array("probes", probes, "probes", "tasks", "n")
    shots = vectors.shape[2] if shots is None else shots
    check_count("shots", shots)

    def quadratic_forms(vector: Array) -> tuple[Array, Array]:
        image = apply_gram(vector)
        if image.shape != vector.shape:
            raise InputError(
                f"apply_gram turned shape {vector.shape} into {image.shape}; it must keep the shape"
            )
        return jnp.sum(image * image), jnp.sum(image * apply_gram(image))

    squares, cubes = jax.lax.map(quadratic_forms, vectors)
    return shots / 2 * jnp.sum(squares) / jnp.sum(cubes)
