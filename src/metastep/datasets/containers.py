"""What every loader returns: rows grouped by class or by task, as plain NumPy arrays.

Rows of one group lie next to each other and `counts` says how many each group has, so that drawing
a support and a query set is two integer look-ups and needs no list of ragged arrays.
"""

import dataclasses
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from metastep._errors import InputError, check_choice

Kind = Literal["regression", "classification"]


def starts_of(counts: np.ndarray) -> np.ndarray:
    """First row of every group: (num_groups,) int64 from (num_groups,) counts."""
    return np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def rows_of(counts: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Row numbers of the groups `indices`, in that order: (sum of their counts,) int64."""
    starts = starts_of(counts)
    sizes = counts[indices]
    # Row j of the result is row j - (where its group starts in the result) of its own group.
    return np.repeat(starts[indices] - starts_of(sizes), sizes) + np.arange(sizes.sum())


@dataclasses.dataclass(frozen=True, eq=False)
class ImageClasses:
    """Images sorted by class: what few-shot classification tasks are drawn from.

    Attributes
    ----------
    images : (num_images, height, width, channels) uint8, channels 1 (grey) or 3 (RGB)
    counts : (num_classes,) int64, images per class, each at least 1
    names : name of each class, in the order of `counts`
    """

    images: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise InputError(
                f"images is {self.images.dtype} of shape {self.images.shape}; "
                "it must be uint8 of shape (num_images, height, width, channels)"
            )
        _check_groups("images", len(self.images), self.counts, self.names)

    @property
    def starts(self) -> np.ndarray:
        """(num_classes,) int64: the first image of every class."""
        return starts_of(self.counts)

    @property
    def num_classes(self) -> int:
        return len(self.counts)

    def select(self, indices: npt.ArrayLike) -> "ImageClasses":
        """The classes at `indices`, in that order, as a copy.

        Raises
        ------
        InputError
            When `indices` is empty, repeats a class or names one that does not exist.
        """
        chosen = _check_indices(indices, self.num_classes)
        rows = rows_of(self.counts, chosen)
        names = tuple(self.names[index] for index in chosen)
        return ImageClasses(self.images[rows], self.counts[chosen], names)


@dataclasses.dataclass(frozen=True, eq=False)
class TaskTable:
    """Rows sorted by task: what regression and fixed-label classification tasks are drawn from.

    Attributes
    ----------
    x : (rows, *features) float32
    y : (rows, outputs) float32 for regression, (rows,) int32 indices into `labels` otherwise
    counts : (num_tasks,) int64, rows per task, each at least 1
    names : name of each task, in the order of `counts`
    kind : "regression" or "classification"
    x_names : one name per feature column; empty when the rows come without names
    y_names : one name per output
    labels : the classes, in the order of their indices; empty for regression
    left_out : columns of the file that are neither task, target nor feature; row indices are not listed
    """

    x: np.ndarray
    y: np.ndarray
    counts: np.ndarray
    names: tuple[str, ...]
    kind: Kind
    x_names: tuple[str, ...] = ()
    y_names: tuple[str, ...] = ("y",)
    labels: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("regression", "classification"))
        if self.x.ndim < 2 or self.x.dtype != np.float32:
            raise InputError(
                f"x is {self.x.dtype} of shape {self.x.shape}; "
                "it must be float32 of shape (rows, features)"
            )
        form = (2, np.float32) if self.kind == "regression" else (1, np.int32)
        if (self.y.ndim, self.y.dtype) != form or len(self.y) != len(self.x):
            shape = "(rows, outputs)" if self.kind == "regression" else "(rows,)"
            raise InputError(
                f"y is {self.y.dtype} of shape {self.y.shape} for {len(self.x)} rows of x; "
                f"{self.kind} needs {form[1].__name__} of shape {shape}"
            )
        _check_groups("x", len(self.x), self.counts, self.names)

    @property
    def starts(self) -> np.ndarray:
        """(num_tasks,) int64: the first row of every task."""
        return starts_of(self.counts)

    @property
    def num_tasks(self) -> int:
        return len(self.counts)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return self.x.shape[1:]

    @property
    def num_outputs(self) -> int:
        """Width of a model's output: columns of y, or the number of labels."""
        return self.y.shape[1] if self.kind == "regression" else len(self.labels)

    def select(self, indices: npt.ArrayLike) -> "TaskTable":
        """The tasks at `indices`, in that order, as a copy; raises like `ImageClasses.select`."""
        chosen = _check_indices(indices, self.num_tasks)
        rows = rows_of(self.counts, chosen)
        names = tuple(self.names[index] for index in chosen)
        return dataclasses.replace(
            self, x=self.x[rows], y=self.y[rows], counts=self.counts[chosen], names=names
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSplits:
    """Disjoint classes to meta-train on, to choose settings by and to be judged by."""

    train: ImageClasses
    validation: ImageClasses
    test: ImageClasses


@dataclasses.dataclass(frozen=True, eq=False)
class TableSplits:
    """Disjoint tasks to meta-train on, to choose settings by and to be judged by."""

    train: TaskTable
    validation: TaskTable
    test: TaskTable


Groups = TypeVar("Groups", ImageClasses, TaskTable)


def _check_groups(what: str, rows: int, counts: Any, names: tuple[str, ...]) -> None:
    """Raise unless the counts are positive, add up to the rows, and every group has a name."""
    if counts.ndim != 1 or counts.dtype != np.int64 or len(counts) != len(names):
        raise InputError(
            f"counts is {counts.dtype} of shape {counts.shape} for {len(names)} names; "
            "it must be int64 with one entry per name"
        )
    if len(counts) == 0 or counts.min() < 1 or counts.sum() != rows:
        raise InputError(
            f"counts add up to {counts.sum()} with a smallest entry of {counts.min(initial=0)}, "
            f"but {what} has {rows} rows; every group needs at least one row and a count of its own"
        )


def _check_indices(indices: npt.ArrayLike, size: int) -> np.ndarray:
    """Indices as a 1-D int64 array; each must exist and may occur once."""
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer):
        raise InputError(f"indices is {indices!r}; it must be a non-empty list of whole numbers")
    if chosen.min() < 0 or chosen.max() >= size or len(np.unique(chosen)) != len(chosen):
        raise InputError(
            f"indices run from {chosen.min()} to {chosen.max()}; "
            f"each must be between 0 and {size - 1} and occur once"
        )
    return chosen.astype(np.int64)
