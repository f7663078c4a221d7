"""How much memory a training program needs, read off the compiled program, and the fastest one that fits a limit."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from metastep._errors import InputError
from metastep.metagrad import DERIVATIVES, Exact
from metastep.tasks import AbstractTaskFamily
from metastep.train.config import TrainConfig
from metastep.train.crew import Crew
from metastep.train.learner import Learner
from metastep.train.problem import TaskSet
from metastep.train.sizes import parse_bytes, show_bytes
from metastep.train.state import initial_state
from metastep.train.step import compile_advance

# From one number of tasks side by side to the next that is tried.
_NARROWER = 4


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes that one device needs for a training program, as its compiler planned them.

    Attributes
    ----------
    temporary : intermediate values of a meta-step, the part that inner steps and tasks side by side decide
    arguments : examples to draw from, and the training state
    results : the next training state
    """

    temporary: int
    arguments: int
    results: int

    @property
    def total(self) -> int:
        """All three together; the program's own code and the runtime are not in it."""
        return self.temporary + self.arguments + self.results


def footprint(learner: Learner, family: AbstractTaskFamily) -> Footprint:
    """Compile the training program of a learner, without running it, and ask what memory it will need."""
    key = jax.random.key(0)
    state = jax.eval_shape(lambda key: initial_state(learner, key), key)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), eqx.filter(family, eqx.is_array)
    )
    until = jax.ShapeDtypeStruct((), jnp.result_type(int))
    program: Any = compile_advance(learner)
    analysis = program.lower(shapes, key, state, until).compile().memory_analysis()
    return Footprint(
        int(analysis.temp_size_in_bytes),
        int(analysis.argument_size_in_bytes),
        int(analysis.output_size_in_bytes),
    )


@dataclasses.dataclass(frozen=True)
class Fit:
    """What was chosen to stay within a limit.

    Attributes
    ----------
    learner : the fastest that fits
    footprint : its memory
    reason : one sentence for reports
    """

    learner: Learner
    footprint: Footprint
    reason: str


def fit(
    learner: Learner,
    family: AbstractTaskFamily,
    limit: int,
    *,
    any_derivative: bool = True,
    any_width: bool = True,
    tasks_here: int | None = None,
) -> Fit:
    """The fastest way to compute the same meta-step that stays within a limit.

    Candidates are compiled from the fastest to the leanest: as many tasks side by side as the learner takes, then
    ever fewer, and at each width the derivatives in the order of `DERIVATIVES`. The leanest is compiled first, so
    that a limit nothing fits is refused at once.

    Parameters
    ----------
    learner : what is trained
    family : where its tasks come from
    limit : bytes for each device
    any_derivative, any_width : whether these may be changed, or were the user's choice
    tasks_here : tasks of a meta-step on one device; all of them by default

    Raises
    ------
    InputError
        When even the leanest candidate needs more.
    """
    widths = list(_widths(tasks_here or learner.tasks_per_step, learner.tasks_at_once))
    candidates = [
        changed
        for width in (widths if any_width else widths[:1])
        for changed in _derivatives(_with_width(learner, width, widths[0]), any_derivative)
    ]
    leanest = footprint(candidates[-1], family)
    if leanest.total > limit:
        raise InputError(
            f"--memory-limit {show_bytes(limit)} is too little: {_describe(candidates[-1])}, the leanest way to "
            f"train, needs {show_bytes(leanest.total)}; raise the limit, or lower --tasks-per-step, --queries, "
            f"--shots or --filters"
        )
    over = ""
    for candidate in candidates[:-1]:
        needed = footprint(candidate, family)
        if needed.total <= limit:
            return Fit(candidate, needed, _reason(candidate, needed, limit, over))
        over = over or f"; {_describe(candidate)} would need {show_bytes(needed.total)}"
    return Fit(candidates[-1], leanest, _reason(candidates[-1], leanest, limit, over))


def _reason(learner: Learner, needed: Footprint, limit: int, over: str) -> str:
    return f"{_describe(learner)} needs {show_bytes(needed.total)} of the {show_bytes(limit)} allowed{over}"


def _describe(learner: Learner) -> str:
    width = learner.tasks_at_once
    tasks = "all tasks at once" if width is None else f"{width} task{'s' * (width > 1)} at once"
    rule = learner.meta_gradient
    return f"{rule.derivative} derivatives, {tasks}" if isinstance(rule, Exact) else tasks


def _widths(num_tasks: int, widest: int | None) -> Iterator[int]:
    """Tasks side by side: the learner's own number, and about a fourth of it each time, down to one."""
    width = min(widest or num_tasks, num_tasks)
    yield width
    while width > 1:
        width = max(n for n in range(1, max(1, width // _NARROWER) + 1) if num_tasks % n == 0)
        yield width


def _with_width(learner: Learner, width: int, widest: int) -> Learner:
    return learner if width == widest else dataclasses.replace(learner, tasks_at_once=width)


def _derivatives(learner: Learner, any_derivative: bool) -> list[Learner]:
    """The learner with each derivative; only exact meta-gradients have a choice."""
    if not any_derivative or not isinstance(learner.meta_gradient, Exact):
        return [learner]
    return [
        dataclasses.replace(learner, meta_gradient=Exact(derivative)) for derivative in DERIVATIVES
    ]


def keep_within_limit(
    config: TrainConfig,
    task_set: TaskSet,
    build: Callable[[TrainConfig, dict[str, Any], float, float], Learner],
    mesh: Mesh | None,
    crew: Crew,
) -> tuple[TrainConfig, dict[str, Any]]:
    """The options with derivative and tasks side by side decided, and a record of what was decided and why.

    Without a limit there is nothing to compile, and the record is empty.
    """
    if config.memory_limit is None:
        return _with_derivative(config, "plain"), {}
    limit = parse_bytes(config.memory_limit)

    def decide() -> dict[str, Any]:
        # Rates are values, not shapes: any will do.
        learner = build(_with_derivative(config, "plain"), task_set.description, 0.1, 1e-3)
        found = fit(
            dataclasses.replace(learner, mesh=mesh),
            task_set.splits.train,
            limit,
            any_derivative=config.derivative == "auto",
            any_width=config.tasks_at_once is None,
            tasks_here=learner.tasks_per_step // (mesh.size if mesh else 1),
        )
        rule = found.learner.meta_gradient
        return {
            "derivative": rule.derivative if isinstance(rule, Exact) else "plain",
            "tasks_at_once": found.learner.tasks_at_once,
            "memory_bytes": found.footprint.total,
            "memory_reason": found.reason,
        }

    record = crew.from_leader(decide)
    config = dataclasses.replace(config, tasks_at_once=record["tasks_at_once"])
    return _with_derivative(config, record["derivative"]), record


def _with_derivative(config: TrainConfig, derivative: str) -> TrainConfig:
    if config.derivative != "auto":
        return config
    return dataclasses.replace(config, derivative=derivative)  # pyright: ignore[reportArgumentType]
