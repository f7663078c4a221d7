"""Standardising the columns of a table by its training tasks, and turning predictions back."""

import dataclasses
from typing import Any

import numpy as np

from metastep.datasets import TaskTable


@dataclasses.dataclass(frozen=True)
class Scaling:
    """Means and standard deviations of the training rows; a constant column keeps its scale.

    Attributes
    ----------
    x_mean, x_scale : shaped like one example
    y_mean, y_scale : (outputs,); None for classification
    """

    x_mean: np.ndarray
    x_scale: np.ndarray
    y_mean: np.ndarray | None
    y_scale: np.ndarray | None

    @classmethod
    def of(cls, table: TaskTable) -> "Scaling":
        """Measure a table."""
        x_mean, x_scale = _moments(table.x)
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


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = values.mean(axis=0, dtype=np.float64)
    scale = values.std(axis=0, dtype=np.float64)
    return mean, np.where(scale > 1e-12 * np.maximum(np.abs(mean), 1), scale, 1.0)
