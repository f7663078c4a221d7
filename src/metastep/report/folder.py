"""Read a run folder into one record; files may be missing or damaged, the rest is still read."""

import dataclasses
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from metastep._errors import InputError
from metastep._records import read_json, read_jsonl
from metastep.report._format import as_number

RECORDS = ("config", "rates", "status", "evaluation")

Examples = dict[str, Any]
"""The arrays of examples.npz by name, and `kind` as a string."""

# The arrays each kind of example must hold, with their number of axes (tasks first).
EXAMPLE_ARRAYS: dict[str, dict[str, int]] = {
    "curves": {
        "grid": 2,
        "truth": 2,
        "before": 2,
        "after": 2,
        "support_x": 2,
        "support_y": 2,
    },
    "images": {
        "support_x": 5,
        "support_y": 2,
        "query_x": 5,
        "query_y": 2,
        "before": 3,
        "after": 3,
    },
    "scatter": {"query_y": 2, "before": 2, "after": 2},
}


# Rows of metrics.jsonl that are not means over a window of training.
_KINDS = ("validation", "edge", "incident", "decision")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run folder holds; a record whose file is missing is empty, and `notes` says why.

    The rows of metrics.jsonl are taken apart: means over training windows (`rows`), validations, measured edges of
    the meta rate, what the guard mended, and what the schedule of the meta rate decided.
    """

    config: dict[str, Any]
    rates: dict[str, Any]
    status: dict[str, Any]
    evaluation: dict[str, Any]
    rows: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    edges: list[dict[str, Any]]
    incidents: list[dict[str, Any]]
    decisions: list[dict[str, Any]]
    examples: Examples | None
    notes: tuple[str, ...]


def read_run(path: Path) -> Run:
    """Read all that `path` holds of a run.

    Raises
    ------
    InputError
        When `path` is not a folder, or holds none of the files of a run.
    """
    files = [*(f"{name}.json" for name in RECORDS), "metrics.jsonl"]
    if not path.is_dir():
        raise InputError(f"run folder {path} does not exist; give the folder that --out named")
    if not any((path / name).exists() for name in files):
        raise InputError(f"{path} is not a run folder: it holds none of {', '.join(files)}")
    notes: list[str] = []
    records = {name: _read_record(path / f"{name}.json", notes) for name in RECORDS}
    rows = [row for row in read_jsonl(path / "metrics.jsonl") if _has_iteration(row)]
    unread = _number_of_lines(path / "metrics.jsonl") - len(rows)
    if unread:
        notes.append(f"{unread} line(s) of metrics.jsonl could not be read; they are left out")
    return Run(
        **records,
        rows=[row for row in rows if not any(kind in row for kind in _KINDS)],
        validation=_rows_of(rows, "validation"),
        edges=_rows_of(rows, "edge"),
        incidents=_rows_of(rows, "incident"),
        decisions=_rows_of(rows, "decision"),
        examples=_read_examples(path / "examples.npz", notes),
        notes=tuple(notes),
    )


def _read_record(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        record = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        notes.append(f"{path.name} could not be read ({error}); it is left out")
        return {}
    if not isinstance(record, dict):
        notes.append(f"{path.name} does not hold a JSON object; it is left out")
        return {}
    return record


def _number_of_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def _has_iteration(row: Any) -> bool:
    return isinstance(row, dict) and math.isfinite(as_number(row.get("iteration")))


def _rows_of(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The rows of one kind, each with the iteration it was written at."""
    return [
        (row[kind] if isinstance(row[kind], dict) else {}) | {"iteration": row["iteration"]}
        for row in rows
        if kind in row
    ]


def _read_examples(path: Path, notes: list[str]) -> Examples | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            examples: Examples = {name: arrays[name] for name in arrays.files}
        if not examples:  # tasks that nobody knows how to draw
            return None
        examples["kind"] = str(examples.get("kind"))
        check_examples(examples)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        notes.append(f"examples.npz could not be read ({error}); the pictures are left out")
        return None
    return examples


def check_examples(examples: Examples) -> None:
    """Raise unless the arrays are those of their kind, with as many axes as it asks for.

    Raises
    ------
    InputError
        When the kind is unknown, an array is missing or has the wrong number of axes, or the arrays
        do not agree on the number of tasks.
    """
    kind = examples.get("kind")
    if not isinstance(kind, str) or kind not in EXAMPLE_ARRAYS:
        raise InputError(
            f"kind of examples is {kind!r}; choose one of: {', '.join(EXAMPLE_ARRAYS)}"
        )
    for name, axes in EXAMPLE_ARRAYS[kind].items():
        if name not in examples:
            raise InputError(f"examples of kind {kind} have no array {name}; add it")
        if examples[name].ndim != axes:
            shape = examples[name].shape
            raise InputError(
                f"{name} of the examples has shape {shape}; kind {kind} needs {axes} axes"
            )
    tasks = {name: len(examples[name]) for name in EXAMPLE_ARRAYS[kind]}
    if len(set(tasks.values())) != 1:
        raise InputError(f"arrays of the examples disagree on the number of tasks: {tasks}")
