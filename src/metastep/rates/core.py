"""The interface of a rate: an object apart from the adapter, whose values are leaves and never retrace."""

import abc
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from metastep._errors import check_choice, check_positive
from metastep._trees import as_array, copies, scale
from metastep._types import Episode, MetaParams, Params, Rate
from metastep.models import Objective
from metastep.theory.citations import source

RateState = Any


class AbstractRate(eqx.Module):
    """How the adaptation rate comes about.

    What is learned by the outer optimiser lives in `MetaParams.rates`; what the rate itself keeps between
    meta-steps lives in its state. Both are pytrees of arrays.
    """

    @abc.abstractmethod
    def init(self, params: Params) -> tuple[PyTree[Array], RateState]:
        """What is learned (or None), and the first state."""

    @abc.abstractmethod
    def alpha(self, meta: MetaParams, state: RateState) -> Rate:
        """The adaptation rate in force; differentiable with respect to `meta.rates`."""

    def update(
        self, state: RateState, objective: Objective, meta: MetaParams, episodes: Episode
    ) -> RateState:
        """The next state, given the episodes of a meta-step (leading task axis) before the step is taken."""
        del objective, meta, episodes
        return state

    @abc.abstractmethod
    def scaled(
        self, meta: MetaParams, state: RateState, factor: Array
    ) -> tuple[MetaParams, RateState]:
        """Meta-parameters and state with every rate multiplied by `factor`: how the guard backs off."""

    def projected(self, meta: MetaParams, state: RateState) -> MetaParams:
        """Where an outer step to `meta` ends: at the nearest rates that are allowed."""
        del state
        return meta


class FixedRate(AbstractRate):
    """The same alpha for the whole run.

    Attributes
    ----------
    value : a scalar, a pytree prefix of the parameters, or `PerStep`; in the mean-loss convention
    """

    value: Rate = eqx.field(converter=lambda value: jax.tree.map(jnp.asarray, value))

    def init(self, params: Params) -> tuple[None, RateState]:
        del params
        return None, self.value

    def alpha(self, meta: MetaParams, state: RateState) -> Rate:
        del meta
        return state

    def scaled(
        self, meta: MetaParams, state: RateState, factor: Array
    ) -> tuple[MetaParams, RateState]:
        return meta, scale(factor, state)


Mask = Callable[[Params], PyTree[bool]]
"""Parameters -> True where the inner loop steps, which for ANIL is the head. What it leaves alone needs no rate."""


def _learned_like(make: Callable[[Array], Array], params: Params, adapts: Mask | None) -> PyTree:
    """What is learned for each array of parameters, None for those that the inner loop leaves alone."""
    if adapts is None:
        return jax.tree.map(make, params)
    return jax.tree.map(lambda moves, leaf: make(leaf) if moves else None, adapts(params), params)


def _rates_like(make: Callable[[Array], Array], params: Params, learned: PyTree) -> PyTree[Array]:
    """The rate of each array of parameters, 0 where there is nothing learned.

    A None in `params`, as where a module keeps its activation, is no array and has no rate.
    """
    return jax.tree.map(
        lambda _, leaf: jnp.zeros(()) if leaf is None else make(leaf), params, learned
    )


class Factored(eqx.Module):
    """Logarithms of rates alpha_i = shared * own_i: what all parameters have in common, and what each has apart.

    Adam moves every number it learns by about the meta rate, so a common cause moves all rates twice as fast through
    `shared`, while the noise of single parameters averages out in it.

    Attributes
    ----------
    shared : logarithm of the common rate
    own : logarithm of each parameter's factor, like the parameters; None for arrays that do not adapt
    """

    shared: Float[Array, ""]
    own: PyTree[Array]


def _check_start(start: Array) -> None:
    if not isinstance(start, Tracer):  # within compiled code its value is not known
        check_positive("start", float(start))


def _times(factor: Array, logarithms: PyTree[Array]) -> PyTree[Array]:
    """Rates multiplied by a factor, in logarithms."""
    return jax.tree.map(lambda leaf: leaf + jnp.log(factor).astype(leaf.dtype), logarithms)


