"""Inputs and labels far from zero mean and unit variance, which learning rates make up for in part at best.

Tables are standardised as data (`train.scaling`). Tasks of the user's own are sampled by code that is not ours, and
their losses should stay in units that the user knows: so here it is the model that is told.
"""

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metastep._kept import kept_jit
from metastep.models import Model, standardised
from metastep.tasks import AbstractTaskFamily
from metastep.train.config import ProblemConfig
from metastep.train.references import is_own

# By benchmarks/raw_units.py means of 3 standard deviations cost a fifth, of 10 twice the loss, and columns whose
# widths are a hundredfold apart a tenth. Widths of 10 or of a tenth throughout cost up to a quarter, in labels nearly
# twice the loss more; those of 3 hardly anything. Pixels and indicators of 20 classes are a fifth wide.
_FAR = 3.0
_APART = 100.0
_USUAL = 0.2, 3.0
_NUM_TASKS = 64

Units = dict[str, dict[str, list[float]]]
"""What stands out, by name ("inputs", "labels"): `mean` and `deviation` of each column, 0 where it never varies."""


def outstanding_units(family: AbstractTaskFamily, key: PRNGKeyArray) -> Units:
    """What of inputs and real labels is far from zero mean and unit variance, over 64 tasks.

    Whole numbers, such as tokens and classes, have no units. The entries of images are one column.
    """
    x, y = jax.device_get(_kept_moments(family, key))
    named = {"inputs": x, "labels": y}
    return {
        name: _rounded(*found) for name, found in named.items() if found and _stands_out(*found)
    }


def in_units(config: ProblemConfig, units: Units, model: Model) -> Model:
    """A model of the library's for data that comes in units of its own."""
    columns = {
        name: (tuple(found["mean"]), tuple(one or 1.0 for one in found["deviation"]))
        for name, found in units.items()
        if _is_met(config, name)
    }
    return _standardised(model, **columns) if columns else model


# Built again for the same units it is the same model, and so are programs made of it.
_standardised = lru_cache(maxsize=8)(standardised)


def width_to_grow_to(config: ProblemConfig, units: Units) -> float | None:
    """The width of labels that is large, where outputs are compared with them and the model is not told of it."""
    if "labels" not in units or is_own(config.loss) or _is_met(config, "labels"):
        return None
    width = float(_width(np.array(units["labels"]["deviation"])))
    return width if width > _USUAL[1] else None


def remarks_on_units(config: ProblemConfig, units: Units) -> dict[str, list[str]]:
    """Sentences about what stands out: `notes` where the model meets it, `warnings` where it does not."""
    remarks: dict[str, list[str]] = {"notes": [], "warnings": []}
    for name, found in units.items():
        if _is_met(config, name):
            remarks["notes"].append(
                f"{name} have {_seen(found)}: the model has them at zero mean and unit variance "
                "(--no-standardise: as they are)"
            )
        elif name == "inputs" or not is_own(config.loss):
            remarks["warnings"].append(
                f"{name} have {_seen(found)}: bring them to zero mean and unit variance over the training tasks, "
                "unless the model does that; learning rates make up for units in part at best"
            )
    return remarks


def _is_met(config: ProblemConfig, name: str) -> bool:
    """Whether the model is one that may be told of units, and the loss one that compares outputs with labels."""
    ours = config.standardise and not is_own(config.model)
    return ours and (name == "inputs" or not is_own(config.loss))


Moments = tuple[Float[Array, " columns"], Float[Array, " columns"]]


def _moments(
    family: AbstractTaskFamily, key: PRNGKeyArray
) -> tuple[Moments | None, Moments | None]:
    """Mean and standard deviation of each input and of each label over tasks; None for whole numbers."""

    def of_task(key: PRNGKeyArray) -> tuple[Moments | None, Moments | None]:
        query = family.sample(key).query
        return _mean_and_variance(query.x), _mean_and_variance(query.y)

    def over_tasks(found: Moments | None) -> Moments | None:
        if found is None:
            return None
        means, variances = found
        spread = jnp.mean(variances, axis=0) + jnp.var(means, axis=0)
        return jnp.mean(means, axis=0), jnp.sqrt(spread)

    # One task after another: of images, many at once would take hundreds of megabytes.
    x, y = jax.lax.map(of_task, jax.random.split(key, _NUM_TASKS))
    return over_tasks(x), over_tasks(y)


def _mean_and_variance(values: Array) -> Moments | None:
    """Of each column of the examples of a task; of whole numbers nothing."""
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return None
    columns = values if values.ndim == 2 else values.reshape(-1, 1)
    return jnp.mean(columns, axis=0), jnp.var(columns, axis=0)


_kept_moments = kept_jit(_moments)


def _varies(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return deviation > 1e-6 * np.abs(mean)


def _stands_out(mean: np.ndarray, deviation: np.ndarray) -> bool:
    moving = deviation[_varies(mean, deviation)]
    if not moving.size:
        return False
    apart = moving.max() / moving.min() > _APART
    usual = _USUAL[0] <= _width(moving) <= _USUAL[1]
    return bool(_off(mean, deviation).max() > _FAR or apart or not usual)


def _width(deviation: np.ndarray) -> np.floating:
    """Of all columns together, which is what a loss or a layer sees."""
    return np.sqrt(np.mean(np.square(deviation)))


def _off(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Means where they stand out from the other columns too: a flag that is nearly always 1 is harmless."""
    moving = deviation[_varies(mean, deviation)]
    return np.abs(mean) / np.maximum(deviation, _width(moving))


def _rounded(mean: np.ndarray, deviation: np.ndarray) -> dict[str, list[float]]:
    """To a hundredth of a deviation, so that another machine finds the same."""
    scale = [float(f"{d:.3g}") for d in np.where(_varies(mean, deviation), deviation, 0)]
    centre = [
        round(float(m), 2 - math.floor(math.log10(one))) if one else float(f"{m:.6g}")
        for m, one in zip(mean, scale, strict=True)
    ]
    return {"mean": centre, "deviation": scale}


def _seen(found: dict[str, list[float]]) -> str:
    """The worst column in words."""
    mean, deviation = np.array(found["mean"]), np.array(found["deviation"])
    off, moving = _off(mean, deviation), deviation[deviation > 0]
    if off.max() <= _FAR:
        several = f"standard deviations from {moving.min():.3g} to {moving.max():.3g}"
        return several if len(moving) > 1 else f"a standard deviation of {moving[0]:.3g}"
    worst = int(np.argmax(off))
    where = f" in column {worst + 1} of {len(mean)}" if len(mean) > 1 else ""
    return f"a mean of {mean[worst]:.4g}{where}, {off[worst]:.3g} standard deviations from 0"
