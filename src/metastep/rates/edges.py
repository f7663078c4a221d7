"""The stability edge of the inner loop: how large alpha may be before adaptation itself diverges."""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metastep._errors import InputError, check_count
from metastep._types import Episode, Params
from metastep.models import Objective
from metastep.rates.curvature import (
    CONVERGED,
    LANCZOS_STEPS,
    Extremes,
    extreme_eigenvalues,
    hessian_product,
    random_like,
)
from metastep.rates.label_aware import ggn_product, inner
from metastep.tasks import AbstractTaskFamily
from metastep.theory.citations import source

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
"""The levels at which a quantity is reported across tasks."""


class TaskCurvature(eqx.Module):
    """Curvature of the support loss of one task, or of many with a leading axis.

    Attributes
    ----------
    ggn, hessian : both ends of each spectrum, within the parameters that adapt
    ggn_along, hessian_along : g' A g / g' g along the inner gradient g; 0 where g is 0
    """

    ggn: Extremes
    hessian: Extremes
    ggn_along: Float[Array, "..."]
    hessian_along: Float[Array, "..."]


def _everything(gradient: Params) -> Params:
    return gradient


def task_curvature(
    objective: Objective,
    params: Params,
    episode: Episode,
    key: PRNGKeyArray,
    restrict: Callable[[Params], Params] = _everything,
    iterations: int = LANCZOS_STEPS,
) -> TaskCurvature:
    """Largest curvature of one task's support loss, in all directions and along its inner gradient.

    A pure function of arrays, to be mapped over tasks or compiled into a training step. No matrix of the size
    of the parameters is formed, only `iterations` vectors.

    Parameters
    ----------
    objective : model and loss
    params : where the inner loop starts
    episode : one task; its support set alone is looked at
    key : of the random start of Lanczos
    restrict : zeroes what the inner loop leaves alone (ANIL)
    iterations : Lanczos steps for each of the two spectra
    """
    loss = objective.on(episode.support)

    def ggn(vector: Params) -> Params:
        return restrict(ggn_product(objective, params, episode.support, vector))

    def hessian(vector: Params) -> Params:
        return restrict(hessian_product(loss, params, vector))

    start = restrict(random_like(params, key))
    gradient = restrict(jax.grad(loss)(params))
    square = inner(gradient, gradient)
    unit = jnp.where(square > 0, square, 1)
    return TaskCurvature(
        ggn=extreme_eigenvalues(ggn, start, iterations),
        hessian=extreme_eigenvalues(hessian, start, iterations),
        ggn_along=inner(gradient, ggn(gradient)) / unit,
        hessian_along=inner(gradient, hessian(gradient)) / unit,
    )


@dataclasses.dataclass(frozen=True)
class CurvatureAcrossTasks:
    """One kind of curvature over the sampled tasks; lists are at the levels of `QUANTILES`.

    Attributes
    ----------
    largest : lambda_max of a task
    along : g' A g / g' g of a task, along its inner gradient
    alpha_c : 2 / lambda_max of the sharpest task; infinite without curvature
    median_alpha_c : the same of the median task
    along_alpha_c : 2 / (largest curvature along an inner gradient): beyond it the first inner step overshoots so
        far on some task that, by the quadratic, its support loss rises
    residual : largest share of lambda_max that Lanczos left open on any task
    """

    largest: list[float]
    along: list[float]
    alpha_c: float
    median_alpha_c: float
    along_alpha_c: float
    residual: float


@dataclasses.dataclass(frozen=True)
class StabilityEdge:
    """How large an adaptation rate the tasks' curvature allows.

    Attributes
    ----------
    alpha_c : 2 / lambda_max of the Gauss-Newton matrix of the sharpest task
    simplified_alpha_c : 1 / lambda_max of the same, the poster's condition for its simplified meta-loss
    ggn, hessian : the measurements behind it, and the same for the Hessian
    num_tasks : tasks measured
    warnings : what to know before trusting the edge
    """

    alpha_c: float
    simplified_alpha_c: float
    ggn: CurvatureAcrossTasks
    hessian: CurvatureAcrossTasks
    num_tasks: int
    warnings: list[str]


