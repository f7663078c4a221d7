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
    ever fewer, and at each width the derivatives in the order of `DERIVATIVES`. The last of them is compiled first,
    so that a limit nothing fits is refused soon.

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
    groups = [
        _derivatives(_with_width(learner, width, widths[0]), any_derivative)
        for width in (widths if any_width else widths[:1])
    ]
    known = _lean_enough(groups[-1], family, limit)
    over = ""
    for candidate in (candidate for group in groups for candidate in group):
        needed = known.get(id(candidate)) or footprint(candidate, family)
        if needed.total <= limit:
            return Fit(candidate, needed, _reason(candidate, needed, limit, over))
        over = over or f"; {_describe(candidate)} would need {show_bytes(needed.total)}"
    raise AssertionError("one of the last group fits")


def _lean_enough(
    narrowest: list[Learner], family: AbstractTaskFamily, limit: int
) -> dict[int, Footprint]:
    """What candidates need, by their id, the last first and up to one that fits; an error when none does."""
    known: dict[int, Footprint] = {}
    for candidate in reversed(narrowest):
        needed = known[id(candidate)] = footprint(candidate, family)
        if needed.total <= limit:
            return known
    leanest = min(narrowest, key=lambda candidate: known[id(candidate)].total)
    raise InputError(
        f"--memory-limit {show_bytes(limit)} is too little: {_describe(leanest)}, the leanest way to train, needs "
        f"{show_bytes(known[id(leanest)].total)}; raise the limit, or lower --tasks-per-step, --queries, "
        f"--shots or --filters"
    )


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
