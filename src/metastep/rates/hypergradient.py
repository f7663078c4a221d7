"""A meta rate that learns itself: up while consecutive meta-gradients agree, down when they contradict."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.tree_utils as otu
from jaxtyping import Array, Float

from metastep._types import Params
from metastep.theory.citations import source

# Growth per meta-step while the gradients point the same way: twofold in 35 steps.
_GAMMA = 0.02


class HypergradientState(NamedTuple):
    """What the rate remembers.

    Attributes
    ----------
    log_factor : logarithm of what the rate has grown by
    direction : the last meta-gradient, at length 1
    """

    log_factor: Float[Array, ""]
    direction: Params


@source("behl2019", "algorithm 1 (Alpha MAML), the meta rate", "corrected", "scale-free")
@source("baydin2018", "equation (9), multiplicative rule", "corrected", "as an exponential")
def hypergradient(learning_rate, gamma: float = _GAMMA) -> optax.GradientTransformation:
    """Gradient descent whose rate follows its hypergradient.

        beta_t = beta_(t-1) exp(gamma cos(g_t, g_(t-1))),    w <- w - beta_t g_t

    Alpha MAML adds gamma g_t' g_(t-1) to the rate, which is the gradient of the loss in the rate and has its units:
    what gamma suits depends on the scale of the loss. The multiplicative rule with the gradients at length 1 has the
    same sign and no units, and the exponential keeps the rate positive for any gamma.

    Parameters
    ----------
    learning_rate : the rate to begin with
    gamma : growth of the rate's logarithm per meta-step, at most

    References
    ----------
    Behl, Baydin and Torr (2019), Alpha MAML; Baydin et al. (2018), Online Learning Rate Adaptation with
    Hypergradient Descent.
    """

    def init(params: Params) -> HypergradientState:
        return HypergradientState(jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Params, state: Any, params: Params | None = None):
        del params
        length = otu.tree_norm(updates)
        direction = otu.tree_scale(jnp.where(length > 0, 1 / length, 0), updates)
        cosine = jnp.asarray(otu.tree_vdot(direction, state.direction))
        log_factor = state.log_factor + gamma * cosine.astype(state.log_factor.dtype)
        moved = otu.tree_scale(-learning_rate * jnp.exp(log_factor), updates)
        return moved, HypergradientState(log_factor, direction)

    return optax.GradientTransformation(init, update)
