"""Runs as users have them: they finish, resume to the same bits, stop when asked, and say why they diverge."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from metastep._errors import DataError, DivergenceError, InputError
from metastep._records import read_json, read_jsonl
from metastep.train import RunFolder, TrainConfig, evaluate_run, load_run, loop, resume, step, train
from metastep.train.build import build_learner
from metastep.train.checkpoint import Checkpoints
from metastep.train.config import PRESETS, check_config, with_preset
from metastep.train.state import initial_state

SMALL = {
    "tasks": "sinusoid", "hidden": (8,), "shots": 4, "tasks_per_step": 3, "iterations": 60,
    "log_every": 7, "eval_every": 20, "eval_tasks": 4,
}  # fmt: skip


def small(**changes) -> TrainConfig:
    return TrainConfig(**(SMALL | {"alpha": 0.01} | changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run, trained once for all tests that only read it."""
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    train(small(), folder)
    return folder


def final_leaves(folder: RunFolder) -> list[np.ndarray]:
    config, description, _ = folder.read_config()
    rates = read_json(folder.rates)
    learner = build_learner(config, description, rates["alpha_chosen"], rates["meta_lr"])
    checkpoints = Checkpoints(folder.checkpoints)
    try:
        state = checkpoints.restore(initial_state(learner, jax.random.key(0)))
    finally:
        checkpoints.close()
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def without_times(folder: RunFolder) -> list[dict]:
    clocks = ("seconds", "steps_per_second")
    return [{k: v for k, v in row.items() if k not in clocks} for row in read_jsonl(folder.metrics)]


class StopAt:
    """An observer that sends Ctrl-C once an iteration is reached."""

    def __init__(self, iteration: int):
        self.iteration = iteration

    def start(self, iteration, total):
        pass

    def progress(self, iteration, figures):
        if self.iteration is not None and iteration >= self.iteration:
            self.iteration = None
            os.kill(os.getpid(), signal.SIGINT)

    def rows(self, rows):
        pass


def test_a_run_leaves_what_reports_need(tmp_path):
    result = train(small(alpha="auto"), RunFolder(tmp_path / "run"), command="metastep train")
    folder = RunFolder(tmp_path / "run")
    assert result.status == "finished"
    assert result.iterations == 60
    rates = read_json(folder.rates)
    low, high = rates["alpha_interval"]
    assert low < rates["alpha"] < high
    assert rates["alpha_chosen"] == result.alpha
    rows = list(read_jsonl(folder.metrics))
    logged = [row["iteration"] for row in rows if "loss" in row]
    assert logged == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert [r["iteration"] for r in rows if "validation" in r] == [20, 40, 60]
    assert "accuracy" not in rows[0]
    assert np.load(folder.examples)["kind"] == "curves"
    assert read_json(folder.status)["best"]["iteration"] in (20, 40, 60)


