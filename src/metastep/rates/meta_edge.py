"""The largest stable meta rate: the sharpness of the exact meta-objective, as each outer optimiser feels it."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax.tree_utils as otu
from jaxtyping import PRNGKeyArray, PyTree

from metastep._errors import InputError, check_choice, check_count
from metastep._trees import group_size
from metastep._types import Episode, Params, Scalar
from metastep.rates.curvature import (
    CONVERGED,
    LANCZOS_STEPS,
    Extremes,
    extreme_eigenvalues,
    hessian_product,
    random_like,
)
from metastep.rates.meta import OPTIMIZERS, sizes_of
from metastep.theory.citations import source

MetaLoss = Callable[[Params, Episode], Scalar]
"""(meta-parameters, one episode) -> query loss after adaptation. To change alpha without compiling again, keep it
in a pytree: `jax.tree_util.Partial(loss, alpha)` or an `equinox.Module`, not a closure."""


@dataclasses.dataclass(frozen=True)
class MetaEdge:
    """How large a meta rate the curvature of the meta-objective allows.

    Attributes
    ----------
    beta_max : the largest stable meta rate; infinite where the meta-objective does not curve upwards
    sharpness : largest eigenvalue of P^-1 H, with P = 1 without preconditioner
    lowest : smallest eigenvalue of P^-1 H; below 0 the meta-objective curves downwards somewhere
    residual : share of the sharpness that Lanczos left open
    optimizer : the outer optimiser the edge is for
    num_tasks : tasks in the mean
    warnings : what to know before trusting the edge
    """

    beta_max: float
    sharpness: float
    lowest: float
    residual: float
    optimizer: str
    num_tasks: int
    warnings: list[str]


@source("cohen2021", "stability thresholds of gradient descent and momentum", "as printed")
@source("cohen2022", "thresholds of preconditioned methods", "corrected", "optax's conventions")
def meta_edge(
    meta_loss: MetaLoss,
    params: Params,
    episodes: Episode,
    optimizer: str,
    key: PRNGKeyArray,
    *,
    nu: Params | None = None,
    sizes: Params | None = None,
    tasks_per_step: int | None = None,
    tasks_at_once: int | None = None,
    iterations: int = LANCZOS_STEPS,
) -> MetaEdge:
    """Largest stable meta rate at `params`.

        sgd        beta < 2 / s                              s = lambda_max(H); hypergradient too, at its rate
        momentum   beta < 2 (1 + mu) / s                     mu = 0.9
        rmsprop    beta < 2 / s                              s = lambda_max(P^-1 H), P = sqrt(nu + eps)
        adam       beta < 2 (1 + b1) / ((1 - b1) s)          P = sqrt(nu) + eps, b1 = 0.9: 38 / s
        adamw      beta < 2 (1 + b1) / ((1 - b1) s + (1 + b1) decay)

    H is the Hessian of the mean over `episodes` of `meta_loss`, the exact meta-objective: derivatives go through
    the inner loop. The conventions are optax's, whose momentum adds gradients up while Adam averages them. For the
    adaptive methods the preconditioner is taken as it stands; it moves during training, away from sharp places,
    so their edge is where full-batch training hovers rather than where it breaks. "normalised-adam" is taken as
    Adam: with the length of the meta-gradient standing still, it divides by the same. "relative-adam" also
    multiplies by sizes. All of these are for the mean over tasks; sampling a few tasks
    at each step asks for less.

    The edge is local. At a minimum it is the truth; before training it is neither safe nor needed, since the
    first steps lead to other curvature. In benchmarks/meta_rates.py (SGD, 500 meta-steps, alpha at most 1/L) the
    best meta rate of a grid was a quarter of the edge measured before training on the sinusoid and a 64th of it,
    the smallest tried, on the quadratic, where a 16th diverged. Measure again while training.

    Parameters
    ----------
    meta_loss : query loss after adaptation, of one episode
    params : meta-parameters, any pytree
    episodes : tasks, every array with a leading task axis; the more, the closer to the meta-objective
    optimizer : a name in `rates.OPTIMIZERS`
    key : of the random start of Lanczos
    nu : second moments of the meta-gradient, bias-corrected, shaped like `params` (for instance those in the
        state of Adam, or before normalising); None to estimate them from `episodes` with `second_moments`
    sizes : what "relative-adam" multiplies its steps by, a number for each array; those of `params` by default
    tasks_per_step : tasks of a meta-step, for that estimate; all of `episodes` by default
    tasks_at_once : tasks computed side by side; None for all
    iterations : Lanczos steps; memory is that many copies of `params`, never their square

    Raises
    ------
    InputError
        For an unknown optimiser, a count below 1, or a curvature that is not finite.

    References
    ----------
    Cohen et al., Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability (ICLR 2021) for
    gradient descent and momentum; Cohen et al., Adaptive Gradient Methods at the Edge of Stability (2022,
    arXiv 2207.14484) for the preconditioned thresholds. adamw: the same characteristic polynomial with decoupled
    decay.
    """
    check_choice("optimizer", optimizer, OPTIMIZERS)
    outer, num_tasks = OPTIMIZERS[optimizer], jax.tree.leaves(episodes)[0].shape[0]
    root = None
    if outer.preconditioner is not None:
        if nu is None:
            size = num_tasks if tasks_per_step is None else tasks_per_step
            nu = second_moments(meta_loss, params, episodes, size, tasks_at_once)
        scale = outer.preconditioner
        root = jax.tree.map(lambda moment: jnp.sqrt(scale(moment)), nu)
    if outer.sized:
        sizes = sizes_of(params) if sizes is None else sizes
        root = jax.tree.map(lambda leaf, size: leaf / jnp.sqrt(size), root, sizes)
    found: Extremes = jax.device_get(
        _meta_curvature(
            meta_loss,
            params,
            episodes,
            key,
            root,
            tasks_at_once,
            iterations,
        )
    )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)):
        raise InputError(
            "the curvature of the meta-objective is not finite at these parameters: lower alpha, or check the "
            "data for huge values"
        )
    sharpness, residual = float(found.largest), float(found.residual)
    return MetaEdge(
        beta_max=largest_stable_rate(optimizer, sharpness),
        sharpness=sharpness,
        lowest=float(found.smallest),
        residual=residual,
        optimizer=optimizer,
        num_tasks=int(num_tasks),
        warnings=_warnings(residual, iterations),
    )


def largest_stable_rate(optimizer: str, sharpness: float) -> float:
    """beta_max from the (preconditioned) sharpness, by the table of `meta_edge`; infinite if it is not positive."""
    check_choice("optimizer", optimizer, OPTIMIZERS)
    below = sharpness + OPTIMIZERS[optimizer].decay
    return OPTIMIZERS[optimizer].edge / below if sharpness > 0 and below > 0 else float("inf")


def meta_curvature(
    meta_loss: MetaLoss,
    params: Params,
    episodes: Episode,
    key: PRNGKeyArray,
    root: Params | None = None,
    *,
    tasks_at_once: int | None = None,
    iterations: int = LANCZOS_STEPS,
) -> Extremes:
    """Both ends of the spectrum of P^-1 H, P = `root`^2: a pure function, to be compiled into other programs.

    P^-1 H is not symmetric, P^(-1/2) H P^(-1/2) is and has the same eigenvalues.

    Parameters
    ----------
    meta_loss, params, episodes, key, tasks_at_once, iterations : as for `meta_edge`
    root : square roots of the diagonal of P, above 0, shaped like `params`; None for P = 1
    """
    check_count("iterations", iterations)

    def product(vector: Params) -> Params:
        moved = vector if root is None else otu.tree_div(vector, root)

        def of_task(episode: Episode) -> Params:
            return hessian_product(lambda meta: meta_loss(meta, episode), params, moved)

        curved = mean_of_tasks(of_task, episodes, tasks_at_once)
        return curved if root is None else otu.tree_div(curved, root)

    return extreme_eigenvalues(product, random_like(params, key), iterations)


_meta_curvature = eqx.filter_jit(
    lambda meta_loss, params, episodes, key, root, tasks_at_once, iterations: meta_curvature(
        meta_loss, params, episodes, key, root, tasks_at_once=tasks_at_once, iterations=iterations
    )
)


@eqx.filter_jit
def second_moments(
    meta_loss: MetaLoss,
    params: Params,
    episodes: Episode,
    tasks_per_step: int,
    tasks_at_once: int | None = None,
) -> Params:
    """E g^2, entry by entry, of the meta-gradient g over `tasks_per_step` fresh tasks, at `params`.

        E g^2 = mean^2 + s^2 / B     with mean and variance s^2 over tasks, and B = tasks_per_step

    The mean over the given tasks has a variance of its own; s^2 / n is taken off where B < n. This is where the
    averages of Adam and RMSprop settle if `params` stand still.
    """
    num_tasks = jax.tree.leaves(episodes)[0].shape[0]

    def moments(episode: Episode) -> tuple[Params, Params]:
        gradient = jax.grad(lambda meta: meta_loss(meta, episode))(params)
        return gradient, jax.tree.map(jnp.square, gradient)

    mean, square = mean_of_tasks(moments, episodes, tasks_at_once)
    freed = max(num_tasks - 1, 1)
    share = max(1 / tasks_per_step - 1 / num_tasks, 0.0) * num_tasks / freed
    return jax.tree.map(
        lambda m, q: m**2 + jnp.maximum(q - m**2, 0) * jnp.asarray(share, m.dtype), mean, square
    )


def mean_of_tasks(function: Callable, episodes: PyTree, tasks_at_once: int | None = None):
    """Mean over the leading axis of a function of one task, keeping only sums between groups of tasks.

    The groups are the largest that divide the number of tasks and are no larger than `tasks_at_once`.
    """
    num_tasks = jax.tree.leaves(episodes)[0].shape[0]
    width = group_size(num_tasks, tasks_at_once or num_tasks)
    if width == num_tasks:
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.vmap(function)(episodes))
    groups = jax.tree.map(lambda leaf: leaf.reshape(-1, width, *leaf.shape[1:]), episodes)
    shapes = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0, 0], groups))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total, group):
        terms = jax.vmap(function)(group)
        return jax.tree.map(lambda t, term: t + jnp.sum(term, axis=0), total, terms), None

    total, _ = jax.lax.scan(add, zeros, groups)
    return jax.tree.map(lambda leaf: leaf / num_tasks, total)


def _warnings(residual: float, iterations: int) -> list[str]:
    if residual <= CONVERGED:
        return []
    return [
        f"Lanczos left {residual:.1%} of the sharpness open after {iterations} steps: the largest stable meta "
        f"rate may be lower; raise iterations"
    ]
