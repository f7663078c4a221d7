"""The adaptation rate for a model whose outputs have grown to the width of the labels."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metastep._errors import InputError
from metastep._kept import kept_jit
from metastep._trees import scale
from metastep._types import Episode, Params
from metastep.models import Objective
from metastep.rates.estimates import ratio_estimate
from metastep.rates.label_aware import AwareTerms, label_aware_terms
from metastep.tasks import AbstractTaskFamily
from metastep.theory.citations import source

# Of a linear model, whose outputs grow with its parameters and no faster, labels may be as many times as wide.
_MOST = 1e4
_HALVINGS = 20


@dataclasses.dataclass(frozen=True)
class GrownRate:
    """The label-aware rate where outputs are as wide as labels.

    Attributes
    ----------
    alpha : the rate
    factor : what all parameters were multiplied by, at least 1
    width : standard deviation of the labels, over tasks and examples
    """

    alpha: float
    factor: float
    width: float


@source(
    "metastep",
    "the label-aware rate of c w, with c such that outputs are as wide as labels",
    "derived",
)
def grown_rate(
    objective: Objective,
    params: Params,
    family: AbstractTaskFamily,
    keys: PRNGKeyArray,
    width: float,
    restrict: Callable[[Params], Params] = lambda gradient: gradient,
    tasks_at_once: int | None = None,
) -> GrownRate | None:
    """The label-aware rate once the model has what it needs to say what the labels say.

    Networks start with outputs near 0. Where labels are wide in numbers, training makes outputs as wide, and
    curvature grows with them: that of a network of L layers as the outputs to the power 2 - 2/L. All parameters
    together are multiplied by the factor that makes outputs so wide: of all ways there it has the least curvature,
    where layers are homogeneous and have like shares in it. A linear model has the curvature that it had.

    Parameters
    ----------
    objective : model and squared error
    params : the starting parameters
    family, keys : where tasks come from, and one key for each
    width : standard deviation of the labels
    restrict, tasks_at_once : as for `advise_rates`

    Returns
    -------
    None where no factor up to 10,000 makes outputs that wide, or nothing is learned there.
    """

    @kept_jit
    def measure(params: Params, family: AbstractTaskFamily, keys: PRNGKeyArray, width: Array):
        def over_tasks(function: Callable, params: Params):
            def one(key: PRNGKeyArray):
                return function(params, family.sample(key))

            return jax.lax.map(one, keys, batch_size=tasks_at_once or keys.shape[0])

        def is_wide(log_factor: Array) -> Array:
            grown = scale(jnp.exp(log_factor), params)
            outputs = over_tasks(lambda p, episode: objective.apply(p, episode.query.x), grown)
            return ~(_width(outputs) < width)  # beyond the largest number too

        def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            middle = (bounds[0] + bounds[1]) / 2
            wide = is_wide(middle)
            return jnp.where(wide, bounds[0], middle), jnp.where(wide, middle, bounds[1])

        start = jnp.zeros_like(width), jnp.full_like(width, np.log(_MOST))
        found = jax.lax.fori_loop(0, _HALVINGS, halve, start)[1]

        def terms(params: Params, episode: Episode) -> AwareTerms:
            return label_aware_terms(objective, params, episode, restrict)

        factor = jnp.exp(found)
        return found < start[1], factor, over_tasks(terms, scale(factor, params))

    wide = np.asarray(width, jnp.result_type(float))
    reached, factor, terms = jax.device_get(measure(params, family, keys, wide))
    if not reached:
        return None
    try:
        alpha = ratio_estimate(terms.slope, terms.curvature).value
    except InputError:
        return None
    return GrownRate(alpha, float(factor), width) if alpha > 0 else None


def _width(outputs: Float[Array, "tasks examples outputs"]) -> Float[Array, ""]:
    """Of all columns together, which is what a loss sees."""
    columns = outputs.reshape(-1, outputs.shape[-1])
    return jnp.sqrt(jnp.mean(jnp.var(columns, axis=0)))