def test_training_learns(tmp_path):
    # Power: the same test tasks, judged with the parameters of 1 step and of 600.
    losses = []
    for iterations in (1, 600):
        folder = RunFolder(tmp_path / str(iterations))
        train(
            small(iterations=iterations, hidden=(20, 20), tasks_per_step=10, meta_lr=3e-3), folder
        )
        evaluation, _ = evaluate_run(load_run(folder, "latest"), num_tasks=100)
        losses.append(evaluation.after.loss.mean)
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("stop_at", [1, 21, 47])
def test_resume_ends_bit_identical(tmp_path, whole, stop_at):
    # Interrupted in the middle of a logging window, right after a validation, and at the very start. The
    # optimiser's moments, the window sums and the metrics must all agree to the last bit.
    parts = RunFolder(tmp_path / "parts")
    interrupted = train(small(), parts, StopAt(stop_at))
    assert interrupted.status == "interrupted"
    assert stop_at <= interrupted.iterations < 60
    assert resume(parts).status == "finished"
    for a, b in zip(final_leaves(whole), final_leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_times(whole) == without_times(parts)
    assert read_json(whole.status)["best"] == read_json(parts.status)["best"]


class FailAt(StopAt):
    """An observer that breaks off without a chance to write anything, as a kill does."""

    def progress(self, iteration, figures):
        if iteration >= self.iteration:
            raise ZeroDivisionError


def test_a_run_that_ends_before_its_first_checkpoint_begins_anew(tmp_path, whole):
    # The first checkpoint comes after the first dispatch; without it, seed and rates say all there is to say.
    parts = RunFolder(tmp_path / "parts")
    with pytest.raises(ZeroDivisionError):
        train(small(), parts, FailAt(1))
    assert parts.newest_checkpoint() is None
    assert resume(parts).status == "finished"
    for a, b in zip(final_leaves(whole), final_leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_times(whole) == without_times(parts)


def test_rows_are_the_same_however_many_end_in_a_dispatch(tmp_path, monkeypatch):
    # 23 is no multiple of 2: the last row is a short one. Room for 5 rows is less than a dispatch could bring.
    rows = {}
    monkeypatch.setattr(step, "_MOST_ROWS", 5)
    for size in (1, 4, 10_000):
        monkeypatch.setattr(loop.Pace, "dispatch_size", lambda pace, size=size: size)
        step._RECENT.clear()
        folder = RunFolder(tmp_path / str(size))
        train(small(iterations=23, log_every=2, eval_every=100), folder)
        rows[size] = without_times(folder)
    ends = [row["iteration"] for row in rows[1] if "loss" in row]
    assert ends == [*range(2, 23, 2), 23]
    assert rows[1] == rows[4] == rows[10_000]


@pytest.mark.slow
def test_a_killed_process_resumes_bit_identical(tmp_path):
    # SIGKILL gives no chance to clean up: what is on disk at that moment must do.
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    options = {
        "iterations": 30_000,
        "log_every": 500,
        "eval_every": 10_000,
        "checkpoint_seconds": 0.2,
    }
    script = (
        "import sys; from pathlib import Path; from metastep.train import *;"
        f"train(TrainConfig(**{SMALL | {'alpha': 0.01} | options!r}), RunFolder(Path(sys.argv[1])))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(killed.path)])
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        steps = [int(p.name) for p in killed.checkpoints.glob("*") if p.name.isdigit()]
        if steps and max(steps) > 1000:
            break
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    resume(killed)
    train(small(**options), whole)
    for a, b in zip(final_leaves(whole), final_leaves(killed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert without_times(whole) == without_times(killed)


def test_resume_can_go_further(tmp_path):
    # With a constant meta rate the first 60 steps of a longer run are the same.
    folder = RunFolder(tmp_path / "run")
    train(small(meta_lr=1e-3), folder)
    assert resume(folder, iterations=80).iterations == 80
    longer = RunFolder(tmp_path / "longer")
    train(small(iterations=80, meta_lr=1e-3), longer)
    found, wanted = final_leaves(folder), final_leaves(longer)
    # The window of the last row was closed at 60 in one run only; everything trained is the same.
    for a, b in zip(found[1:5], wanted[1:5], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "loop", "advice"),
    [
        ({"alpha": 1e30}, "inner loop", "lower --alpha, now 1e+30"),
        ({"meta_lr": 1e30, "optimizer": "sgd"}, "outer loop", "lower --meta-lr, now 1e+30"),
    ],
)
def test_divergence_names_the_loop_and_the_rate(tmp_path, changes, loop, advice):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(DivergenceError, match=rf"the {loop} .*{advice.replace('+', '.')}"):
        train(small(back_offs=0, **changes), folder)
    status = read_json(folder.status)
    assert status["status"] == "diverged"
    assert loop in status["message"]


def test_divergence_keeps_the_last_good_checkpoint(tmp_path):
    # Healthy for 60 steps, then continued with tasks whose targets are beyond all bounds.
    table = tmp_path / "tasks.npz"
    x = np.random.default_rng(0).normal(size=(90, 1)).astype(np.float32)
    task = np.repeat(np.arange(9), 10)
    np.savez(table, x=x, y=np.sin(x[:, 0]) + task, task=task)
    folder = RunFolder(tmp_path / "run")
    options = {"tasks": str(table), "kind": "regression", "standardise": False}
    train(small(**options), folder)
    tested = folder.read_config()[1]["test_tasks"]
    np.savez(table, x=x, y=np.where(np.isin(task.astype(str), tested), 0, 1e30), task=task)
    with pytest.raises(DivergenceError, match=r"Last good checkpoint: iteration 60\."):
        resume(folder, iterations=100)
    assert final_leaves(folder)[0] == 60
    assert load_run(folder).iteration in (20, 40, 60)


def test_seeds_matter_and_repeat(tmp_path):
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        folder = RunFolder(tmp_path / name)
        train(small(seed=seed, iterations=5), folder)
        runs[name] = final_leaves(folder)
    same = [np.array_equal(x, y) for x, y in zip(runs["a"], runs["b"], strict=True)]
    other = [np.array_equal(x, y) for x, y in zip(runs["a"], runs["c"], strict=True)]
    assert all(same)
    assert not all(other)


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    folder = RunFolder(tmp_path / "run")
    train(small(iterations=2), folder)
    with pytest.raises(InputError, match="already holds a run; --resume goes on with it"):
        train(small(iterations=2), folder)
    train(small(iterations=3), folder, overwrite=True)
    assert final_leaves(folder)[0] == 3
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("do not delete")
    with pytest.raises(InputError, match="is not empty and not the folder of a run"):
        train(small(iterations=2), RunFolder(other), overwrite=True)
    assert (other / "thesis.txt").exists()


def test_folders_that_are_no_runs(tmp_path):
    with pytest.raises(DataError, match=r"is not the folder of a run: it has no config\.json"):
        load_run(RunFolder(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        load_run(RunFolder(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give a folder"):
        train(small(), RunFolder(tmp_path / "file"))


def test_places_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file cannot be written to; choose another folder"):
        train(small(), RunFolder(tmp_path / "file" / "run"))

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=r"cannot be created \(Permission denied\)"):
        train(small(), RunFolder(tmp_path / "run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0.0}, "--alpha is 0.0; it must be a finite number above 0"),
        ({"alpha": -1.0}, "--alpha is -1.0"),
        ({"alpha": float("nan")}, "--alpha is nan"),
        ({"meta_lr": float("inf")}, "--meta-lr is inf"),
        ({"steps": 0}, "--steps is 0; it must be a whole number of at least 1"),
        ({"shots": -3}, "--shots is -3"),
        ({"optimizer": "adma"}, "--optimizer is 'adma'; choose one of: adam"),
        ({"algorithm": "mamal"}, "--algorithm is 'mamal'; choose one of: anil"),
        ({"tasks_at_once": 2}, "--tasks-at-once 2 does not divide --tasks-per-step 3"),
        ({"tasks": "sinusiod"}, "sinusiod is neither a known name .* nor an existing path"),
        ({"model": "conv4"}, "--model conv4 needs images"),
    ],
)
def test_bad_options_are_named_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(small(**changes), RunFolder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_presets_convert_the_published_rates_to_a_mean_loss():
    # The original code sums the cross-entropy over the ways of a task, so its rates are per-way.
    assert PRESETS["omniglot-5w1s"]["alpha"] == pytest.approx(5 * 0.4)
    assert PRESETS["omniglot-20w1s"]["alpha"] == pytest.approx(20 * 0.1)
    config = with_preset(TrainConfig(tasks="omniglot", preset="omniglot-20w1s", iterations=10))
    assert (config.ways, config.steps, config.iterations) == (20, 5, 10)
    for name in PRESETS:
        check_config(with_preset(TrainConfig(tasks="omniglot", preset=name)))


def test_evaluation_steps_and_intervals(whole):
    run = load_run(whole)
    few, _ = evaluate_run(run, num_tasks=50, steps=3)
    many, _ = evaluate_run(run, num_tasks=800, steps=3)
    assert [judgement.steps for judgement in many.curve] == [0, 1, 2, 3]
    # Four times less width for sixteen times the tasks, give or take the spread of the estimate.
    assert many.after.loss.ci95 == pytest.approx(few.after.loss.ci95 / 4, rel=0.5)
    assert "accuracy" not in many.record()
    again, _ = evaluate_run(run, num_tasks=50, steps=3)
    assert again == few
    other, _ = evaluate_run(run, num_tasks=50, steps=3, seed=9)
    assert other != few
    with pytest.raises(InputError, match="num_tasks is 0"):
        evaluate_run(run, num_tasks=0)


def test_path_of_repository_is_not_in_a_run(tmp_path):
    # A run folder can be sent to a colleague: config.json names no place but those the user gave.
    folder = RunFolder(tmp_path / "run")
    train(small(iterations=2), folder)
    assert str(Path.home()) not in folder.config.read_text()
