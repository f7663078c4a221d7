"""Adapting to a task at lower rates where the chosen ones overstep."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from metastep._errors import check_count
from metastep._types import Params, PerStep, Rate, Scalar
from metastep.adapt.core import InnerGradient
from metastep.adapt.gradient import UNROLLED_STEPS, GradientAdapter

HALVINGS = 10
"""How often the rate of an inner step is halved before the step is left out: to a thousandth."""


class Halved(eqx.Module):
    """An adaptation, and what became of its rates.

    Attributes
    ----------
    params : the adapted parameters
    halvings : (steps,) how often rates were halved, in all, until each inner step
    unadapted : (steps,) whether that was in vain, and no step was taken until there
    watched : what was to be noted after each inner step, on a leading axis
    """

    params: Params
    halvings: Int[Array, " steps"]
    unadapted: Bool[Array, " steps"]
    watched: PyTree[Array]


def adapt_halving(
    adapter: GradientAdapter,
    inner_gradient: InnerGradient,
    params: Params,
    alpha: Rate,
    halvings: int = HALVINGS,
    watch: Callable[[Params], PyTree[Array]] = lambda params: None,
) -> Halved:
    """Adapt by the steps as they are or, if those end at a lower support loss, by steps that never raise it.

    A small enough step against the gradient cannot raise the loss it descends on. A step that does has overstepped,
    on this task, the edge that its rates were chosen or learned for on others; from there the next steps can lead
    out of the finite numbers. So one that would raise it is taken at half its rates, or less. But rates that are
    learned for several steps may overstep by intent, and be back by the last: so plain steps are taken too, and after
    each step the one of the two that has the lower support loss counts. A new task brings no more than its support
    set to tell by, and that is enough: no query example is looked at. Where no step raises the support loss, there is
    one way. At negative rates, which climb by intent, only a support loss that is not finite counts as failed.

    This is for tasks that come after meta-training, and is not differentiable in reverse.

    Parameters
    ----------
    adapter : whose steps are taken
    inner_gradient, params, alpha : as an adapter takes them; rates per step that run out keep the last one
    halvings : how often for one step at most, after that it is left out; 0 takes every step as it is
    watch : params -> arrays to be noted after each inner step

    Raises
    ------
    InputError
        When `halvings` is negative.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from metastep.adapt import GradientAdapter
    >>> loss = lambda w: (w - 1.0) ** 2
    >>> found = adapt_halving(GradientAdapter(1), jax.value_and_grad(loss), jnp.zeros(()), 2.0)  # 1 is the edge
    >>> int(found.halvings[0]), float(found.params)
    (1, 2.0)
    """
    check_count("halvings", halvings, minimum=0)
    if adapter.steps == 0:
        none = jnp.zeros(0, int)
        return Halved(params, none, none.astype(bool), None)
    one_step = dataclasses.replace(adapter, steps=1)

    def moved(current: Params, at: tuple[Scalar, Params], rate: Rate) -> Params:
        return one_step(lambda _: at, current, rate)[0]

    def careful(current: Params, rate: Rate) -> tuple[Params, Scalar, Array, Array]:
        value, gradient = inner_gradient(current)

        def loss_at(factor: Scalar) -> Scalar:
            return inner_gradient(moved(current, (value, gradient), _times(factor, rate)))[0]

        limit = jnp.where(_descends(rate), value, jnp.inf)
        factor, loss, count, failed = _highest_factor(loss_at, limit, halvings)
        # A step that is left out is one along nothing: a rate of 0 will not do where the gradient is not finite. What
        # the adapter keeps fixed stays the same array here, so that the compiler computes it once for all steps.
        along = jax.tree.map(lambda leaf: jnp.where(failed, jnp.zeros_like(leaf), leaf), gradient)
        after = moved(current, (value, along), _times(factor, rate))
        return after, jnp.where(failed, value, loss), count, failed

    def step(ways: _Ways, number: Any) -> tuple[_Ways, tuple]:
        rate = _rate_at(alpha, number)
        after, loss, count, failed = careful(ways.careful, rate)
        total, unadapted = ways.halvings + count, ways.unadapted & failed
        plain, there, back = after, None, jnp.asarray(False)
        if ways.there is not None:
            plain = moved(ways.plain, ways.there, rate)
            there = inner_gradient(plain)
            back = (total > 0) & _no_higher(there[0], loss)
        best = jax.tree.map(lambda a, b: a if a is b else jnp.where(back, a, b), plain, after)
        row = jnp.where(back, 0, total), unadapted & ~back, watch(best)
        return _Ways(plain, there, after, best, total, unadapted), row

    has_two_ways = halvings > 0 and adapter.steps > 1
    there = inner_gradient(params) if has_two_ways else None
    start = _Ways(params, there, params, params, jnp.zeros((), int), jnp.asarray(True))
    if adapter.steps > UNROLLED_STEPS:
        ways, noted = jax.lax.scan(step, start, jnp.arange(adapter.steps))
        return Halved(ways.best, *noted)
    ways, rows = start, []
    for number in range(adapter.steps):
        ways, row = step(ways, number)
        rows.append(row)
    return Halved(ways.best, *jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))


class _Ways(eqx.Module):
    """Where plain steps have led, where careful ones, the better of the two, and what became of careful rates.

    `there` is the support loss and its gradient where plain steps have led; None if only careful ones are taken.
    """

    plain: Params
    there: tuple[Scalar, Params] | None
    careful: Params
    best: Params
    halvings: Int[Array, ""]
    unadapted: Bool[Array, ""]


def _no_higher(a: Scalar, b: Scalar) -> Array:
    """Whether `a` is finite and no higher."""
    return jnp.isfinite(a) & (a <= b)


def _highest_factor(
    loss_at: Callable[[Scalar], Scalar], limit: Scalar, halvings: int
) -> tuple[Scalar, Scalar, Array, Array]:
    """The first of 1, 1/2, 1/4, ... whose loss is finite and within the limit, that loss, its place; if none is."""
    one, never, unknown = jnp.asarray(1.0), jnp.zeros((), int), jnp.asarray(jnp.inf, limit.dtype)
    if halvings == 0:
        return one, unknown, never, never.astype(bool)

    def again(state: tuple) -> Array:
        _, _, count, failed = state
        return failed & (count < halvings)

    def halve(state: tuple) -> tuple:
        factor, _, count, _ = state
        loss = loss_at(factor / 2)
        return factor / 2, loss, count + 1, ~(jnp.isfinite(loss) & (loss <= limit))

    # The first try is a turn of the loop too: what it compiles is compiled once.
    before = 2 * one, unknown, never - 1, jnp.asarray(True)
    factor, loss, count, failed = jax.lax.while_loop(again, halve, before)
    return jnp.where(failed, jnp.zeros_like(factor), factor), loss, count, failed


def _rate_at(alpha: Rate, step: Any) -> Rate:
    """The rate of one inner step, counted from 0; rates that ran out keep the last."""
    if not isinstance(alpha, PerStep):
        return alpha
    return jax.tree.map(lambda rates: rates[jnp.minimum(step, len(rates) - 1)], alpha.values)


def _times(factor: Scalar, rate: Rate) -> Rate:
    """Every rate times a factor; none at all times 0, even of an infinite one."""
    zero = factor == 0

    def scaled(leaf: Array) -> Array:
        product = leaf * jnp.asarray(factor, jnp.result_type(leaf))
        return jnp.where(zero, jnp.zeros_like(product), product)

    return jax.tree.map(scaled, rate)


def _descends(rate: Rate) -> Bool[Array, ""]:
    """Whether no rate is negative."""
    return jnp.all(jnp.array([jnp.all(jnp.asarray(leaf) >= 0) for leaf in jax.tree.leaves(rate)]))
