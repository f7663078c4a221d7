"""The default schedule of a run: it says when the meta rate begins to fall, once, and a resumed run says the same."""

import jax.numpy as jnp
import pytest

from metastep._records import read_jsonl
from metastep.models import linear
from metastep.report import write_report
from metastep.tasks import MixedLinear
from metastep.train import RunFolder, TrainConfig, resume, train

# A loss that starts at about its floor falls no further: adapted linear tasks with much noise.
TASKS = MixedLinear(centre=jnp.ones(2), shots=20, queries=20, noise=0.5)
OPTIONS = {
    "tasks": TASKS, "model": linear((2,), 1), "alpha": 0.2, "optimizer": "relative-adam", "meta_lr": 0.1,
    "schedule": "until-flat", "tasks_per_step": 40, "eval_tasks": 4, "iterations": 1_000, "log_every": 75,
}  # fmt: skip


def rows_of(folder: RunFolder, kind: str) -> list[dict]:
    return [row for row in read_jsonl(folder.metrics) if kind in row]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("flat") / "run")
    train(TrainConfig(**OPTIONS), folder)
    return folder


def test_the_fall_is_told_once_and_the_meta_rate_falls_from_there(finished):
    (told,) = rows_of(finished, "decision")
    since = told["decision"]["iteration"]
    # The first check is at a fifth of the run; at four fifths the rate falls anyway.
    assert 200 <= since < 800
    assert told["iteration"] - 75 < since <= told["iteration"]
    assert f"meta-step {since}: the training loss is flat" in told["decision"]["text"]
    for row in rows_of(finished, "meta_lr"):
        last = row["iteration"] - 0.5  # a row tells the rate of its last meta-step, half a step in
        if row["iteration"] > since:
            share = min((1_000 - last) / (1_000 - since), 1)
            assert row["meta_lr"] == pytest.approx(0.1 * share, rel=1e-4)
        elif row["iteration"] > 50:
            assert row["meta_lr"] == pytest.approx(0.1, rel=1e-5)


def test_the_report_says_so(finished):
    assert "the training loss is flat" in write_report(finished.path).read_text()


def test_a_longer_run_goes_on_falling_from_where_it_was_found_flat(finished, tmp_path):
    folder = RunFolder(tmp_path / "run")
    train(TrainConfig(**OPTIONS | {"iterations": 900}), folder)
    first = rows_of(folder, "decision")
    resume(folder, iterations=1_200, tasks=TASKS, model=OPTIONS["model"])
    assert rows_of(folder, "decision") == first


def test_other_schedules_decide_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run")
    train(TrainConfig(**OPTIONS | {"schedule": "wsd"}), folder)
    assert rows_of(folder, "decision") == []
