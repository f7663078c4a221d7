"""Bytes to NumPy arrays: the only part of metastep that opens data files or the network."""

from metastep.datasets.archives import open_zip
from metastep.datasets.class_folders import load_class_folders
from metastep.datasets.containers import (
    ImageClasses,
    ImageSplits,
    Kind,
    TableSplits,
    TaskTable,
)
from metastep.datasets.describe import describe
from metastep.datasets.fetch import Fetched, fetch_omniglot
from metastep.datasets.load import load_path
from metastep.datasets.npz import load_npz
from metastep.datasets.omniglot import load_omniglot
from metastep.datasets.paths import data_root
from metastep.datasets.rows import load_rows
from metastep.datasets.splits import split_classes, split_indices, split_tasks
from metastep.datasets.tables import load_table

__all__ = [
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
