"""The rows of one new task, checked against the data a model was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from metastep._errors import DataError
from metastep.datasets.npz import check_lengths, read_npz
from metastep.datasets.tables import (
    FIRST_ROW,
    TARGET_COLUMNS,
    TASK_COLUMN,
    feature_values,
    numeric_columns,
    read_table,
    target_values,
)
from metastep.datasets.targets import encode_labels, finite_features, finite_targets


def load_rows(
    path: str | Path, like: Mapping[str, Any], need_y: bool = True
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the support or query rows of one task.

    Parameters
    ----------
    path : an .npz file with `x` and perhaps `y`, or a .csv, .tsv or .parquet table
    like : what the model was trained on, as `describe` gives it: `kind`, `feature_shape`,
        `num_outputs` and, where they apply, `x_names`, `y_names`, `labels`, `task_column`
    need_y : raise when there is no y; a query may come without

    Returns
    -------
    x : (rows, *feature_shape) float32, or uint8 when `kind` is "images"
    y : (rows, outputs) float32 for regression; (rows,) int32 indices into `labels` for
        classification, or whole numbers from 0 for images; None when there is none

    Raises
    ------
    DataError
        When the file can't be read, lacks a column, has features of another shape, rows of several
        tasks, labels the model does not know, or values that are not finite.
    """
    path = Path(path)
    if path.suffix.lower() == ".npz":
        x, y, task = _from_npz(path, need_y)
        first_row = 0
    else:
        x, y, task = _from_table(path, like, need_y)
        first_row = FIRST_ROW
    if len(x) == 0:
        raise DataError(f"{path} holds no rows")
    if task is not None and len(np.unique(task)) > 1:
        raise DataError(
            f"{path} holds rows of {len(np.unique(task))} tasks; keep those of the one to adapt to"
        )
    if like["kind"] == "images":
        x = _as_images(path, x)
    else:
        x = finite_features(path, x, like.get("x_names", ()), first_row)
    expected = tuple(like["feature_shape"])
    if x.shape[1:] != expected:
        raise DataError(
            f"{path}: x has features of shape {x.shape[1:]}; the model was trained on {expected}"
        )
    return x, None if y is None else _as_targets(path, y, like, first_row)


def _from_npz(path: Path, need_y: bool) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    needed = ("x", "y") if need_y else ("x",)
    arrays = read_npz(path, needed, ("y", "task"))
    check_lengths(path, arrays)
    return arrays["x"], arrays.get("y"), arrays.get("task")


def _from_table(
    path: Path, like: Mapping[str, Any], need_y: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    table = read_table(path)
    task_name = like.get("task_column", TASK_COLUMN)
    y_names = list(like.get("y_names", TARGET_COLUMNS[:1]))
    x_names = list(like.get("x_names", ())) or numeric_columns(path, table, [task_name, *y_names])
    is_blank = {n: table.column(n).null_count == table.num_rows for n in table.column_names}
    has_y = need_y or not any(is_blank.get(name, True) for name in y_names)
    _check_columns(path, table, [*x_names, *(y_names if need_y else [])])
    x = feature_values(path, table, x_names)
    y = target_values(path, table, y_names, like["kind"]) if has_y else None
    if task_name in table.column_names and task_name not in x_names:
        return x, y, np.asarray(table.column(task_name).to_pylist(), dtype=str)
    return x, y, None


def _check_columns(path: Path, table: pa.Table, names: list[str]) -> None:
    """Raise unless the table has every column the model needs."""
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path} lacks the column(s) {', '.join(map(repr, missing))} the model was trained on; "
            f"it has: {', '.join(map(repr, table.column_names))}"
        )


def _as_images(path: Path, x: np.ndarray) -> np.ndarray:
    """Images as uint8 (rows, height, width, channels); grey ones may come without channels."""
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        raise DataError(
            f"{path}: x is {x.dtype} of shape {x.shape}; images must be uint8 of shape "
            "(rows, height, width, channels), with ink or light at 255 as in training"
        )
    return x[..., None] if x.ndim == 3 else x


def _as_targets(path: Path, y: np.ndarray, like: Mapping[str, Any], first_row: int) -> np.ndarray:
    if like["kind"] == "classification":
        name = next(iter(like.get("y_names", ("y",))))
        return encode_labels(path, y, name, first_row, like["labels"])[0]
    if like["kind"] == "images":
        if y.ndim != 1 or y.dtype.kind not in "iu" or y.min() < 0:
            raise DataError(
                f"{path}: y is {y.dtype} of shape {y.shape}; the classes of a task of images are "
                "whole numbers from 0, of shape (rows,)"
            )
        return y.astype(np.int32)
    targets = finite_targets(path, y, like.get("y_names", ()), first_row)
    if targets.shape[1] != like["num_outputs"]:
        raise DataError(
            f"{path}: y has {targets.shape[1]} output(s); "
            f"the model was trained on {like['num_outputs']}"
        )
    return targets