@source("takagi", "conditions on alpha, as 1 / lambda_max", "as printed", "simplified_alpha_c")
@source("metastep", "edge of gradient descent, 2 / lambda_max, task by task", "derived")
def stability_edge(
    objective: Objective,
    params: Params,
    family: AbstractTaskFamily,
    key: PRNGKeyArray,
    *,
    num_tasks: int = 64,
    restrict: Callable[[Params], Params] = _everything,
    tasks_at_once: int | None = None,
    iterations: int = LANCZOS_STEPS,
) -> StabilityEdge:
    """Largest stable adaptation rate at `params`, measured on fresh tasks.

        alpha_c = 2 / lambda_max,   simplified_alpha_c = 1 / lambda_max

    Inner gradient descent on a quadratic with largest curvature lambda_max converges for alpha < 2 / lambda_max.
    lambda_max is that of the loss as it is (a mean over examples, squared error without 1/2), so no factor
    depends on the convention. 1 / lambda_max is the poster's alpha_c: up to it, a minimum stays a minimum of the
    simplified meta-loss L - (alpha/2) |g|^2; exact MAML has no such bound.

    The Gauss-Newton matrix gives the headline: it is not negative, it is what the label-aware rate is built on,
    and near a good fit it is the Hessian. Both are reported; far from a minimum they differ.

    Parameters
    ----------
    objective : model and loss
    params : where the inner loop starts
    family : where tasks come from
    key : of the tasks and of Lanczos
    num_tasks : at least 1
    restrict : zeroes what the inner loop leaves alone (ANIL)
    tasks_at_once : tasks computed side by side; None for all
    iterations : Lanczos steps

    Raises
    ------
    InputError
        When a curvature is not finite at `params`, or a count is below 1.

    References
    ----------
    Takagi et al., condition for the inner learning rate.
    """
    check_count("num_tasks", num_tasks)
    found = jax.device_get(
        _over_tasks(objective, restrict, params, family, key, num_tasks, tasks_at_once, iterations)
    )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)):
        raise InputError(
            "the curvature of the support loss is not finite at these parameters; check the data for huge values"
        )
    ggn = _across_tasks(found.ggn, found.ggn_along)
    hessian = _across_tasks(found.hessian, found.hessian_along)
    return StabilityEdge(
        alpha_c=ggn.alpha_c,
        simplified_alpha_c=ggn.alpha_c / 2,
        ggn=ggn,
        hessian=hessian,
        num_tasks=int(num_tasks),
        warnings=_warnings(ggn, hessian, iterations),
    )


@eqx.filter_jit
def _over_tasks(
    objective, restrict, params, family, key, num_tasks: int, tasks_at_once, iterations: int
) -> TaskCurvature:
    def one(of_task: tuple[PRNGKeyArray, PRNGKeyArray]) -> TaskCurvature:
        task_key, start_key = of_task
        episode = family.sample(task_key)
        return task_curvature(objective, params, episode, start_key, restrict, iterations)

    task_key, start_key = jax.random.split(key)
    keys = jax.random.split(task_key, num_tasks), jax.random.split(start_key, num_tasks)
    return jax.lax.map(one, keys, batch_size=tasks_at_once or num_tasks)


def _across_tasks(ends: Extremes, along: np.ndarray) -> CurvatureAcrossTasks:
    largest = np.asarray(ends.largest)
    return CurvatureAcrossTasks(
        largest=np.quantile(largest, QUANTILES).tolist(),
        along=np.quantile(along, QUANTILES).tolist(),
        alpha_c=_edge(largest.max()),
        median_alpha_c=_edge(np.median(largest)),
        along_alpha_c=_edge(np.max(along)),
        residual=float(np.max(ends.residual)),
    )


def _edge(curvature: float) -> float:
    """2 / curvature, infinite where the loss does not curve upwards."""
    return float(2 / curvature) if curvature > 0 else float("inf")


def _warnings(
    ggn: CurvatureAcrossTasks, hessian: CurvatureAcrossTasks, iterations: int
) -> list[str]:
    return [
        f"Lanczos left {curvature.residual:.1%} of the largest {name} eigenvalue open after {iterations} steps on "
        f"some task: the edge may be lower; raise iterations"
        for name, curvature in (("Gauss-Newton", ggn), ("Hessian", hessian))
        if curvature.residual > CONVERGED
    ]
