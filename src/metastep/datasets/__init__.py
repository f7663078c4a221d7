"""Bytes to NumPy arrays: the only part of metastep that opens data files or the network.

Functions load when they are first used: tasks that are drawn need no reader of images or tables.
"""

import importlib
from typing import TYPE_CHECKING, Any

from metastep.datasets.containers import (
    ImageClasses,
    ImageSplits,
    Kind,
    TableSplits,
    TaskTable,
)
from metastep.datasets.paths import TABLE_SUFFIXES, data_root

if TYPE_CHECKING:
    from metastep.datasets.archives import open_zip
    from metastep.datasets.class_folders import load_class_folders
    from metastep.datasets.describe import describe
    from metastep.datasets.fetch import Fetched, fetch_omniglot
    from metastep.datasets.load import load_path
    from metastep.datasets.npz import load_npz
    from metastep.datasets.omniglot import load_omniglot
    from metastep.datasets.rows import load_rows
    from metastep.datasets.splits import split_classes, split_indices, split_tasks
    from metastep.datasets.tables import load_table

_HOMES = {
    "Fetched": "fetch",
    "describe": "describe",
    "fetch_omniglot": "fetch",
    "load_class_folders": "class_folders",
    "load_npz": "npz",
    "load_omniglot": "omniglot",
    "load_path": "load",
    "load_rows": "rows",
    "load_table": "tables",
    "open_zip": "archives",
    "split_classes": "splits",
    "split_indices": "splits",
    "split_tasks": "splits",
}

__all__ = [
    "TABLE_SUFFIXES",
    "Fetched",
    "ImageClasses",
    "ImageSplits",
    "Kind",
    "TableSplits",
    "TaskTable",
    "data_root",
    "describe",
    "fetch_omniglot",
    "load_class_folders",
    "load_npz",
    "load_omniglot",
    "load_path",
    "load_rows",
    "load_table",
    "open_zip",
    "split_classes",
    "split_indices",
    "split_tasks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # over a module of the same name, which importing has just put there
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
