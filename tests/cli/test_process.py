"""What a process settles first: which starts count as the same, and that the second reads ahead."""

import os
import subprocess
import sys

import pytest

from metastep.cli.process import settle_process


@pytest.fixture
def named(monkeypatch, tmp_path):
    """The name under which a command's programs are read ahead; None for none."""
    names = []
    monkeypatch.delenv("METASTEP_KEEP_PROGRAMS", raising=False)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("metastep._kept.keep_programs", lambda folder: None)
    monkeypatch.setattr("metastep._kept.read_ahead", names.append)

    def name(command):
        names.clear()
        settle_process(command.split())
        return names[0] if names else None

    return name


def test_seed_and_folder_do_not_make_another_start(named):
    start = named("train sinusoid --hidden 8")
    for more in ("--out a", "--out=b", "--seed 3", "--seed=-1 --out c"):
        assert named(f"train sinusoid {more} --hidden 8") == start
    for other in (
        "rates sinusoid --hidden 8",
        "train waves --hidden 8",
        "train sinusoid --hidden 16",
    ):
        assert named(other) != start


@pytest.mark.parametrize(
    "words", ["--devices 2", "--devices=2", "--distributed", "--coordinator h:1"]
)
def test_nothing_looks_at_devices_before_it_is_settled_which_there_are(named, words):
    assert named(f"train sinusoid {words}") is None


def test_what_settles_a_process_for_several_commands_reads_nothing_ahead(named):
    assert named("") is None


def test_a_second_start_reads_what_the_first_wrote_and_says_the_same(tmp_path):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    del environment["METASTEP_KEEP_PROGRAMS"]
    command = "metastep rates sinusoid --hidden 4 --shots 2 --num-tasks 16 --json"
    told, files = [], []
    for _ in range(2):
        run = [sys.executable, "-m", *command.split()]
        told.append(
            subprocess.run(run, env=environment, capture_output=True, text=True, check=True).stdout
        )
        files.append(
            {path.name: path.stat().st_mtime_ns for path in (tmp_path / "programs").iterdir()}
        )
    assert told[0] == told[1]
    assert files[0] == files[1]
    assert sum(name.endswith(".start") for name in files[0]) == 1
    (note,) = (tmp_path / "programs").glob("*.start")
    assert set(note.read_text().split()) | {note.name} == set(files[0])
