"""Whether the training loss still falls: what decides when the meta rate begins to."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from metastep.theory.citations import source

_OPENS = 0.05
"""Share of a run before the first period: the meta rate is still rising there."""
_PERIODS = 4
"""Each is sqrt(2) times as long as the one before, so the last two and the two before them are a doubling apart."""
_FEWEST = 10
"""Meta-steps that the earlier two must have for their scatter to mean anything."""
FLAT = 0.1
"""A loss that falls by less than this share while the run doubles is flat."""
_SURE = 1.645
"""Standard errors by which it must: one-sided, 5 %."""


class Trend(eqx.Module):
    """How the training loss went lately, and when it was found flat.

    Losses fall like powers of the time, so what is compared is the mean logarithm over the last half of the time so
    far with that over the quarter before it; the logarithm keeps single hard tasks from deciding it. Where a loss is
    not positive nothing is ever found.

    Attributes
    ----------
    ends : the meta-step that the current period ends with
    count, total, square : (periods,) meta-steps, and sums of the logarithm of the loss and its square, of the last
        periods; the current one comes last
    flat_since : the meta-step at which the loss was found flat; -1 while it falls
    """

    ends: Int[Array, ""]
    count: Float[Array, " periods"]
    total: Float[Array, " periods"]
    square: Float[Array, " periods"]
    flat_since: Int[Array, ""]

    @classmethod
    def begin(cls, horizon: Int[Array, ""] | int) -> "Trend":
        """Before the first meta-step of a run of `horizon`."""
        zeros, opens = jnp.zeros(_PERIODS), _OPENS * jnp.asarray(horizon, float)
        return cls(_later(opens), zeros, zeros, zeros, jnp.full((), -1, int))

    @source("metastep", "the gain of a doubling of the run, as a share of the loss", "derived")
    def after(
        self,
        iteration: Int[Array, ""],
        horizon: Int[Array, ""],
        loss: Float[Array, ""],
        reference: Float[Array, ""],
    ) -> "Trend":
        """The trend after meta-step number `iteration`, from 1.

        Parameters
        ----------
        iteration, horizon : meta-steps done, this one included, and in all
        loss : mean query loss of its tasks after adaptation
        reference : loss before anything was learned; a loss still near it has yet to begin to fall
        """
        is_open = jnp.asarray(iteration, float) > _OPENS * jnp.asarray(horizon, float)
        current = (jnp.arange(_PERIODS) == _PERIODS - 1) & is_open
        one = current.astype(self.count.dtype)
        value = jnp.where(current, jnp.log(loss).astype(self.total.dtype), 0)
        sums = self.count + one, self.total + value, self.square + value**2
        over = iteration >= self.ends
        flat = over & (self.flat_since < 0) & _is_flat(*sums, jnp.log(reference))
        count, total, square = (jnp.where(over, jnp.append(s[1:], 0), s) for s in sums)
        return Trend(
            jnp.where(over, _later(self.ends), self.ends),
            count,
            total,
            square,
            jnp.where(flat, iteration.astype(self.flat_since.dtype), self.flat_since),
        )


def _later(end: Array) -> Int[Array, ""]:
    """The end of the period after one that ended there."""
    end = end.astype(float)
    return jnp.ceil(jnp.maximum(jnp.sqrt(2.0) * end, end + 1)).astype(int)


def _is_flat(count: Array, total: Array, square: Array, start: Array) -> Bool[Array, ""]:
    """Whether the later half hardly gained on the earlier one, though something was learned since the start."""
    pairs = [jnp.sum(sums.reshape(2, -1), axis=1) for sums in (count, total, square)]
    steps, mean, spread = pairs[0], pairs[1] / pairs[0], pairs[2] / pairs[0]
    error = jnp.sqrt(jnp.sum((spread - mean**2) / steps))
    gain, learned = mean[0] - mean[1], start - mean[1]
    is_full = (count[0] > 0) & (steps[0] >= _FEWEST)
    return is_full & (gain + _SURE * error < FLAT) & (learned > FLAT)
