"""A run from its options to its results: read top to bottom, this is what `metastep train` does."""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from typing import Any

from metastep._errors import DataError, DivergenceError
from metastep._records import read_json, read_jsonl, to_plain, write_json
from metastep.train.build import build_learner
from metastep.train.checkpoint import Checkpoints, Elsewhere
from metastep.train.choose import choose_rates
from metastep.train.config import (
    TrainConfig,
    check_config,
    with_preset,
)
from metastep.train.crew import ALONE, Crew
from metastep.train.examples import example_tasks
from metastep.train.folder import RunFolder, read_options
from metastep.train.journal import Observer
from metastep.train.loop import Schedule, run_loop, score
from metastep.train.memory import keep_within_limit
from metastep.train.own import with_own
from metastep.train.problem import (
    TaskSet,
    build_model,
    filled,
    fingerprint,
    load_tasks,
    split_keys,
)
from metastep.train.rehearse import Announce
from metastep.train.sharpness import edge_watch
from metastep.train.state import initial_state


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What `metastep train` reports."""

    run: str
    status: str
    iterations: int
    alpha: float
    meta_lr: float
    steps_per_second: float
    seconds: float
    validation: dict[str, float] | None
    message: str = ""


def train(
    config: TrainConfig,
    folder: RunFolder,
    observer: Observer | None = None,
    *,
    overwrite: bool = False,
    command: str = "",
    announce: Announce = lambda stage, record: None,
    crew: Crew = ALONE,
) -> TrainResult:
    """Meta-train into a new folder.

    Parameters
    ----------
    config : options; what is None or "auto" is filled in for the tasks
    folder : where the run goes
    observer : told of progress and metrics
    overwrite : replace a run that is there
    command : recorded for the report
    announce : called before training starts with "tasks", "rehearsal" (each one) and "rates", and their records
    crew : the processes and devices of the run, from `join`; the folder is that of process 0

    Raises
    ------
    UserError
        For options, data and folders that cannot be used, and when training diverges.
    ProcessLostError
        When another process of the run is gone.
    """
    with crew.watched(folder.newest_checkpoint):
        return _train(config, folder, observer, overwrite, command, announce, crew)


def _train(
    config: TrainConfig,
    folder: RunFolder,
    observer: Observer | None,
    overwrite: bool,
    command: str,
    announce: Announce,
    crew: Crew,
) -> TrainResult:
    config = with_preset(config)
    check_config(config)
    crew.from_leader(lambda: folder.check_free(resume=False, overwrite=overwrite))
    task_set = crew.together(lambda: load_tasks(config))
    crew.check_same("tasks and options", lambda: fingerprint(config, task_set))
    description = task_set.description
    config = filled(config, description)
    check_config(config)
    build_model(config, description)  # complains before anything is written
    mesh = crew.mesh(config.tasks_per_step or 1)
    announce("tasks", description)
    config, within = keep_within_limit(config, task_set, build_learner, mesh, crew)
    rates = crew.from_leader(lambda: to_plain(choose_rates(config, task_set, announce) | within))
    announce("rates", rates)

    def begin() -> None:
        if overwrite and folder.config.exists():
            shutil.rmtree(folder.path)
        scaling = task_set.scaling.record() if task_set.scaling else None
        folder.write_config(config, description, scaling, command)
        write_json(folder.rates, rates)

    crew.from_leader(begin)
    return _go(config, folder, task_set, rates, observer, crew)


def resume(
    folder: RunFolder,
    observer: Observer | None = None,
    iterations: int | None = None,
    crew: Crew = ALONE,
    **own: Any,
) -> TrainResult:
    """Go on with an interrupted run, to the same bits as if it had not been interrupted.

    On another number of devices or processes the sums over tasks are taken in another order, and the results are
    the same but for rounding.

    Parameters
    ----------
    folder : of the run; its options are used
    observer : told of progress and metrics
    iterations : a new total, to train for longer than was planned
    crew : the processes and devices to go on with; only process 0 needs the folder
    own : `tasks`, `model` and `loss` again, where the run was handed objects
    """
    with crew.watched(folder.newest_checkpoint):
        return _resume(folder, observer, iterations, crew, own)


def _resume(
    folder: RunFolder,
    observer: Observer | None,
    iterations: int | None,
    crew: Crew,
    own: dict[str, Any],
) -> TrainResult:
    def begin() -> dict[str, Any]:
        folder.check_free(resume=True, overwrite=False)
        folder.read_config()  # complains about what cannot be read
        record = read_json(folder.config)
        if iterations is not None:
            record["train"]["iterations"] = iterations
            check_config(read_options(record))
            write_json(folder.config, record)
        return {"config": record, "rates": read_json(folder.rates)}

    kept = crew.from_leader(begin)
    config, description = with_own(read_options(kept["config"]), **own), kept["config"]["tasks"]
    task_set = crew.together(lambda: load_tasks(config))
    crew.check_same("tasks", lambda: fingerprint(config, task_set))
    if task_set.description != description:
        now = task_set.description
        changed = [k for k in description | now if now.get(k) != description.get(k)]
        raise DataError(
            f"the tasks are not those {folder.path} was trained on ({', '.join(changed)} changed); restore "
            f"the data, or train anew"
        )
    return _go(config, folder, task_set, kept["rates"], observer, crew, resumes=True)


def _go(
    config: TrainConfig,
    folder: RunFolder,
    task_set: TaskSet,
    rates: dict[str, Any],
    observer: Observer | None,
    crew: Crew,
    *,
    resumes: bool = False,
) -> TrainResult:
    keys = split_keys(config.seed)
    alpha, meta_lr = float(rates["alpha_chosen"]), float(rates["meta_lr"])
    learner = build_learner(config, task_set.description, alpha, meta_lr)
    learner = dataclasses.replace(learner, mesh=crew.mesh(learner.tasks_per_step))
    state = initial_state(learner, keys["parameters"], config.iterations or 0)
    checkpoints = Checkpoints(folder.checkpoints) if crew.leads else Elsewhere()
    started = time.monotonic()
    try:
        if resumes and checkpoints.latest() is not None:
            horizon = state.horizon
            state = dataclasses.replace(checkpoints.restore(state), horizon=horizon)
        state = crew.same(state)
        recorder = Recorder(folder if crew.leads else None, observer)
        recorder.keep_until(int(state.iteration))
        schedule = Schedule(
            iterations=config.iterations or 0,
            log_every=config.log_every or 1,
            eval_every=config.eval_every or 1,
            eval_tasks=config.eval_tasks,
            checkpoint_seconds=config.checkpoint_seconds,
        )
        outcome = run_loop(
            learner,
            task_set.splits,
            state,
            schedule,
            keys,
            checkpoints,
            recorder,
            edge_watch(config, learner, task_set.splits.train, keys["rates"]),
            crew,
        )
    except DivergenceError as error:
        kept = checkpoints.latest()
        message = f"{error}. Last good checkpoint: iteration {kept}."
        if crew.leads:
            write_json(
                folder.status, {"status": "diverged", "iterations": kept or 0, "message": message}
            )
        raise DivergenceError(message) from error
    finally:
        checkpoints.close()
    result = TrainResult(
        run=str(folder.path),
        status=outcome.status,
        iterations=int(outcome.state.iteration),
        alpha=alpha,
        meta_lr=meta_lr,
        steps_per_second=round(outcome.steps_per_second, 3),
        seconds=round(time.monotonic() - started, 3),
        validation=recorder.last_validation,
    )
    if not crew.leads:
        return result
    examples = example_tasks(
        learner,
        outcome.state.meta.params,
        learner.rate.alpha(outcome.state.meta, outcome.state.rate_state),
        task_set.splits.test,
        keys["examples"],
    )
    if examples:
        folder.write_arrays(folder.examples, examples)
    best_row = _best_row(folder)
    write_json(folder.status, to_plain(result) | {"best": best_row})
    return result


class Recorder:
    """Writes metrics to the run folder, if it is this process's, and passes everything on to whoever watches."""

    def __init__(self, folder: RunFolder | None, observer: Observer | None):
        self.folder, self.observer = folder, observer
        self.last_validation: dict[str, float] | None = None

    def keep_until(self, iteration: int) -> None:
        """Drop the rows that are about to be written again."""
        if self.folder:
            self.folder.keep_metrics_until(iteration)

    def start(self, iteration: int, total: int) -> None:
        if self.observer:
            self.observer.start(iteration, total)

    def progress(self, iteration: int, figures: dict[str, float]) -> None:
        if self.observer:
            self.observer.progress(iteration, figures)

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            self.last_validation = row.get("validation", self.last_validation)
        if self.folder:
            self.folder.add_rows(rows)
        if self.observer:
            self.observer.rows(rows)


def _best_row(folder: RunFolder) -> dict[str, Any] | None:
    """The validation that was best; of equals the first, as while training."""
    rows = [row for row in read_jsonl(folder.metrics) if "validation" in row]
    best = max(rows, key=lambda row: score(row["validation"]), default=None)
    return None if best is None else {"iteration": best["iteration"], **best["validation"]}
