"""Rates that watch training: estimates and edges measured anew at every meta-step, and prescribed courses.

They follow the model, and the model follows them. Which of them keep up with a well-chosen fixed rate over a long
run, and which talk themselves down to no adaptation at all, is in the guide on rates; none is the default.
"""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optax.tree_utils as otu
from jaxtyping import Array, Float, Int

from metastep._errors import check_choice, check_count, check_positive
from metastep._trees import as_array
from metastep._types import Episode, MetaParams, Params, Rate
from metastep.models import Objective
from metastep.rates.core import AbstractRate, RateState
from metastep.rates.label_aware import ggn_product, inner, label_aware_terms
from metastep.rates.label_free import label_free_terms
from metastep.theory.citations import source

Restrict = Callable[[Params], Params]


def everything(gradient: Params) -> Params:
    """Restricts nothing: all parameters adapt."""
    return gradient


class Watched(eqx.Module):
    """What a rate that watches keeps between meta-steps.

    Attributes
    ----------
    count : meta-steps seen
    numerator, denominator : running means; their ratio is the estimate
    factor : what the guard has multiplied the rate by
    value : the rate in force
    """

    count: Int[Array, ""]
    numerator: Float[Array, ""]
    denominator: Float[Array, ""]
    factor: Float[Array, ""]
    value: Float[Array, ""]

    @classmethod
    def starting(cls, start: Array) -> "Watched":
        zero = jnp.zeros_like(start)
        return cls(jnp.zeros((), int), zero, zero, jnp.ones_like(start), start)


class AbstractWatchingRate(AbstractRate):
    """One alpha for all parameters, the ratio of two running means over meta-steps.

    The first meta-step counts as a whole memory of the starting value, so that a few tasks cannot throw it off.
    """

    start: eqx.AbstractVar[Array]
    decay: eqx.AbstractVar[float]

    def init(self, params: Params) -> tuple[None, RateState]:
        del params
        return None, Watched.starting(self.start)

    def alpha(self, meta: MetaParams, state: RateState) -> Rate:
        del meta
        return state.value

    def scaled(
        self, meta: MetaParams, state: RateState, factor: Array
    ) -> tuple[MetaParams, RateState]:
        factor = factor.astype(state.value.dtype)
        changed = (state.factor * factor, state.value * factor)
        return meta, eqx.tree_at(lambda s: (s.factor, s.value), state, changed)

    def remember(self, state: Watched, numerator: Array, denominator: Array) -> Watched:
        """The running means with one more meta-step in them, and the rate they give, not below 0."""
        is_first = state.count == 0
        start = self.start.astype(denominator.dtype)
        past = jnp.where(is_first, start * denominator, state.numerator)
        past_below = jnp.where(is_first, denominator, state.denominator)
        top = self.decay * past + (1 - self.decay) * numerator
        bottom = self.decay * past_below + (1 - self.decay) * denominator
        usable = jnp.isfinite(top) & jnp.isfinite(bottom) & (bottom > 0)
        top, bottom = jnp.where(usable, top, past), jnp.where(usable, bottom, past_below)
        estimate = state.factor * jnp.maximum(top / jnp.where(bottom > 0, bottom, 1), 0)
        # Nothing is known yet where no loss has shown curvature.
        value = jnp.where(bottom > 0, estimate, state.value)
        return Watched(state.count + 1, top, bottom, state.factor, value.astype(state.value.dtype))


def _few(episodes: Episode, count: int) -> Episode:
    return jax.tree.map(lambda leaf: leaf[:count], episodes)


@source("zou2022", "equation (H.6), estimated anew at every meta-step", "derived")
class EstimatedRate(AbstractWatchingRate):
    """The label-aware or label-free estimate of alpha at the current parameters, in a running mean.

    Attributes
    ----------
    start : the rate to begin with
    estimate : "label-free" (H.6), or "label-aware", the greedy optimum of one step
    never_decreasing : keep the largest value reached
    decay : weight of the past in the running means, in [0, 1)
    num_tasks : tasks of a meta-step to look at
    restrict : zeroes the gradient of parameters the inner loop leaves alone (ANIL)
    """

    start: Float[Array, ""] = eqx.field(converter=as_array)
    estimate: Literal["label-free", "label-aware"] = eqx.field(static=True, default="label-free")
    never_decreasing: bool = eqx.field(static=True, default=False)
    decay: float = eqx.field(static=True, default=0.99)
    num_tasks: int = eqx.field(static=True, default=4)
    restrict: Restrict = eqx.field(static=True, default=everything)

    def __check_init__(self) -> None:
        check_choice("estimate", self.estimate, ("label-free", "label-aware"))
        check_count("num_tasks", self.num_tasks)

    def update(
        self, state: Watched, objective: Objective, meta: MetaParams, episodes: Episode
    ) -> Watched:
        few = _few(episodes, self.num_tasks)
        if self.estimate == "label-aware":
            terms = jax.lax.map(
                lambda e: label_aware_terms(objective, meta.params, e, self.restrict), few
            )
            top, bottom = terms.slope, terms.curvature
        else:
            keys = jax.random.split(
                jax.random.fold_in(jax.random.key(0), state.count), len(jax.tree.leaves(few)[0])
            )
            terms = jax.lax.map(
                lambda of_task: label_free_terms(
                    objective, meta.params, of_task[0], of_task[1], self.restrict, probes=1
                ),
                (few, keys),
            )
            top, bottom = terms.second, terms.third
        new = self.remember(state, jnp.mean(top), jnp.mean(bottom))
        if not self.never_decreasing:
            return new
        return eqx.tree_at(lambda s: s.value, new, jnp.maximum(new.value, state.value))


