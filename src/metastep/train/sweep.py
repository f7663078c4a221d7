"""Many trainings as one compiled program: the (alpha, beta) plane, and seeds, as a mapped axis."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from metastep._compiler import TunedJit
from metastep._errors import InputError, check_count, check_positive
from metastep._records import Z95, read_json, to_plain, write_json
from metastep.adapt import HALVINGS
from metastep.tasks import TaskSplits
from metastep.train.checkpoint import Checkpoints, Tree
from metastep.train.evaluate import compile_judge
from metastep.train.learner import Learner, mean_alpha
from metastep.train.loop import Pace
from metastep.train.state import HEALTHY, TrainState, initial_state
from metastep.train.step import advance

Progress = Callable[[int, int], None]
"""Called with (meta-steps done, meta-steps in all)."""

SAVE_SECONDS = 60.0
"""A sweep that is kept is saved this often."""


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What became of every training; the axes are (milestone, alpha, meta rate, seed).

    Attributes
    ----------
    alphas, meta_lrs, seeds, milestones : the axes
    train_loss : mean query loss after adaptation over the last meta-steps before the milestone
    test_loss : on held-out tasks, the same ones for every training of a seed; infinity once diverged, or
        if none was judged
    test_metric : accuracy there, NaN for regression
    test_metric_ci95 : half-width of its 95 % interval over tasks (normal approximation)
    unadapted_metric : accuracy there before adaptation
    halved : share of those tasks whose rates were halved, see `evaluate`
    alpha : adaptation rate in force at the milestone, which a rate of its own mind may have moved
    diverged_at : (alpha, meta rate, seed) the meta-step that left the finite numbers; 0 for none
    seconds : wall time of all trainings together, compilation included
    """

    alphas: list[float]
    meta_lrs: list[float]
    seeds: list[int]
    milestones: list[int]
    train_loss: np.ndarray
    test_loss: np.ndarray
    test_metric: np.ndarray
    test_metric_ci95: np.ndarray
    unadapted_metric: np.ndarray
    halved: np.ndarray
    alpha: np.ndarray
    diverged_at: np.ndarray
    seconds: float


