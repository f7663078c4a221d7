"""Experiments in processes of their own: what they return, tell and leave when they die."""

import itertools
import os
import sys
import textwrap

import pytest

from metastep._records import read_json, write_json
from metastep.experiments import load, run_one, runner
from metastep.experiments.side_by_side import Died, side_by_side

_WORK = """
import os, signal, sys, time
from pathlib import Path

def work(name, told):
    told("working", 1, 2)
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "exits":
        sys.exit(3)
    if name.startswith("meets"):
        mine, other = ("a", "b") if name.endswith("a") else ("b", "a")
        Path(os.environ["MEETING"], mine).touch()
        while not Path(os.environ["MEETING"], other).exists():
            time.sleep(0.01)
    if name == "waits":
        while not os.listdir(os.environ["MEETING"]):
            time.sleep(0.01)
    if name == "forever":
        Path(os.environ["MEETING"], str(os.getpid())).touch()
        while True:
            time.sleep(0.01)
    return name.upper()
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A function that another process can import."""
    (tmp_path / "work_of_a_test.py").write_text(textwrap.dedent(_WORK))
    (tmp_path / "meeting").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MEETING", str(tmp_path / "meeting"))
    import work_of_a_test  # pyright: ignore[reportMissingImports]

    yield work_of_a_test.work
    del sys.modules["work_of_a_test"]


def test_two_at_a_time_and_one_that_dies_ends_no_other(work):
    heard = []

    def tell(name):
        heard.append((name, "begun"))
        return lambda *what: heard.append((name, *what))

    names = ["meets a", "meets b", "killed", "exits", "last"]
    found = dict(side_by_side(work, names, 2, tell))
    # The first two end only if they run at the same time.
    assert found == {
        "meets a": "MEETS A", "meets b": "MEETS B", "last": "LAST",
        "killed": Died(-9), "exits": Died(3),
    }  # fmt: skip
    assert str(found["killed"]) == ("its process was ended by SIGKILL; is there too little memory?")
    assert str(found["exits"]) == "its process ended with exit status 3"
    assert [what[0] for what in heard if what[1:] == ("begun",)] == names
    assert {what[0] for what in heard if what[1:] == ("working", 1, 2)} == set(names)


def test_leaving_ends_those_that_still_run(work, tmp_path):
    found = side_by_side(work, ["forever", "waits"], 2, lambda name: lambda *what: None)
    assert next(found) == ("waits", "WAITS")
    pids = [int(path.name) for path in (tmp_path / "meeting").iterdir()]
    assert len(pids) == 1
    found.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_experiments_find_the_same_in_processes_of_their_own(tmp_path):
    names = ["zou-moments", "fallah-surrogate"]
    told = []
    records = runner.run_experiments(
        names, tmp_path / "apart", jobs=2, tell=lambda name: lambda *what: told.append(name)
    )
    assert {record["name"]: record["status"] for record in records} == dict.fromkeys(
        names, "finished"
    )
    assert set(told) == set(names)
    here = run_one.run_experiment(load(names[0]), tmp_path / "here")
    apart = read_json(tmp_path / "apart" / names[0] / "result.json")
    for key in ("claims", "files", "title", "scale"):
        assert apart[key] == here[key]
    records = (tmp_path / where / names[0] / "records.json" for where in ("here", "apart"))
    assert len({file.read_bytes() for file in records}) == 1


def test_a_process_that_died_is_recorded_and_what_it_kept_stays(tmp_path, monkeypatch):
    kept = tmp_path / "zou-moments" / "unfinished" / "part" / "0.json"
    experiment = load("zou-moments")

    def killed(work, names, jobs, tell):
        write_json(kept.parent.parent / "run.json", run_one._whose(experiment.quick, 0))
        write_json(kept, {"value": 1})
        spent = {"seconds": 60.0, "cpu_seconds": 50.0, "peak_memory_mb": 900.0}
        write_json(kept.parent.parent / "spent.json", spent)
        yield from zip(names, itertools.repeat(Died(-9)), strict=False)

    monkeypatch.setattr(runner, "side_by_side", killed)
    names = ["zou-moments", "zou-fig6"]
    records = {record["name"]: record for record in runner.run_experiments(names, tmp_path, jobs=2)}
    dead = records["zou-moments"]
    assert dead["status"].startswith("failed: its process was ended by SIGKILL")
    assert (dead["seconds"], dead["peak_memory_mb"]) == (60.0, 900.0)
    assert read_json(tmp_path / "zou-moments" / "result.json") == dead
    assert kept.exists()
    assert records["zou-fig6"]["seconds"] == 0