class EdgeState(eqx.Module):
    """Running means, and the direction of largest curvature so far."""

    watched: Watched
    direction: Params


@source("metastep", "share of the stability edge 2 / lambda_max of the inner loop", "derived")
class EdgeRate(AbstractWatchingRate):
    """A share of the largest alpha at which gradient descent on the support loss is stable.

    The largest curvature of the mean support loss (Gauss-Newton) is followed by one step of power iteration for
    each meta-step, whose direction is kept.

    Attributes
    ----------
    start : the rate to begin with
    share : of 2 / lambda_max, in (0, 1)
    decay, num_tasks, restrict : as in `EstimatedRate`
    """

    start: Float[Array, ""] = eqx.field(converter=as_array)
    share: float = eqx.field(static=True, default=0.5)
    decay: float = eqx.field(static=True, default=0.99)
    num_tasks: int = eqx.field(static=True, default=4)
    restrict: Restrict = eqx.field(static=True, default=everything)

    def __check_init__(self) -> None:
        check_positive("share", self.share)
        check_count("num_tasks", self.num_tasks)

    def init(self, params: Params) -> tuple[None, EdgeState]:
        direction = self.restrict(jax.tree.map(jnp.ones_like, params))
        unit = otu.tree_scale(1 / otu.tree_norm(direction), direction)
        return None, EdgeState(Watched.starting(self.start), unit)

    def alpha(self, meta: MetaParams, state: EdgeState) -> Rate:
        return super().alpha(meta, state.watched)

    def scaled(
        self, meta: MetaParams, state: EdgeState, factor: Array
    ) -> tuple[MetaParams, EdgeState]:
        meta, watched = super().scaled(meta, state.watched, factor)
        return meta, EdgeState(watched, state.direction)

    def update(
        self, state: EdgeState, objective: Objective, meta: MetaParams, episodes: Episode
    ) -> EdgeState:
        products = jax.lax.map(
            lambda e: self.restrict(
                ggn_product(objective, meta.params, e.support, state.direction)
            ),
            _few(episodes, self.num_tasks),
        )
        product = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), products)
        length, curvature = otu.tree_norm(product), inner(state.direction, product)
        usable = jnp.isfinite(length) & (length > 0)
        direction = jax.tree.map(
            lambda new, old: jnp.where(usable, new / jnp.where(usable, length, 1), old),
            product,
            state.direction,
        )
        top = jnp.asarray(2 * self.share, curvature.dtype)
        return EdgeState(self.remember(state.watched, top, curvature), direction)


@source(
    "zou2022", "online rate of the ANIL experiment", "as printed", "or with the variance centred"
)
class AnilOnlineRate(AbstractWatchingRate):
    """The paper's running estimate for ANIL, from the entries of the normalised features alone.

    alpha <- decay alpha + (1 - decay) / (2 ways shots s^2), s^2 the mean square of the entries of the features the
    head sees on the support sets, after every feature vector is given length 1. With that reading s^2 is 1 / dim
    whatever the features, so the rate soon stands at dim / (2 ways shots); "variance" takes their mean out first.

    Attributes
    ----------
    start : the rate to begin with
    features : (params, x) -> (examples, dim), what the head sees
    reading : "mean square" of the entries, or their "variance": the paper's text allows both
    normalise : whether feature vectors are given length 1 first
    decay : weight of the past, in [0, 1)
    loss_factor : what the paper's loss is in units of the one that is trained: the ways, where it sums over them
    """

    start: Float[Array, ""] = eqx.field(converter=as_array)
    features: Callable[[Params, Array], Array] = eqx.field(static=True)
    reading: Literal["mean square", "variance"] = eqx.field(static=True, default="mean square")
    normalise: bool = eqx.field(static=True, default=True)
    decay: float = eqx.field(static=True, default=0.9)
    loss_factor: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        check_choice("reading", self.reading, ("mean square", "variance"))

    def update(
        self, state: Watched, objective: Objective, meta: MetaParams, episodes: Episode
    ) -> Watched:
        del objective
        features = jax.lax.map(lambda e: self.features(meta.params, e.support.x), episodes)
        if self.normalise:
            lengths = jnp.linalg.norm(features, axis=-1, keepdims=True)
            features = features / jnp.maximum(lengths, jnp.finfo(features.dtype).tiny)
        spread = jnp.mean(jnp.square(features))
        if self.reading == "variance":
            spread = spread - jnp.square(jnp.mean(features))
        per_task = features.shape[1]  # ways x shots
        # The mean of ratios of the paper: the denominator is 1.
        estimate = self.loss_factor / (2 * per_task * spread)
        return self.remember(state, estimate, jnp.ones_like(spread))


class ScheduledRate(AbstractRate):
    """alpha as a prescribed function of the meta-step.

    Attributes
    ----------
    schedule : meta-steps done -> alpha, such as an optax schedule
    """

    schedule: Callable[[Array], Array] = eqx.field(static=True)

    def init(self, params: Params) -> tuple[None, RateState]:
        del params
        return None, (jnp.zeros((), int), jnp.ones(()))

    def alpha(self, meta: MetaParams, state: RateState) -> Rate:
        del meta
        count, factor = state
        # The update that counts a meta-step comes before its rate is asked for.
        return factor * jnp.asarray(self.schedule(jnp.maximum(count - 1, 0)), factor.dtype)

    def update(
        self, state: RateState, objective: Objective, meta: MetaParams, episodes: Episode
    ) -> RateState:
        del objective, meta, episodes
        return state[0] + 1, state[1]

    def scaled(
        self, meta: MetaParams, state: RateState, factor: Array
    ) -> tuple[MetaParams, RateState]:
        return meta, (state[0], state[1] * factor.astype(state[1].dtype))
