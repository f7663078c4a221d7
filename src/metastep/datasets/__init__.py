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
from metastep.datasets.omniglot import load_omniglot
from metastep.datasets.paths import data_root
from metastep.datasets.splits import split_classes, split_indices, split_tasks

__all__ = [
    "ImageClasses",
    "ImageSplits",
    "Kind",
    "TableSplits",
    "TaskTable",
    "data_root",
    "load_class_folders",
    "load_omniglot",
    "open_zip",
    "split_classes",
    "split_indices",
    "split_tasks",
]
