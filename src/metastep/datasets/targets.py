"""From raw arrays to a `TaskTable`: which kind of target, which labels, rows sorted by task."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metastep._errors import DataError, check_choice
from metastep.datasets.containers import Kind, TaskTable

MAX_LABELS = 20
"""Whole-number targets with more different values than this are taken for quantities."""

KIND_RULE = (
    f"text, true/false and whole numbers of at most {MAX_LABELS} different values are classes, "
    "all other numbers are quantities (regression); `kind` overrules this"
)
"""How classification is told from regression when nobody says which it is."""


class RawRows(NamedTuple):
    """Columns as read from a file, before anything is known to be right about them.

    x : (rows, *features); y : (rows,) or (rows, outputs); task : (rows,)
    Text is held as `str` objects or as NumPy text; first_row is the number that errors count from,
    left_out names the columns that are not used.
    """

    path: Path
    x: np.ndarray
    y: np.ndarray
    task: np.ndarray
    x_names: tuple[str, ...] = ()
    y_names: tuple[str, ...] = ("y",)
    first_row: int = 0
    left_out: tuple[str, ...] = ()


def build_table(raw: RawRows, kind: Kind | None = None) -> TaskTable:
    """Check the raw columns, sort the rows by task (keeping their order within one), encode y.

    Raises
    ------
    DataError
        For no rows, fewer than two tasks, values that are not finite, or targets that don't fit
        `kind`.
    """
    if raw.x.ndim > 0 and len(raw.x) == 0:
        raise DataError(f"{raw.path} holds no rows")
    x = finite_features(raw.path, raw.x, raw.x_names, raw.first_row)
    decided = decide_kind(raw.path, raw.y, kind)
    labels: tuple[str, ...] = ()
    if decided == "classification":
        y, labels = encode_labels(raw.path, raw.y, raw.y_names[0], raw.first_row)
    else:
        y = finite_targets(raw.path, raw.y, raw.y_names, raw.first_row)
    codes, names = group_codes(raw.path, raw.task, raw.first_row)
    if len(names) < 2:
        raise DataError(
            f"{raw.path} holds one task only ({', '.join(names)}); meta-learning needs several, "
            "so check which column says the task of a row"
        )
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes).astype(np.int64)
    columns = (raw.x_names, raw.y_names, labels, raw.left_out)
    return TaskTable(x[order], y[order], counts, names, decided, *columns)


def decide_kind(path: Path, y: np.ndarray, kind: str | None) -> Kind:
    """Regression or classification, by `kind` or else by `KIND_RULE`."""
    is_wide = y.ndim > 1 and y.shape != (len(y), 1)
    if kind is not None:
        check_choice("kind", kind, ("regression", "classification"))
        if kind == "classification" and is_wide:
            raise DataError(
                f"{path}: y has shape {y.shape}; classification needs one label per row, (rows,)"
            )
        return "classification" if kind == "classification" else "regression"
    if is_text(y) or y.dtype.kind == "b":
        return "classification"
    if y.dtype.kind in "iu" and not is_wide and len(np.unique(y)) <= MAX_LABELS:
        return "classification"
    return "regression"


def is_text(values: np.ndarray) -> bool:
    """Whether an array holds text, as NumPy text or as Python strings."""
    return values.dtype.kind in "USO"


def finite_features(path: Path, x: np.ndarray, names: Sequence[str], first_row: int) -> np.ndarray:
    """Features as float32 (rows, *features), each value finite."""
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise DataError(
            f"{path}: x has shape {x.shape}; it must be (rows, features), "
            "so give a single feature an axis of its own, as x[:, None] does"
        )
    return _finite(path, "x", x, names, first_row)


def finite_targets(path: Path, y: np.ndarray, names: Sequence[str], first_row: int) -> np.ndarray:
    """Targets as float32 (rows, outputs), each value finite."""
    if y.ndim not in (1, 2) or 0 in y.shape[1:]:
        raise DataError(f"{path}: y has shape {y.shape}; it must be (rows,) or (rows, outputs)")
    return _finite(path, "y", y.reshape(len(y), -1), names, first_row)


def encode_labels(
    path: Path,
    y: np.ndarray,
    name: str,
    first_row: int,
    labels: Sequence[str] | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as (rows,) int32 indices into a sorted tuple of texts, or into the `labels` given.

    Whole numbers sort as numbers and true/false as false, true; 2.0 counts as 2.

    Raises
    ------
    DataError
        When a label is missing, a fraction, or not among `labels`.
    """
    if y.ndim != 1 and y.shape != (len(y), 1):
        raise DataError(f"{path}: y has shape {y.shape}; class labels must have shape (rows,)")
    values = _discrete(path, name, y.reshape(len(y)), first_row, "a class label")
    unique, codes = np.unique(values, return_inverse=True)
    found = tuple(_text(value) for value in unique.tolist())
    if labels is None:
        return codes.astype(np.int32), found
    position = {label: index for index, label in enumerate(labels)}
    for index, label in enumerate(found):
        if label not in position:
            row = first_row + int(np.argmax(codes == index))
            raise DataError(
                f"{path}: {name!r} is {label!r} in row {row}, a label the model was not trained "
                f"with; it knows {', '.join(labels)}"
            )
    mapping = np.asarray([position[label] for label in found], np.int32)
    return mapping[codes], tuple(labels)


def group_codes(path: Path, task: np.ndarray, first_row: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number of each row's task, (rows,) int64, and the names of the tasks in sorted order."""
    if task.ndim != 1:
        raise DataError(f"{path}: task has shape {task.shape}; it must be (rows,)")
    values = _discrete(path, "task", task, first_row, "a task")
    unique, codes = np.unique(values, return_inverse=True)
    return codes.astype(np.int64), tuple(_text(value) for value in unique.tolist())


def _finite(
    path: Path, what: str, values: np.ndarray, names: Sequence[str], first_row: int
) -> np.ndarray:
    """Numbers as float32, or an error that names the first column and row that is no number."""
    if values.dtype.kind not in "fiub":
        raise DataError(f"{path}: {what} is of type {values.dtype}; it must hold real numbers")
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(values, np.float32)
    bad = ~np.isfinite(single)
    if bad.any():
        row, *column = (int(index) for index in np.argwhere(bad)[0])
        if len(names) == values.shape[1] and len(column) == 1:
            place = f"column {names[column[0]]!r}"
        else:
            place = f"{what}[:, {', '.join(map(str, column))}]"
        raise DataError(
            f"{path}: {place} is {values[(row, *column)]} in row {first_row + row} "
            f"({int(bad.sum())} such value(s)); every value must be a finite float32, "
            "so fill or drop such rows"
        )
    return single


def _discrete(path: Path, name: str, values: np.ndarray, first_row: int, what: str) -> np.ndarray:
    """Values that can name something: text, true/false, or whole numbers, even if kept as float."""
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    if is_text(values):
        missing = values == ""
    elif values.dtype.kind == "f":
        missing = ~np.isfinite(values)
    elif values.dtype.kind in "iub":
        return values
    else:
        raise DataError(f"{path}: {name!r} is of type {values.dtype}, which is no {what[2:]}")
    if missing.any():
        row = first_row + int(np.argmax(missing))
        raise DataError(f"{path}: {name!r} is missing in row {row}; each row needs {what}")
    if values.dtype.kind != "f":
        return values
    fraction = values != np.floor(values)
    if fraction.any():
        row = int(np.argmax(fraction))
        raise DataError(
            f"{path}: {name!r} is {values[row]} in row {first_row + row}; "
            f"{what} must be text or a whole number"
        )
    return values.astype(np.int64)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
