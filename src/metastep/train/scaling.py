"""Standardising the columns of a table, or the channels of its images, by its training tasks, and turning back."""

import dataclasses
from typing import Any

import numpy as np

from metastep.datasets import TaskTable


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Means and standard deviations of the training rows; a constant column keeps its scale.

    Attributes
    ----------
    x_mean, x_scale : shaped like one example; (channels,) where examples are images, (height, width, channels). A
        pixel that is black in nearly every image has no scale of its own to go by
    y_mean, y_scale : (outputs,); None for classification
    """

    x_mean: np.ndarray
    x_scale: np.ndarray
    y_mean: np.ndarray | None
    y_scale: np.ndarray | None

    @classmethod
    def of(cls, table: TaskTable) -> "Scaling":
        """Measure a table."""
        is_image = table.x.ndim == 4
        x_mean, x_scale = _moments(table.x, axis=(0, 1, 2) if is_image else (0,))
        if table.kind == "classification":
            return cls(x_mean, x_scale, None, None)
        return cls(x_mean, x_scale, *_moments(table.y))

    def apply(self, table: TaskTable) -> TaskTable:
        """The table in standard units."""
        return dataclasses.replace(table, x=self.inputs(table.x), y=self.targets(table.y))

    def inputs(self, x: np.ndarray) -> np.ndarray:
        """x in standard units."""
        return ((x - self.x_mean) / self.x_scale).astype(np.float32)

    def targets(self, y: np.ndarray) -> np.ndarray:
        """y in standard units; class labels stay."""
        if self.y_mean is None or self.y_scale is None:
            return y
        return ((y - self.y_mean) / self.y_scale).astype(np.float32)

    def predictions(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs of the model in the units of y."""
        if self.y_mean is None or self.y_scale is None:
            return outputs
        return (outputs * self.y_scale + self.y_mean).astype(np.float32)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Scaling":
        """Back from JSON."""
        arrays: dict[str, Any] = {
            name: None if value is None else np.asarray(value, np.float64)
            for name, value in record.items()
        }
        return cls(**arrays)


def _moments(values: np.ndarray, axis: tuple[int, ...] = (0,)) -> tuple[np.ndarray, np.ndarray]:
    mean = values.mean(axis=axis, dtype=np.float64)
    scale = values.std(axis=axis, dtype=np.float64)
    return mean, np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1), scale, 1.0)
