"""Writing predictions in the format their file name asks for, and scoring them where the truth is known."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from metastep._errors import InputError
from metastep._records import write_bytes
from metastep.train import TaskPredictions

_ENDINGS = (".npz", ".csv", ".parquet")


def write_predictions(
    path: Path, predictions: dict[str, np.ndarray], description: dict[str, Any]
) -> None:
    """Write arrays (.npz), or one row per query example and one column per output (.csv, .parquet).

    Raises
    ------
    InputError
        For another ending, or a place that cannot be written to.
    """
    ending = path.suffix.lower()
    if ending not in _ENDINGS:
        raise InputError(f"--out {path}: predictions are written as {', '.join(_ENDINGS)}")
    buffer = io.BytesIO()
    if ending == ".npz":
        np.savez_compressed(buffer, **predictions)  # pyright: ignore[reportArgumentType]
    else:
        import pyarrow as pa  # a tenth of a second that training does not pay
        from pyarrow import csv, parquet

        table = pa.table(_columns(predictions, description))
        write = csv.write_csv if ending == ".csv" else parquet.write_table
        write(table, buffer)
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise InputError(f"--out {path} cannot be written: {error.strerror or error}") from error


def _columns(
    predictions: dict[str, np.ndarray], description: dict[str, Any]
) -> dict[str, np.ndarray]:
    """prediction_y, prediction_before_y, ... ; class labels by name where the table had names."""
    labels = np.asarray(description.get("labels") or [])
    outputs = description.get("y_names") or ["y"]
    columns: dict[str, np.ndarray] = {}
    for name, values in predictions.items():
        stem = name.replace("predictions", "prediction").replace("probabilities", "probability")
        if values.ndim == 1:
            columns[stem] = labels[values] if labels.size else values
        elif values.shape[1] == 1:
            columns[f"{stem}_{outputs[0]}"] = values[:, 0]
        else:
            names = labels if stem == "probability" and labels.size else range(values.shape[1])
            names = outputs if len(outputs) == values.shape[1] else names
            columns |= {f"{stem}_{n}": values[:, i] for i, n in enumerate(names)}
    return columns


def score(told: TaskPredictions, truth: np.ndarray | None, kind: str) -> dict[str, float]:
    """Mean squared error or accuracy, after and before adaptation; nothing without labels."""
    if truth is None:
        return {}
    after, before = told.predictions, told.predictions_before
    if kind == "classification":
        return {
            "accuracy": float(np.mean(after == truth)),
            "accuracy_before": float(np.mean(before == truth)),
        }
    squared = [np.square(values - truth).sum(axis=1).mean() for values in (after, before)]
    return {"mean_squared_error": float(squared[0]), "mean_squared_error_before": float(squared[1])}
