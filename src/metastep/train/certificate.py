"""How converged a run is: its gradient norm beside what it was at the start and what theory promises."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from metastep import theory
from metastep._errors import InputError
from metastep._records import to_plain
from metastep._types import PerStep
from metastep.rates.smoothness import SmoothnessConstants, estimate_smoothness
from metastep.theory.citations import source
from metastep.train.learner import mean_rate, rates_of
from metastep.train.problem import load_tasks, split_keys, starting_parameters
from metastep.train.stationarity import GradientNorm, compile_blocks, gradient_norm
from metastep.train.trained import TrainedRun

_COVERED = ("maml", "fomaml", "hfmaml")
_CONSTANT_TASKS = 32


@dataclasses.dataclass(frozen=True)
class TheoryBounds:
    """What the theorems of Fallah et al. say of this run; None where they say nothing.

    Attributes
    ----------
    bias_bound : bound on ||grad F - grad F-hat||, the part of the gradient that finite support sets hide
    floor : gradient norm below which the theorem promises nothing, however long the run
    iteration_bound : meta-steps after which it promises the floor
    reason : what the numbers rest on, or why there are none
    """

    bias_bound: float | None
    floor: float | None
    iteration_bound: float | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Certificate:
    """||grad F|| of a run.

    Attributes
    ----------
    norm, interval, squared_norm, loss, num_tasks : as in `GradientNorm`, at the trained parameters
    initial_norm, initial_interval, initial_loss : the same at the parameters training began with
    relative : norm / initial_norm
    split : which tasks it was measured on
    alpha : adaptation rate of F; where there are several, their geometric mean over what adapts
    bias_bound, floor, iteration_bound, reason : see `TheoryBounds`
    constants : measured at the trained parameters
    """

    norm: float
    interval: list[float]
    squared_norm: float
    loss: float
    num_tasks: int
    initial_norm: float
    initial_interval: list[float]
    initial_loss: float
    relative: float
    split: str
    alpha: float
    bias_bound: float | None
    floor: float | None
    iteration_bound: float | None
    reason: str
    constants: SmoothnessConstants

    def record(self) -> dict[str, Any]:
        """The JSON form; the gradient norm of every single task is left out."""
        plain = to_plain(self)
        del plain["constants"]["gradient_norms"]
        return plain


@source("fallah2020", "error floors, iteration counts and sampling gap", "corrected")
def certify_run(
    run: TrainedRun,
    *,
    num_tasks: int = 2048,
    alpha: float | None = None,
    seed: int | None = None,
) -> Certificate:
    """Measure the stationarity of a run on fresh draws of its training tasks.

    Training tasks, because their meta-objective is what training descends; fresh draws, because the gradient on
    the batches trained on is smaller than it should be.

    Parameters
    ----------
    run : from `load_run`
    num_tasks : at least 16; see `gradient_norm`
    alpha : adaptation rate of F; that of training by default
    seed : of the tasks; that of the run by default

    Raises
    ------
    InputError
        For too few tasks, or derivatives that are not finite.
    """
    family = load_tasks(run.config).splits.train
    keys = split_keys(run.config.seed if seed is None else seed)
    key, constant_key = jax.random.split(jax.random.fold_in(keys["test"], 1))
    rate = run.alpha if alpha is None else jnp.asarray(alpha)
    compiled = compile_blocks(run.learner)
    start = starting_parameters(run.learner.model, run.config.seed)
    trained, initial = (
        gradient_norm(
            run.learner, params, rate, family, key, num_tasks=num_tasks, compiled=compiled
        )
        for params in (run.params, start)
    )
    constants = estimate_smoothness(
        run.learner.objective,
        run.params,
        family,
        constant_key,
        num_tasks=_CONSTANT_TASKS,
        tasks_at_once=run.learner.tasks_at_once,
    )
    bounds = _bounds(run, rate, family, constants, initial)
    return Certificate(
        **dataclasses.asdict(trained),
        initial_norm=initial.norm,
        initial_interval=initial.interval,
        initial_loss=initial.loss,
        relative=trained.norm / initial.norm if initial.norm > 0 else float("nan"),
        split="train",
        alpha=float(mean_rate(rates_of(run.learner, run.params, rate))),
        **dataclasses.asdict(bounds),
        constants=constants,
    )


def _bounds(
    run: TrainedRun, rate, family, constants: SmoothnessConstants, initial: GradientNorm
) -> TheoryBounds:
    """The closed forms at measured constants, as far as their conditions are met."""
    name, steps = run.config.algorithm, run.learner.adapter.steps
    if name not in _COVERED or steps != 1:
        return _nothing(
            f"the theorems cover maml, fomaml and hfmaml with one inner step, not {name} with {steps}"
        )
    if isinstance(rate, PerStep) or len(jax.tree.leaves(rate)) != 1 or jnp.ndim(rate) != 0:
        return _nothing("the theorems cover one adaptation rate, not one per layer or step")
    episode = jax.eval_shape(family.sample, jax.random.key(0))
    common = {
        "alpha": float(rate),
        "smoothness": constants.smoothness,
        "sigma_tilde": constants.sigma_tilde,
    }
    more = common | {
        "hessian_lipschitz": constants.hessian_lipschitz,
        "sigma": constants.sigma,
        "num_tasks": run.learner.tasks_per_step,
        "support_size": episode.support.x.shape[0],
        "query_size": episode.query.x.shape[0],
    }
    try:
        bias = theory.sampling_gap_bound(
            **common, sigma_hessian=constants.sigma_hessian, support_size=more["support_size"]
        )
    except InputError as outside:
        return _nothing(str(outside))
    try:
        floor = theory.error_floor(name, **more)
        count = theory.iteration_bound(name, epsilon=floor, initial_gap=initial.loss, **more)
    except InputError as outside:
        return TheoryBounds(float(bias), None, None, str(outside))
    return TheoryBounds(
        float(bias),
        float(floor),
        float(count),
        "from constants measured at the trained parameters, which are lower bounds of the theory's, with F at the "
        "start as initial gap; these bounds are safe rather than sharp",
    )


def _nothing(reason: str) -> TheoryBounds:
    return TheoryBounds(None, None, None, reason)
