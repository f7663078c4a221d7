"""Whether inputs and labels are near zero mean and unit variance, which decides more than any learning rate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metastep._kept import kept_jit
from metastep.tasks import AbstractTaskFamily, batch_of_episodes
from metastep.train.config import ProblemConfig
from metastep.train.problem import TaskSet, split_keys
from metastep.train.references import is_own

# By benchmarks/raw_units.py means of 3 standard deviations cost a fifth, of 10 twice the loss; one input a hundred
# times as wide as the others costs a tenth, a thousand times three times the loss.
_FAR = 3.0
_WIDE = 100.0
_NUM_TASKS = 64


def warn_of_units(config: ProblemConfig, task_set: TaskSet) -> list[str]:
    """What to know about the units of tasks of the user's own, and of tables that are not standardised.

    A sentence each for means far from zero and for widths far from one, of inputs and of labels that squared error
    compares with outputs. Whole numbers, such as tokens, have no units.
    """
    description = task_set.description
    comes_raw = is_own(config.tasks) or (description["table"] and task_set.scaling is None)
    if not comes_raw:
        return []
    family, key = task_set.splits.train, split_keys(config.seed)["rates"]
    x, y = jax.device_get(kept_jit(partial(_moments, num_tasks=_NUM_TASKS))(family, key))
    compares = description["kind"] == "regression" and not is_own(config.loss)
    found = [_told("inputs", *x)] if x else []
    found += [_told("labels", *y)] if y and compares else []
    return [text for text in found if text]


Moments = tuple[Float[Array, " columns"], Float[Array, " columns"]]


def _moments(
    family: AbstractTaskFamily, key: PRNGKeyArray, *, num_tasks: int
) -> tuple[Moments | None, Moments | None]:
    """Mean and standard deviation of each input and of each label over tasks; None for whole numbers."""
    query = batch_of_episodes(family, key, num_tasks).query

    def moments(values: Array) -> Moments | None:
        if not jnp.issubdtype(values.dtype, jnp.floating):
            return None
        columns = values.reshape(-1, values.shape[-1] if values.ndim == 3 else 1)
        return jnp.mean(columns, axis=0), jnp.std(columns, axis=0)

    return moments(query.x), moments(query.y)


def _told(what: str, mean: np.ndarray, spread: np.ndarray) -> str:
    """The sentence about the worst column, or nothing."""
    varies = spread > 1e-6 * np.abs(mean)
    if not varies.any():
        return ""
    moving = spread[varies]
    # A mean is in the way where it stands out from the other columns too: a flag that is nearly always 1 is harmless.
    off = np.abs(mean) / np.maximum(spread, np.sqrt(np.mean(np.square(moving))))
    if off.max() > _FAR:
        worst = int(np.argmax(off))
        seen = f"a mean of {mean[worst]:.4g} and a standard deviation of {spread[worst]:.3g}"
        seen += f" in column {worst + 1} of {len(mean)}" if len(mean) > 1 else ""
    elif max(moving.max(), 1 / moving.min(), moving.max() / moving.min()) > _WIDE:
        both = f"standard deviations from {moving.min():.3g} to {moving.max():.3g}"
        seen = both if len(moving) > 1 else f"a standard deviation of {moving[0]:.3g}"
    else:
        return ""
    return (
        f"{what} have {seen}: bring {what} to zero mean and unit variance over the training tasks, unless the model "
        "does that; learning rates cannot make up for units"
    )
