"""The meta rate beta: outer optimisers by name, its course over a run, and what it is by default."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from metastep._errors import check_choice, check_count
from metastep._types import MetaParams, Params
from metastep.rates.hypergradient import hypergradient
from metastep.theory.citations import source

# The constants of the optimisers, which their edges of stability depend on.
_MOMENTUM = 0.9
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8
_DECAY = 1e-4


def _adam(learning_rate) -> optax.GradientTransformation:
    return optax.adam(learning_rate, b1=_BETA1, b2=_BETA2, eps=_EPS)


@source("cutkosky2020", "normalised gradients", "as printed", "then handed to Adam")
def normalised_adam(learning_rate) -> optax.GradientTransformation:
    """Adam on meta-gradients scaled to length 1.

    Tasks differ in how large their losses are, so a meta-gradient is as heavy-tailed as its hardest task. With
    its length taken out, no single meta-step weighs more than another in either of Adam's averages.
    """
    return optax.chain(optax.normalize_by_update_norm(), _adam(learning_rate))


_SIZE_OF_VECTORS = 0.1
"""What starts at 0 or 1 says nothing by its size of how far it has to go."""
_SIZE_OF_LOGARITHMS = 2 / 3
_WHOLE_STEPS = 100
"""Meta-steps after which a size that follows is less and less of the distance. A share of 0.1, as in runs of 1,000
meta-steps, is then the root of their number, which is the divisor that theory has from the first step on."""


class SizesState(NamedTuple):
    """What the steps of arrays are measured by.

    Attributes
    ----------
    sizes : a number for each array
    least : what they were at the start, and are never less than
    start : where those began whose size follows how far they go; None for the others
    farthest : how far these have been from there
    steps : taken so far
    """

    sizes: PyTree[Float[Array, ""]]
    least: PyTree[Float[Array, ""]]
    start: PyTree[Array]
    farthest: PyTree[Float[Array, ""]]
    steps: Int[Array, ""]


@source("shazeer2018", "section 8, relative step size", "as printed", "by the sizes at the start")
def sizes_of(params: Params | MetaParams) -> Params | MetaParams:
    """The scale that the first steps of each array are measured by, a number for each.

    The root mean square of a matrix or kernel; 0.1 for vectors and scalars, such as biases, gains and offsets, and
    for what starts at zero. How far an array has to go is seen as it goes, see `_followed`. Learned rates are
    logarithms, whose steps are relative as they are: 2/3, as a rate that moves too far upsets the whole inner loop.
    """
    if isinstance(params, MetaParams):
        logarithms = jax.tree.map(
            lambda leaf: jnp.asarray(_SIZE_OF_LOGARITHMS, leaf.dtype), params.rates
        )
        return MetaParams(jax.tree.map(_size, params.params), logarithms)
    return jax.tree.map(_size, params)


def _size(leaf: Array) -> Float[Array, ""]:
    if leaf.ndim < 2:
        return jnp.asarray(_SIZE_OF_VECTORS, leaf.dtype)
    square = jnp.mean(jnp.square(leaf))
    return jnp.where(square > 0, jnp.sqrt(square), jnp.asarray(_SIZE_OF_VECTORS, leaf.dtype))


def _where_it_began(params: Params | MetaParams) -> PyTree[Array]:
    """Of the arrays whose sizes follow how far they go; None for the others.

    Vectors and scalars do. Matrices and kernels do where no rate is learned: there a model has to fit itself to the
    rate, by weights that grow until it suits them, where a rate that is learned comes to meet them. Learned rates do
    not, as they are logarithms.
    """
    if not isinstance(params, MetaParams):
        return jax.tree.map(jnp.array, params)
    learned = jax.tree.map(lambda leaf: None, params.rates)
    if not jax.tree.leaves(params.rates):
        return MetaParams(_where_it_began(params.params), learned)
    vectors = jax.tree.map(lambda leaf: jnp.array(leaf) if leaf.ndim < 2 else None, params.params)
    return MetaParams(vectors, learned)


def _farthest(leaf: Array, start: Array | None, before: Array | None) -> Float[Array, ""] | None:
    """The largest distance of an array from where it began, as the root mean square of its numbers."""
    if start is None or before is None:
        return None
    return jnp.maximum(before, jnp.sqrt(jnp.mean(jnp.square(leaf - start))))


@source(
    "ivgi2023",
    "largest distance from the start, over the root of the number of unit gradients",
    "as printed",
    "as the size of an array, the root from the hundredth step on",
)
def _followed(
    least: Float[Array, ""], farthest: Float[Array, ""] | None, steps: Int[Array, ""]
) -> Float[Array, ""]:
    """The size of an array: how far it has been from where it began, and less of that in later steps; or `least`.

    An offset that has 20 to go would take 2,000 steps of a hundredth. In steps of a tenth of the way so far it takes
    some fifty. Steps of that length would not let it rest later on.
    """
    if farthest is None:
        return least
    share = jnp.sqrt(jnp.minimum(_WHOLE_STEPS / steps, 1)).astype(farthest.dtype)
    return jnp.maximum(least, share * farthest)


def _scale_by_size() -> optax.GradientTransformation:
    def init(params) -> SizesState:
        least, start = sizes_of(params), _where_it_began(params)
        nowhere = jax.tree.map(lambda leaf: jnp.zeros((), leaf.dtype), start)
        return SizesState(least, least, start, nowhere, jnp.zeros((), jnp.int32))

    def update(updates, state: SizesState, params=None):
        steps = state.steps + 1
        farthest = jax.tree.map(_farthest, params, state.start, state.farthest)
        sizes = jax.tree.map(partial(_followed, steps=steps), state.least, farthest)
        scaled = jax.tree.map(jnp.multiply, updates, sizes)
        return scaled, SizesState(sizes, state.least, state.start, farthest, steps)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def relative_adam(learning_rate) -> optax.GradientTransformation:
    """Adam on meta-gradients scaled to length 1, whose rate is a share of the size of an array.

    Adam moves every number by about its rate, whatever its size: one rate for weights of 0.05 and of 0.5 is too
    large for the one or too small for the other, and learned rates, which are logarithms, know no size at all.
    """
    return optax.chain(normalised_adam(learning_rate), _scale_by_size())


@dataclasses.dataclass(frozen=True)
class OuterOptimizer:
    """What is known of an outer optimiser.

    Attributes
    ----------
    build : meta rate -> optax transformation
    meta_lr, reason : the meta rate that `auto` stands for, and why; in a run of 1,000 meta-steps
    power : of the length of the run, that this rate is multiplied by
    most_for_one_task : that it is at most, times the fourth root of the number of tasks of a meta-step
    schedule : its course over the run that `auto` stands for, a name in `SCHEDULES`
    edge : beta_max x (sharpness + decay), by the characteristic polynomial of its steps on a quadratic
    decay : what decoupled weight decay adds to the sharpness
    preconditioner : second moments -> the diagonal P that steps are divided by; None for P = 1
    moments_decay : of the average of second moments that has to be corrected for its start at 0; None if it is not
    unit_length : whether meta-gradients are scaled to length 1 before all else
    sized : whether steps are multiplied by the size of each array
    clip_tasks : what `--clip-tasks auto` stands for; None for off
    """

    build: Callable[..., optax.GradientTransformation]
    meta_lr: float
    reason: str
    edge: float
    power: float = 0.0
    most_for_one_task: float = math.inf
    schedule: str = "linear"
    decay: float = 0.0
    preconditioner: Callable[[Array], Array] | None = None
    moments_decay: float | None = None
    unit_length: bool = False
    sized: bool = False
    clip_tasks: float | None = None


def _like_adam(build: Callable, meta_lr: float, reason: str, **more: Any) -> OuterOptimizer:
    # optax's Adam averages gradients where its momentum adds them up.
    edge = 2 * (1 + _BETA1) / (1 - _BETA1)
    return OuterOptimizer(
        build, meta_lr, reason, edge,
        preconditioner=lambda nu: jnp.sqrt(nu) + _EPS, moments_decay=_BETA2, **more,
    )  # fmt: skip


_STEP_SIZED = "is the size of a step in the parameters, whatever the scale of the loss"
_BENCHMARK = "see the benchmark of zero tuning"

OPTIMIZERS: dict[str, OuterOptimizer] = {
    "relative-adam": _like_adam(
        relative_adam,
        0.1,
        "a step changes an array by at most about this share of its size, and a learned rate by two "
        "thirds of it: a tenth in a run of 1,000 meta-steps, less in longer ones, and more in shorter ones as far as "
        f"the number of tasks allows; {_BENCHMARK}",
        power=-0.25,
        most_for_one_task=0.08,
        schedule="until-flat",
        unit_length=True,
        sized=True,
        clip_tasks=3.0,
    ),
    "normalised-adam": _like_adam(
        normalised_adam, 3e-2, f"the rate of Adam {_STEP_SIZED}; {_BENCHMARK}", unit_length=True
    ),
    "adam": _like_adam(_adam, 1e-2, f"the rate of Adam {_STEP_SIZED}; {_BENCHMARK}"),
    "adamw": _like_adam(
        lambda learning_rate: optax.adamw(
            learning_rate, b1=_BETA1, b2=_BETA2, eps=_EPS, weight_decay=_DECAY
        ),
        1e-2,
        f"the rate of AdamW {_STEP_SIZED}",
        decay=_DECAY * (1 + _BETA1) / (1 - _BETA1),
    ),
    "momentum": OuterOptimizer(
        lambda learning_rate: optax.sgd(learning_rate, momentum=_MOMENTUM),
        1e-3,
        "with momentum 0.9 a step adds up to ten of them, so a tenth of the rate for plain SGD",
        edge=2 * (1 + _MOMENTUM),
    ),
    "rmsprop": OuterOptimizer(
        lambda learning_rate: optax.rmsprop(learning_rate, eps=_EPS),
        3e-3,
        f"the rate of RMSprop {_STEP_SIZED}, and it has no warm-up of its own",
        edge=2.0,
        preconditioner=lambda nu: jnp.sqrt(nu + _EPS),
    ),
    "sgd": OuterOptimizer(
        optax.sgd,
        1e-2,
        "a cautious rate; it is not measured yet, so watch the loss and raise it if slow",
        edge=2.0,
    ),
    "hypergradient": OuterOptimizer(
        hypergradient,
        1e-3,
        "a small rate to begin with, which then grows or shrinks by itself",
        edge=2.0,
    ),
}

_WARM_UP = 0.05
"""Share of a run over which a decaying rate rises from 0: moments and learned alphas settle first."""
_USUAL_LENGTH, _USUAL_TASKS = 1_000, 25
_COOL_DOWN = 0.2
"""Share of a run, at its end, over which "wsd" falls to 0, and "until-flat" at the latest."""


@source("li2026", "peak rate as a power of the horizon", "as printed", "the power found by trying")
@source(
    "cutkosky2020",
    "best length of normalised steps with momentum, as the root of one over the noise",
    "derived",
    "as a limit, by the number of tasks; the limit of one task and the power of the length were measured",
)
def default_meta_lr(
    optimizer: str, iterations: int | None = None, tasks_per_step: int | None = None
) -> tuple[float, str]:
    """The meta rate that `auto` stands for, and why.

        beta = min(beta_0 (iterations / 1000)^p, beta_1 tasks_per_step^(1/4))

    With 0.1, -1/4 and 0.08 for beta_0, p and beta_1 of "relative-adam"; others know no p and no beta_1. The shorter a
    run, the longer its steps have to be, and the less time there is to average the noise out that they bring. That
    of a mean over tasks goes with one over the root of their number. The length of normalised steps that is best in
    theory, with the momentum that is best for them, goes with one over the root of the noise: with the fourth root
    of the number of tasks.

    Parameters
    ----------
    optimizer : a name in `OPTIMIZERS`
    iterations : meta-steps of the run, at least 1; None for 1,000
    tasks_per_step : tasks of a meta-step, at least 1; None for 25

    Raises
    ------
    InputError
        For an unknown name, or counts below 1.
    """
    check_choice("optimizer", optimizer, OPTIMIZERS)
    iterations = _USUAL_LENGTH if iterations is None else iterations
    tasks_per_step = _USUAL_TASKS if tasks_per_step is None else tasks_per_step
    check_count("iterations", iterations)
    check_count("tasks_per_step", tasks_per_step)
    known = OPTIMIZERS[optimizer]
    by_length = known.meta_lr * (iterations / _USUAL_LENGTH) ** known.power
    return min(by_length, known.most_for_one_task * tasks_per_step**0.25), known.reason


def make_optimizer(name: str, meta_lr: float) -> optax.GradientTransformation:
    """An outer optimiser whose rate is part of its state, so that a new rate does not recompile."""
    check_choice("optimizer", name, OPTIMIZERS)
    return optax.inject_hyperparams(OPTIMIZERS[name].build)(learning_rate=meta_lr)


def _constant(progress: Array, flat: Array) -> Array:
    del flat
    return jnp.ones_like(progress)


@source("hu2024", "warmup-stable-decay", "as printed", "with a linear decay")
def _warmup_stable_decay(progress: Array, flat: Array) -> Array:
    del flat
    return _warm_up(progress) * jnp.minimum((1 - progress) / _COOL_DOWN, 1)


@source("hu2024", "warmup-stable-decay", "corrected", "stable for as long as the loss falls")
def _until_flat(progress: Array, flat: Array) -> Array:
    decay = jnp.maximum(1 - flat, _COOL_DOWN)
    return _warm_up(progress) * jnp.minimum((1 - progress) / decay, 1)


@source("defazio2023", "linear decay to zero", "as printed", "after a warm-up of 5 % of the run")
def _linear(progress: Array, flat: Array) -> Array:
    del flat
    return _warm_up(progress) * jnp.minimum((1 - progress) / (1 - _WARM_UP), 1)


def _cosine(progress: Array, flat: Array) -> Array:
    del flat
    left = jnp.clip((progress - _WARM_UP) / (1 - _WARM_UP), 0, 1)
    return _warm_up(progress) * (1 + jnp.cos(jnp.pi * left)) / 2


def _warm_up(progress: Array) -> Array:
    return jnp.minimum(progress / _WARM_UP, 1)


SCHEDULES: dict[str, Callable[[Array, Array], Array]] = {
    "until-flat": _until_flat,
    "wsd": _warmup_stable_decay,
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
}
"""Name -> (share of the run that is over, share at which the loss was found flat) -> share of the peak meta rate."""


def schedule_factor(
    name: str,
    iteration: Int[Array, ""],
    horizon: Int[Array, ""],
    flat_since: Int[Array, ""] | int = -1,
) -> Float[Array, ""]:
    """The share, in [0, 1], of the peak meta rate that meta-step number `iteration` (from 0) takes.

    Parameters
    ----------
    name : "wsd" (warmup-stable-decay) rises over the first 5 % of the run and falls to 0 over the last 20 %;
        "until-flat" does the same but begins to fall as soon as the loss is flat; "linear" and "cosine" rise likewise
        and fall from there on; "constant" is 1
    iteration, horizon : meta-steps done, and in all; data, so that a longer run does not recompile
    flat_since : the meta-step at which the training loss was found flat (`Trend`), -1 while it falls

    References
    ----------
    Hu et al. (2024), "MiniCPM: unveiling the potential of small language models with scalable training strategies".
    Li et al. (2026), "Optimal learning-rate schedules under functional scaling laws: power decay and
    warmup-stable-decay": where a run ends long before it
    has learned all there is, "wsd" is optimal; where noise is what is left, decay all along.
    Defazio et al. (2023), "Optimal linear decay learning rate schedules and further refinements": for the last
    iterate of a run of known length, linear decay to zero is minimax optimal.
    """
    check_choice("schedule", name, SCHEDULES)
    # Half a step in, so that neither the first nor the last meta-step is wasted on a rate of 0.
    done, total = (jnp.asarray(count, float) for count in (iteration, jnp.maximum(horizon, 1)))
    progress = (done + 0.5) / total
    since = jnp.asarray(flat_since, float)
    flat = jnp.where(since < 0, 1, since / total)
    return jnp.clip(SCHEDULES[name](progress, flat), 0, 1)
