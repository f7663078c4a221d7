"""The norm of the gradient of the meta-objective, from independent tasks, with an interval."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from metastep._compiler import TunedJit
from metastep._errors import InputError, check_count
from metastep._types import Params, Rate
from metastep.metagrad import JointTraining
from metastep.rates.meta_edge import mean_of_tasks
from metastep.tasks import AbstractTaskFamily
from metastep.theory.citations import source
from metastep.train.learner import Learner

# Two-sided 95 % points of Student's t with one degree of freedom less than there are blocks.
_T95 = {8: 2.365, 16: 2.131, 32: 2.040}

CompiledBlocks = Callable[[Params, Rate, AbstractTaskFamily, PRNGKeyArray], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class GradientNorm:
    """||grad F(w)|| with a 95 % interval.

    Attributes
    ----------
    norm : sqrt of `squared_norm`, 0 where that is negative
    interval : [low, high] of the norm
    squared_norm : unbiased estimate of ||grad F||^2; at a stationary point negative as often as not
    loss : F, the mean query loss after adaptation
    num_tasks : tasks measured
    """

    norm: float
    interval: list[float]
    squared_norm: float
    loss: float
    num_tasks: int


@source("metastep", "U-statistic for the squared norm of a mean, interval by inversion", "derived")
def gradient_norm(
    learner: Learner,
    params: Params,
    alpha: Rate,
    family: AbstractTaskFamily,
    key: PRNGKeyArray,
    *,
    num_tasks: int = 2048,
    compiled: CompiledBlocks | None = None,
) -> GradientNorm:
    """Estimate ||grad F|| at `params`, from exact meta-gradients whatever the algorithm of training.

        ||grad F||^2 ~ mean over i != j of <g_i, g_j>

    F is the expected query loss after adapting on sampled support sets, at fixed alpha (without adaptation for
    joint training). The squared norm of a mean of gradients is too large by its variance; products of different
    tasks are not, so this is unbiased for F as it is sampled. The F of Fallah et al. adapts on all there is of a
    task instead of a support set: how far the two gradients are apart is bounded by `theory.sampling_gap_bound`,
    and no number of tasks removes it.

    Parameters
    ----------
    learner : model, loss and inner loop
    params, alpha : where F is looked at
    family : where tasks come from
    key : of the tasks
    num_tasks : at least 16; rounded up to whole blocks: 32 of them from 64 tasks on, else 16 or 8
    compiled : from `compile_blocks`, to look at several points without compiling again

    Raises
    ------
    InputError
        For too few tasks, or a meta-gradient that is not finite.
    """
    check_count("num_tasks", num_tasks, minimum=16)
    blocks = max(size for size in _T95 if 2 * size <= num_tasks)
    width = -(-num_tasks // blocks)
    keys = jax.random.split(key, (blocks, width))
    measure = compiled or compile_blocks(learner)
    gram, loss = jax.device_get(measure(params, alpha, family, keys))
    if not (np.isfinite(gram).all() and np.isfinite(loss)):
        raise InputError(
            "the meta-gradient is not finite at these parameters: lower alpha, or check the data for huge values"
        )
    square, low, high = squared_norm_interval(np.asarray(gram, np.float64))
    return GradientNorm(
        norm=float(np.sqrt(max(square, 0.0))),
        interval=[float(np.sqrt(max(low, 0.0))), float(np.sqrt(max(high, 0.0)))],
        squared_norm=square,
        loss=float(loss),
        num_tasks=blocks * width,
    )


def compile_blocks(learner: Learner) -> CompiledBlocks:
    """(params, alpha, family, keys (blocks, width)) -> inner products of the blocks' mean gradients, mean loss.

    As many copies of the parameters as there are blocks are held, however many tasks there are.
    """
    adapts = not isinstance(learner.meta_gradient, JointTraining)

    def task_loss(params: Params, alpha: Rate, family: AbstractTaskFamily, key: PRNGKeyArray):
        episode = family.sample(key)
        if adapts:
            return learner.query_loss(params, episode, alpha)
        return learner.objective(params, episode.query)

    @TunedJit
    def measure(params, alpha, family, keys):
        def of_block(block: PRNGKeyArray):
            one = lambda key: jax.value_and_grad(task_loss)(params, alpha, family, key)  # noqa: E731
            return mean_of_tasks(one, block, learner.tasks_at_once)

        losses, gradients = jax.lax.map(of_block, keys)
        rows = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(gradients)]
        gram = sum(jnp.matmul(row, row.T, precision="highest") for row in rows)
        return gram, jnp.mean(losses)

    return measure


def squared_norm_interval(gram: np.ndarray) -> tuple[float, float, float]:
    """Unbiased ||mean||^2 and its 95 % interval, from the inner products of independent vectors of equal law.

    The interval holds every x >= 0 with

        (estimate - x)^2 <= t^2 (4 v x / n + 2 tau / (n (n - 1)))

    where v is the variance along the mean and tau the squared Frobenius norm of the covariance. Unlike estimate
    +- 2 standard errors it stays honest where the mean vanishes and the first term with it.

    Parameters
    ----------
    gram : (n, n) with n = 8, 16 or 32 vectors; means of blocks, so that they are near to normal

    Returns
    -------
    estimate, which may be negative; low; high
    """
    size = len(gram)
    off = ~np.eye(size, dtype=bool)
    estimate = float(gram[off].mean())
    centred = gram - gram.mean(axis=0) - gram.mean(axis=1, keepdims=True) + gram.mean()
    tau = float(centred[off].var())
    along = gram.mean(axis=1) - gram.mean()  # <g_i - mean, mean>
    length = max(float(gram.mean()), np.finfo(float).tiny)
    variance = float(np.sum(along**2)) / (size - 1) / length
    t_square = _T95[size] ** 2
    half = estimate + 2 * t_square * variance / size
    rest = estimate**2 - 2 * t_square * tau / (size * (size - 1))
    root = float(np.sqrt(max(half**2 - rest, 0.0)))
    return estimate, max(half - root, 0.0), max(half + root, 0.0)
