"""Tasks whose examples are the rows of a table: many sensors, users or machines, a few rows each."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from metastep._errors import InputError, check_choice
from metastep._types import Batch, Episode, Kind
from metastep.tasks.core import (
    AbstractTaskFamily,
    as_default_float,
    check_counts,
    check_groups,
    check_sizes,
    split_batch,
)
from metastep.tasks.draws import distinct


class TableTasks(AbstractTaskFamily):
    """One task per group of rows; support and query are different rows of it, drawn afresh each time.

    Attributes
    ----------
    x : (rows, ...) inputs, sorted by task
    y : (rows, outputs) targets, or (rows,) class labels in 0..output_size-1 shared by all tasks
    counts : (tasks,) number of rows of each task
    shots, queries : rows in the support and the query set
    curvature : rows of the separate Hessian sample D_h; 0 takes D_h = D_in

    Raises
    ------
    InputError
        When a size is out of range, counts do not add up to the rows, targets do not suit the kind, there
        is no task, or a task has fewer rows than an episode takes.
    """

    x: Array
    y: Array
    counts: Int[Array, " tasks"]
    task_kind: Kind = eqx.field(static=True)
    num_outputs: int = eqx.field(static=True)
    shots: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    curvature: int = eqx.field(static=True)
    largest_task: int = eqx.field(static=True)

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        counts: np.ndarray,
        *,
        kind: Kind,
        output_size: int,
        shots: int = 10,
        queries: int = 10,
        curvature: int = 0,
        names: tuple[str, ...] = (),
    ):
        check_sizes(shots=shots, queries=queries, curvature=curvature, output_size=output_size)
        check_choice("kind", kind, ("regression", "classification"))
        counts = np.asarray(counts)
        check_counts(counts, len(x), "task", "rows")
        needed = {"shots": shots, "queries": queries, "curvature": curvature}
        check_groups(counts, needed, names, "tasks", "rows")
        _check_targets(np.asarray(y), kind, len(x), output_size)
        self.x, self.y = as_default_float(x), as_default_float(y)
        self.counts = jnp.asarray(counts, jnp.result_type(int))
        self.task_kind, self.num_outputs = kind, output_size
        self.shots, self.queries, self.curvature = shots, queries, curvature
        self.largest_task = int(counts.max())

    @property
    def kind(self) -> Kind:
        return self.task_kind

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.x.shape[1:]

    @property
    def output_size(self) -> int:
        return self.num_outputs

    def sample(self, key: PRNGKeyArray) -> Episode:
        task_key, row_key = jax.random.split(key)
        task = jax.random.randint(task_key, (), 0, len(self.counts))
        sizes = [self.shots, self.queries, self.curvature]
        within = distinct(row_key, self.counts[task], sum(sizes), self.largest_task)
        rows = jnp.cumsum(self.counts)[task] - self.counts[task] + within
        support, query, curvature = split_batch(Batch(self.x[rows], self.y[rows]), sizes)
        return Episode(support, query, curvature if self.curvature else None)


def _check_targets(y: np.ndarray, kind: Kind, num_rows: int, output_size: int) -> None:
    """Raise unless `y` has one target of the right kind for each row."""
    if len(y) != num_rows:
        raise InputError(
            f"y has {len(y)} rows, but x has {num_rows}; give one target for each input"
        )
    if kind == "regression":
        if y.shape != (num_rows, output_size):
            raise InputError(
                f"y has shape {y.shape}; a regression with output_size {output_size} needs "
                f"{(num_rows, output_size)}, one column per output"
            )
        return
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise InputError(
            f"y has shape {y.shape} and type {y.dtype}; class labels are whole numbers of shape ({num_rows},)"
        )
    for label in (y.min(), y.max()):
        if not 0 <= label < output_size:
            raise InputError(
                f"y has a class label {label}; with output_size {output_size} labels are 0 to {output_size - 1}"
            )
