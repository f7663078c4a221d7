"""Results on their way to files: estimates, plain values, and files that survive a kill."""

import dataclasses
import json
import math
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given
from hypothesis import strategies as st

from metastep._records import (
    Estimate,
    read_json,
    read_jsonl,
    to_plain,
    write_bytes,
    write_json,
)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_estimate_is_mean_and_normal_interval(values):
    estimate = Estimate.of(values)
    assert estimate.mean == pytest.approx(np.mean(values), rel=1e-12, abs=1e-6)
    expected = scipy.stats.norm.ppf(0.975) * scipy.stats.sem(values)
    assert estimate.ci95 == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_estimate_of_any_kind_of_values():
    for values in ([1.0, 3.0], (1, 3), np.array([1.0, 3.0], np.float32), jnp.array([1.0, 3.0])):
        assert Estimate.of(values).mean == 2.0
        assert type(Estimate.of(values).mean) is float
        assert Estimate.of(values).ci95 == pytest.approx(1.959964)  # sd sqrt 2 over sqrt 2


def test_one_value_says_nothing_of_its_error():
    assert Estimate.of([4.0]) == Estimate(4.0, math.inf)


@pytest.mark.parametrize(
    "values", [[1e200, -1e200], [1e308] * 3, [math.inf, 1.0], [math.inf, -math.inf]]
)
def test_an_exploded_loss_is_an_estimate_still(values):
    # What a diverged model leaves behind must reach the report, not end in an OverflowError.
    estimate = Estimate.of(values)
    assert math.isnan(estimate.ci95) or estimate.ci95 >= 0


@dataclasses.dataclass
class Inner:
    path: Path
    value: object


@dataclasses.dataclass
class Outer:
    inner: Inner
    many: tuple


def test_to_plain_reaches_every_corner():
    record = Outer(
        Inner(Path("a") / "b", np.float32(0.5)),
        ({1: jnp.arange(2), "x": np.bool_(True)}, None, "s", Estimate(1.0, math.inf)),
    )
    plain = to_plain(record)
    assert plain == {
        "inner": {"path": os.path.join("a", "b"), "value": 0.5},
        "many": [{"1": [0, 1], "x": True}, None, "s", {"mean": 1.0, "ci95": None}],
    }
    assert plain["many"][0]["x"] is True
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("inf"), jnp.asarray(jnp.nan)],
)
def test_numbers_json_lacks_become_none(value):
    assert to_plain(value) is None
    assert to_plain([np.array([1.0, math.nan])]) == [[1.0, None]]


def test_a_class_is_not_mistaken_for_its_instance():
    assert to_plain(Inner) is Inner


def test_json_survives_the_round_trip(tmp_path):
    path = tmp_path / "new" / "folder" / "record.json"
    write_json(path, {"a": [1, 2.5, None, "ü"], "b": math.nan})
    assert read_json(path) == {"a": [1, 2.5, None, "ü"], "b": None}
    assert path.read_text().endswith("}\n")


def test_files_are_readable_by_others(tmp_path):
    write_bytes(tmp_path / "file", b"new")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


@pytest.mark.parametrize("stage", ["fdopen", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, stage, error):
    path = tmp_path / "status.json"
    write_bytes(path, b"old")

    class HalfFile:
        def __init__(self, handle, mode):
            self.file = open(handle, mode)  # noqa: SIM115 - closed by __exit__

        def __enter__(self):
            return self

        def __exit__(self, *details):
            self.file.close()

        def write(self, content):
            self.file.write(content[: len(content) // 2])
            raise error

    def fail(*arguments):
        raise error

    monkeypatch.setattr(os, stage, HalfFile if stage == "fdopen" else fail)
    with pytest.raises(type(error)):
        write_bytes(path, b"new content")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_a_kill_just_before_the_end_leaves_the_old_file(tmp_path):
    # SIGKILL runs no cleanup: only the order "write elsewhere, then rename" helps.
    path = tmp_path / "status.json"
    path.write_bytes(b"old")
    program = (
        "import os, signal, pathlib, sys\n"
        "from metastep._records import write_bytes\n"
        "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_bytes(pathlib.Path(sys.argv[1]), b'new' * 100000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


ROWS = st.lists(
    st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=4), max_size=3),
    max_size=4,
)


@example(rows=[{}, {"a": "ü"}], cut=11, ascii_only=False)  # half a character
@example(rows=[{"a": "\u2028"}, {}], cut=200, ascii_only=False)  # a line separator within a line
@given(rows=ROWS, cut=st.integers(0, 200), ascii_only=st.booleans())
def test_a_file_cut_anywhere_gives_its_complete_lines(tmp_path_factory, rows, cut, ascii_only):
    lines = [json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows]
    content = "".join(lines).encode()[:cut]
    ends = np.cumsum([len(line.encode()) for line in lines])
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    path.write_bytes(content)
    complete = int(np.sum(ends - 1 <= len(content)))  # a line without its newline is whole too
    assert list(read_jsonl(path)) == rows[:complete]


def test_no_file_has_no_lines(tmp_path):
    assert list(read_jsonl(tmp_path / "none.jsonl")) == []


def test_a_damaged_line_costs_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \xff\xfe}\n{"a": 3}\n')
    assert list(read_jsonl(path)) == [{"a": 1}, {"a": 3}]
