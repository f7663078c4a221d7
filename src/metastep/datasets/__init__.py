"""Bytes to NumPy arrays: the only part of metastep that opens data files or the network."""

from metastep.datasets.containers import (
    ImageClasses,
    ImageSplits,
    Kind,
    TableSplits,
    TaskTable,
)
from metastep.datasets.splits import split_classes, split_indices, split_tasks

__all__ = [
    "ImageClasses",
    "ImageSplits",
    "Kind",
    "TableSplits",
    "TaskTable",
    "split_classes",
    "split_indices",
    "split_tasks",
]