def sweep(
    learner: Learner,
    splits: TaskSplits,
    alphas: Sequence[float] | None,
    meta_lrs: Sequence[float],
    seeds: Sequence[int] = (0,),
    *,
    milestones: Sequence[int],
    test_tasks: int = 200,
    halvings: int = HALVINGS,
    window: int | None = None,
    cells_at_once: int | None = None,
    keep: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> SweepResult:
    """Train at every adaptation rate, meta rate and seed, and judge each at every milestone.

    All trainings of a seed start from the same parameters and see the same tasks, so that differences are
    those of the rates. A training that diverges stops there and does not disturb the others.

    Parameters
    ----------
    learner : what is trained; its rate must be a `FixedRate` if `alphas` are given, and its optimiser must
        keep its rate in its state (`make_optimizer`)
    splits : tasks to train on (`train`) and to be judged by (`test`)
    alphas : adaptation rates; None leaves the learner's own rate to itself
    meta_lrs : meta rates
    seeds : one training each, from its own parameters and tasks
    milestones : numbers of meta-steps, increasing; the last one ends the training
    test_tasks : held-out tasks of a judgement; 0 for none, which saves compiling it
    halvings : of the rates of a held-out task, see `evaluate`; 0 for the plain steps of published numbers
    window : meta-steps averaged for `train_loss`; a twentieth of the training by default
    cells_at_once : trainings computed side by side; all for dense models, one for convolutions on CPU
    keep : folder to save all trainings in, once a minute; the same sweep with the same folder goes on from there,
        and ends with the same numbers. None saves nothing
    progress : told after each dispatch

    Raises
    ------
    InputError
        For rates that are not above 0, milestones that do not increase, or a folder that holds another sweep.
    """
    _check(alphas, meta_lrs, seeds, milestones)
    check_count("test_tasks", test_tasks, minimum=0)
    check_count("halvings", halvings, minimum=0)
    axes = (list(alphas or (math.nan,)), list(meta_lrs), list(seeds))
    cells = list(itertools.product(*axes))
    shape = tuple(len(axis) for axis in axes)
    keys = {seed: jax.random.split(jax.random.key(seed), 3) for seed in seeds}
    # A cell is judged at its own rates, or not at all.
    learner = dataclasses.replace(learner, back_offs=0)
    starts = {seed: initial_state(learner, key[0], milestones[-1]) for seed, key in keys.items()}
    states = _stack([_at_rates(starts[seed], alpha, meta_lr) for alpha, meta_lr, seed in cells])
    training_keys = jnp.stack([keys[seed][1] for _, _, seed in cells])
    test_keys = jnp.stack([keys[seed][2] for _, _, seed in cells])
    width = cells_at_once or (1 if learner.tasks_at_once == 1 else len(cells))
    run = _compile(learner, splits, width)
    judge = _compile_test(learner, splits, test_tasks, halvings, width)
    window = window or max(1, milestones[-1] // 20)
    began = time.monotonic()
    identity = {"axes": axes, "milestones": milestones, "window": window}
    identity |= {"test_tasks": test_tasks, "halvings": halvings}
    rows = np.full((len(milestones), len(_ROW), len(cells)), np.nan)
    shelf = _Shelf(keep, identity)
    course = _Course(
        run, training_keys, shelf, lambda done: progress(done, milestones[-1]), states, rows
    )
    course.restore()
    for number, (before, milestone) in enumerate(itertools.pairwise((0, *milestones))):
        if milestone < course.done:  # judged before it was saved
            continue
        opens = max(before, milestone - window)
        if course.done <= opens:
            course.advance_to(opens)
            course.open_window()
        course.advance_to(milestone)
        course.rows[number] = _row(learner, course.states, *judge(course.states, test_keys))
    shelf.close()
    states, rows = course.states, course.rows
    columns = {
        name: rows[:, place].reshape(len(milestones), *shape) for place, name in enumerate(_ROW)
    }
    failed = np.where(states.failure == HEALTHY, 0, np.asarray(states.iteration) + 1)
    return SweepResult(
        [float(a) for a in axes[0]],
        [float(b) for b in meta_lrs],
        list(seeds),
        list(milestones),
        **columns,
        diverged_at=failed.reshape(shape),
        seconds=time.monotonic() - began,
    )


def _check(alphas, meta_lrs, seeds, milestones) -> None:
    for name, values in (("alphas", alphas), ("meta_lrs", meta_lrs)):
        for value in values if values is not None else ():
            check_positive(name, value)
    if not len(meta_lrs) or not len(seeds) or (alphas is not None and not len(alphas)):
        raise InputError("a sweep needs at least one adaptation rate, one meta rate and one seed")
    if not len(milestones) or list(milestones) != sorted(set(milestones)):
        raise InputError(f"milestones must increase, but are {list(milestones)}")
    check_count("milestones", milestones[0])


def _at_rates(state: TrainState, alpha: float, meta_lr: float) -> TrainState:
    """The first state of one training: that of its seed, with its own rates in it."""
    state = dataclasses.replace(state, meta_lr=jnp.asarray(meta_lr, state.meta_lr.dtype))
    if math.isnan(alpha):
        return state
    fixed = jax.tree.map(lambda leaf: jnp.full_like(leaf, alpha), state.rate_state)
    return dataclasses.replace(state, rate_state=fixed)


def _stack(states: list[TrainState]) -> TrainState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _compile(learner: Learner, splits: TaskSplits, width: int):
    """(states, keys, until) -> states, with `width` trainings side by side."""

    def run(family, states: TrainState, keys: PRNGKeyArray, until: Array) -> TrainState:
        def one(cell: tuple[TrainState, PRNGKeyArray]) -> TrainState:
            return advance(learner, family, cell[1], cell[0], until)

        return jax.lax.map(one, (states, keys), batch_size=width if width > 1 else None)

    program = TunedJit(run, long_running=learner.model.task_mapping == "sequential")
    return lambda states, keys, until: program(splits.train, states, keys, until)


def _compile_test(learner: Learner, splits: TaskSplits, num_tasks: int, halvings: int, width: int):
    """(states, keys) -> loss, metric, its interval, metric before adaptation, share of halved; each (cells,)."""
    if not num_tasks:
        return lambda states, keys: (jnp.full(len(keys), jnp.nan),) * 5
    judge = compile_judge(learner, learner.adapter.steps, num_tasks, halvings=halvings)

    @TunedJit
    def test(family, states: TrainState, keys: PRNGKeyArray) -> tuple[Array, ...]:
        def one(cell: tuple[TrainState, PRNGKeyArray]) -> tuple[Array, ...]:
            state, key = cell
            alpha = learner.rate.alpha(state.meta, state.rate_state)
            tasks = judge(state.meta.params, alpha, family, key)
            before, after = tasks.metrics[:, 0], tasks.metrics[:, -1]
            error = jnp.std(after, ddof=1) / math.sqrt(num_tasks)
            halved = jnp.mean(tasks.halvings[:, -1] > 0)
            loss = jnp.mean(tasks.losses[:, -1])
            return loss, jnp.mean(after), Z95 * error, jnp.mean(before), halved

        return jax.lax.map(one, (states, keys), batch_size=width if width > 1 else None)

    return lambda states, keys: test(splits.test, states, keys)


_ROW = (
    "train_loss", "test_loss", "test_metric", "test_metric_ci95", "unadapted_metric", "halved",
    "alpha",
)  # fmt: skip


def _row(learner: Learner, states: TrainState, test_loss, *metrics) -> np.ndarray:
    """What a milestone found of every training, (`_ROW`, cells); no finite loss once diverged."""
    healthy = np.asarray(states.failure) == HEALTHY
    steps = np.maximum(np.asarray(states.window.steps), 1)
    train_loss = np.where(healthy, np.asarray(states.window.loss) / steps, np.inf)
    judged = np.where(healthy & np.isfinite(test_loss), test_loss, np.inf)
    alphas = jax.vmap(lambda s: mean_alpha(learner, s.meta, s.rate_state))(states)
    return np.stack([train_loss, judged, *map(np.asarray, metrics), np.asarray(alphas)])


@dataclasses.dataclass
class _Course:
    """A sweep on its way.

    Attributes
    ----------
    run : (states, keys, until) -> states
    keys : of each training
    shelf, progress : where it is kept, and who is told the meta-steps done
    states, rows : of all trainings, and what the milestones found
    done : meta-steps of the trainings that are still healthy
    """

    run: Callable[..., TrainState]
    keys: PRNGKeyArray
    shelf: "_Shelf"
    progress: Callable[[int], None]
    states: TrainState
    rows: np.ndarray
    done: int = 0
    pace: Pace = dataclasses.field(default_factory=Pace)

    def restore(self) -> None:
        """Go on from what was kept, if anything was."""
        (self.states, rows), self.done = self.shelf.restore((self.states, self.rows))
        self.rows = np.array(rows)

    def advance_to(self, target: int) -> None:
        """Dispatch by dispatch, so that progress can be shown and kept."""
        while self.done < target:
            until = min(target, self.done + self.pace.dispatch_size())
            dispatched = time.monotonic()
            self.states = jax.block_until_ready(
                self.run(self.states, self.keys, jnp.asarray(until))
            )
            self.pace.add(until - self.done, time.monotonic() - dispatched)
            self.done = until
            self.shelf.save(until, (self.states, self.rows))
            self.progress(until)

    def open_window(self) -> None:
        """From here on training losses count."""
        empty = jax.tree.map(jnp.zeros_like, self.states.window)
        self.states = dataclasses.replace(self.states, window=empty)


class _Shelf:
    """Where a sweep is kept while it runs; nowhere for None."""

    def __init__(self, folder: Path | None, identity: dict[str, Any]):
        self._checkpoints, self._saved = None, time.monotonic()
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        written, identity = folder / "sweep.json", to_plain(identity)
        if written.exists() and read_json(written) != identity:
            raise InputError(
                f"{folder} keeps an unfinished sweep of other rates, seeds or milestones; delete it or "
                "choose another folder"
            )
        write_json(written, identity)
        self._checkpoints = Checkpoints(folder, keep=1)

    def restore(self, like: Tree) -> tuple[Tree, int]:
        """What was kept, or what is given, and the meta-steps done."""
        done = self._checkpoints.latest() if self._checkpoints else None
        if self._checkpoints is None or done is None:
            return like, 0
        return self._checkpoints.restore(like, done), done

    def save(self, done: int, course: Any) -> None:
        """Write it if the last time was a minute ago."""
        if self._checkpoints is None or time.monotonic() - self._saved < SAVE_SECONDS:
            return
        self._checkpoints.save(done, course)
        self._saved = time.monotonic()

    def close(self) -> None:
        """Release the folder."""
        if self._checkpoints is not None:
            self._checkpoints.close()