@source(
    "li2017", "equation (4), Meta-SGD", "corrected", "rates kept positive through their logarithm"
)
class LearnedRate(AbstractRate):
    """Rates learned with the initialisation, as logarithms so that they stay positive.

    Attributes
    ----------
    start : the rate to begin with, above 0
    per : "model" for one rate, "layer" for one per array of parameters, "parameter" for Meta-SGD
    adapts : what the inner loop steps in; None for everything. Other arrays have no rate of their own to learn

    Raises
    ------
    InputError
        When `start` is not a finite number above 0, or `per` is none of the three.
    """

    start: Float[Array, ""] = eqx.field(converter=as_array)
    per: Literal["model", "layer", "parameter"] = eqx.field(static=True, default="model")
    adapts: Mask | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_choice("per", self.per, ("model", "layer", "parameter"))
        _check_start(self.start)

    def init(self, params: Params) -> tuple[PyTree[Array], None]:
        logarithm = jnp.log(self.start)
        if self.per == "model":
            return logarithm, None
        shape = (lambda leaf: ()) if self.per == "layer" else jnp.shape

        def starting(leaf: Array) -> Array:
            return jnp.full(shape(leaf), logarithm.astype(leaf.dtype))

        return _learned_like(starting, params, self.adapts), None

    def alpha(self, meta: MetaParams, state: RateState) -> Rate:
        del state
        if self.per == "model":
            return jnp.exp(meta.rates)
        return _rates_like(jnp.exp, meta.params, meta.rates)

    def scaled(
        self, meta: MetaParams, state: RateState, factor: Array
    ) -> tuple[MetaParams, RateState]:
        return MetaParams(meta.params, _times(factor, meta.rates)), state


@source(
    "li2017",
    "equation (4), Meta-SGD",
    "corrected",
    "a rate of the model times a factor of each parameter",
)
class FactoredRate(AbstractRate):
    """Rates learned with the initialisation: one of the model times a factor of each parameter (`Factored`).

    Where `may_fall` is false the rate of the model never falls below where it starts, which its state then holds.
    Early in training, lower rates are better for the model as it is, and Adam would follow them faster than the model
    learns to make use of the rate it has. The factors may fall, each by itself.

    Attributes
    ----------
    start : the rate to begin with, above 0
    may_fall : whether the rate of the model may end below `start`
    adapts : what the inner loop steps in; None for everything. Other arrays have no factors

    Raises
    ------
    InputError
        When `start` is not a finite number above 0.
    """

    start: Float[Array, ""] = eqx.field(converter=as_array)
    may_fall: bool = eqx.field(static=True, default=True)
    adapts: Mask | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        _check_start(self.start)

    def init(self, params: Params) -> tuple[Factored, Array | None]:
        shared = jnp.log(self.start).astype(jnp.result_type(*jax.tree.leaves(params)))
        factors = _learned_like(jnp.zeros_like, params, self.adapts)
        return Factored(shared, factors), None if self.may_fall else shared

    def alpha(self, meta: MetaParams, state: RateState) -> Rate:
        del state
        shared = meta.rates.shared

        def product(own: Array) -> Array:
            everywhere = copies(own.size, shared.astype(own.dtype)).reshape(own.shape)
            return jnp.exp(everywhere + own)

        return _rates_like(product, meta.params, meta.rates.own)

    def scaled(
        self, meta: MetaParams, state: RateState, factor: Array
    ) -> tuple[MetaParams, RateState]:
        rates = Factored(_times(factor, meta.rates.shared), meta.rates.own)
        return MetaParams(meta.params, rates), _times(factor, state)

    def projected(self, meta: MetaParams, state: RateState) -> MetaParams:
        if self.may_fall:
            return meta
        rates = Factored(jnp.maximum(meta.rates.shared, state), meta.rates.own)
        return MetaParams(meta.params, rates)
