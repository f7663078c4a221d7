"""How far a run is from the edge of stability of its meta rate, measured again and again while it trains."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax.tree_utils as otu
from jax.tree_util import Partial
from jaxtyping import Array, PRNGKeyArray

from metastep._errors import InputError
from metastep._types import Episode, MetaParams
from metastep.adapt import GradientAdapter
from metastep.rates import OPTIMIZERS, meta_edge
from metastep.rates.meta_edge import MetaLoss, second_moments
from metastep.tasks import AbstractTaskFamily, batch_of_episodes
from metastep.train.config import TrainConfig
from metastep.train.learner import Learner
from metastep.train.state import TrainState, current_meta_lr

# Optimisers whose rate multiplies the meta-gradient as it is, so that only its curvature can say how large it may
# be, and the share of their edge that `auto` takes. Momentum adds up ten gradients and is given the rate that makes
# their sum the step of plain SGD: at half of its own, far wider edge it did not survive the noise of the tasks.
SHARE_OF_EDGE = {"sgd": 0.5, "momentum": 0.5 * (1 - 0.9) / (1 + 0.9)}

_LANCZOS = 10
_MOST_GROWTH = 2.0


def edge_watch(
    config: TrainConfig, learner: Learner, family: AbstractTaskFamily, key: PRNGKeyArray
) -> "EdgeWatch | None":
    """The watch a run was asked for, or needs because its meta rate comes from the edge; None for neither."""
    held = config.meta_lr == "auto" and config.optimizer in SHARE_OF_EDGE
    if config.algorithm == "reptile" or not (config.track_edge or held):
        return None
    if config.algorithm == "erm":
        learner = dataclasses.replace(learner, adapter=GradientAdapter(0))
    share = SHARE_OF_EDGE[config.optimizer] if held else None
    return EdgeWatch(learner, family, config.optimizer, key, share)


def number_of_tasks(learner: Learner) -> int:
    """Tasks of a measurement: few where they are computed one after another."""
    return 8 if learner.tasks_at_once == 1 else 32


class EdgeWatch:
    """Measures the largest stable meta rate at a state, and can hold the meta rate to a share of it.

    The sharpness is that of the exact meta-objective over everything that is learned, rates included, on the same
    tasks each time, seen through the second moments that the optimiser has gathered where it is an adaptive one.

    Attributes
    ----------
    optimizer : name of the outer optimiser
    share : hold the peak meta rate to this share of the edge, growing at most twofold at a time; None to look on
    lanczos : steps of a measurement, one Hessian product each
    """

    def __init__(
        self,
        learner: Learner,
        family: AbstractTaskFamily,
        optimizer: str,
        key: PRNGKeyArray,
        share: float | None = None,
        lanczos: int = _LANCZOS,
    ):
        self.optimizer, self.share, self.lanczos = optimizer, share, lanczos
        self._learner, self._key = learner, key
        self._meta_loss = meta_objective(learner)
        draw = jax.jit(batch_of_episodes, static_argnums=2)
        self._episodes = draw(family, key, number_of_tasks(learner))

    def __call__(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state to go on from, and a row for the metrics: `sharpness`, `beta_max`, `meta_lr`."""
        loss = Partial(self._meta_loss, state.rate_state)
        row: dict[str, Any] = {"meta_lr": current_meta_lr(state)}
        try:
            edge = meta_edge(
                loss,
                state.meta,
                self._episodes,
                self.optimizer,
                self._key,
                nu=self._second_moments(state, loss),
                sizes=_only(otu.tree_get_all_with_path(state.optimizer_state, "sizes")),
                tasks_at_once=self._learner.tasks_at_once,
                iterations=self.lanczos,
            )
        except InputError as overflow:
            return state, row | {"sharpness": None, "beta_max": None, "note": str(overflow)}
        row |= {"sharpness": edge.sharpness, "beta_max": _finite(edge.beta_max)}
        if self.share is None or row["beta_max"] is None:
            return state, row
        peak = min(self.share * edge.beta_max, _MOST_GROWTH * float(state.meta_lr))
        held = dataclasses.replace(state, meta_lr=jnp.asarray(peak, state.meta_lr.dtype))
        return held, row | {"peak_from_here": peak}

    def _second_moments(self, state: TrainState, loss: MetaLoss) -> MetaParams | None:
        """Those of the meta-gradient that the optimiser divides by; None for plain ones."""
        nu = _only(otu.tree_get_all_with_path(state.optimizer_state, "nu"))
        outer = OPTIMIZERS[self.optimizer]
        if nu is not None and outer.moments_decay is not None:
            nu = otu.tree_bias_correction(nu, outer.moments_decay, state.optimizer_state.count)
        if nu is None or not outer.unit_length:
            return nu
        size = min(self._learner.tasks_per_step, number_of_tasks(self._learner))
        fresh = second_moments(loss, state.meta, self._episodes, size, self._learner.tasks_at_once)
        squared_length = jnp.asarray(otu.tree_sum(fresh))
        return jax.tree.map(lambda leaf: leaf * squared_length.astype(leaf.dtype), nu)


def meta_objective(learner: Learner):
    """(state of the rate, meta-parameters, episode) -> query loss after adaptation, rates included."""

    def loss(rate_state: Any, meta: MetaParams, episode: Episode) -> Array:
        alpha = learner.rate.alpha(meta, rate_state)
        return learner.query_loss(meta.params, episode, alpha)

    return loss


def _only(found: list[tuple[Any, Any]]) -> Any:
    """The one value found in a tree, or None."""
    return found[0][1] if found else None


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
