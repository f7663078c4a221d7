"""What is in a data set, in a form that JSON can hold and that `load_rows` can check against."""

from typing import Any

import numpy as np

from metastep.datasets.containers import ImageClasses, ImageSplits, TableSplits, TaskTable
from metastep.datasets.targets import KIND_RULE

MAX_LISTED = 20
"""Most names, columns or labels listed one by one; counts are always of all of them."""

Data = ImageClasses | ImageSplits | TaskTable | TableSplits


def describe(data: Data) -> dict[str, Any]:
    """Sizes, shapes, columns, labels and value ranges of a data set, as plain Python values.

    Returns
    -------
    For images `kind` "images", `feature_shape` (height, width, channels), `num_classes`,
    `num_images`, `images_per_class` (min, median, max), `value_range`, `classes`.
    For tables `kind` "regression" or "classification", `feature_shape`, `num_outputs`, `x_names`,
    `y_names`, `left_out`, `labels`, `num_tasks`, `num_rows`, `rows_per_task`, `one_row_tasks`, `columns` and
    `targets` (name, min, max of each), `rows_per_label`, `tasks`, and `kind_rule`.
    For splits what the parts share, and `splits` with each part's own description.
    """
    if isinstance(data, ImageSplits | TableSplits):
        parts = {"train": data.train, "validation": data.validation, "test": data.test}
        described = {name: describe(part) for name, part in parts.items()}
        shared = (
            "kind",
            "feature_shape",
            "num_outputs",
            "x_names",
            "y_names",
            "left_out",
            "labels",
        )
        common = {key: described["train"][key] for key in shared if key in described["train"]}
        return {**common, "splits": described}
    return _describe_images(data) if isinstance(data, ImageClasses) else _describe_table(data)


def _describe_images(data: ImageClasses) -> dict[str, Any]:
    return {
        "kind": "images",
        "feature_shape": list(data.images.shape[1:]),
        "num_classes": data.num_classes,
        "num_images": len(data.images),
        "images_per_class": _spread(data.counts),
        "value_range": _range(data.images),
        "classes": list(data.names[:MAX_LISTED]),
    }


def _describe_table(data: TaskTable) -> dict[str, Any]:
    described: dict[str, Any] = {
        "kind": data.kind,
        "kind_rule": KIND_RULE,
        "feature_shape": list(data.feature_shape),
        "num_outputs": data.num_outputs,
        "x_names": list(data.x_names),
        "y_names": list(data.y_names),
        "left_out": list(data.left_out),
        "labels": list(data.labels),
        "num_tasks": data.num_tasks,
        "num_rows": len(data.x),
        "rows_per_task": _spread(data.counts),
        "one_row_tasks": int((data.counts == 1).sum()),
        "x_range": _range(data.x),
        "columns": _columns(data.x, data.x_names, "x"),
        "tasks": list(data.names[:MAX_LISTED]),
    }
    if data.kind == "regression":
        described["targets"] = _columns(data.y, data.y_names, "y")
    else:
        rows = np.bincount(data.y, minlength=len(data.labels))
        listed = zip(data.labels[:MAX_LISTED], rows.tolist(), strict=False)
        described["rows_per_label"] = dict(listed)
    return described


def _columns(values: np.ndarray, names: tuple[str, ...], what: str) -> list[dict[str, Any]]:
    """Name and range of each column of a (rows, columns) array; nothing for images and the like."""
    if values.ndim != 2:
        return []
    if len(names) != values.shape[1]:
        names = tuple(f"{what}[{index}]" for index in range(values.shape[1]))
    ranges = zip(names, values.min(axis=0).tolist(), values.max(axis=0).tolist(), strict=True)
    return [{"name": name, "min": low, "max": high} for name, low, high in ranges][:MAX_LISTED]


def _spread(counts: np.ndarray) -> dict[str, float]:
    return {
        "min": int(counts.min()),
        "median": float(np.median(counts)),
        "max": int(counts.max()),
    }


def _range(values: np.ndarray) -> list[float]:
    return [values.min().item(), values.max().item()]
