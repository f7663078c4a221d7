"""Task tables kept as .npz: arrays `x`, `y` and `task`. Nothing in them is ever unpickled."""

import io
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from metastep._errors import DataError
from metastep.datasets.archives import SafeZip, open_zip
from metastep.datasets.containers import Kind, TaskTable
from metastep.datasets.paths import one_line
from metastep.datasets.targets import RawRows, build_table


def load_npz(path: str | Path, kind: Kind | None = None) -> TaskTable:
    """Read a task table from an .npz file.

    Parameters
    ----------
    path : an .npz file with `x` (rows, *features) real numbers, `y` (rows,) or (rows, outputs)
        numbers or labels, and `task` (rows,) names or whole numbers; other arrays are not read
    kind : "regression" or "classification". Default: text, true/false and whole numbers of at most
        20 different values are classes, all other numbers are quantities

    Raises
    ------
    DataError
        When the file is damaged, an array is missing, holds pickled objects or has the wrong shape,
        the lengths differ, a value is not finite, or there are fewer than two tasks.
    """
    path = Path(path)
    arrays = read_npz(path, ("x", "y", "task"))
    check_lengths(path, arrays)
    return build_table(RawRows(path, arrays["x"], arrays["y"], arrays["task"]), kind)


def read_npz(
    path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The named arrays of an .npz file; other arrays in it are not looked at."""
    with open_zip(path) as archive:
        stored = {name.removesuffix(".npy"): name for name in archive.members}
        missing = [name for name in needed if name not in stored]
        if missing:
            raise DataError(
                f"{path} lacks the array(s) {', '.join(missing)}; "
                f"it holds: {', '.join(stored) or 'nothing'}"
            )
        wanted = [name for name in (*needed, *optional) if name in stored]
        return {name: _read_array(archive, name, stored[name]) for name in wanted}


def check_lengths(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise unless all arrays have the same number of rows."""
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(
            f"{path}: the arrays differ in length ({listed}); each needs one entry per row"
        )


def _read_array(archive: SafeZip, name: str, member: str) -> np.ndarray:
    """One array, its header checked against the bytes at hand before memory is asked for."""
    content = archive.read(member)
    file = io.BytesIO(content)
    try:
        shape, is_fortran, dtype = _read_header(file)
    except (ValueError, TypeError, SyntaxError, EOFError) as error:
        raise DataError(f"{archive.path}: array {name!r} is damaged: {one_line(error)}") from error
    if dtype.hasobject:
        raise DataError(
            f"{archive.path}: array {name!r} holds Python objects, which are never unpickled; "
            "save it as numbers or text, for example with np.asarray(values, dtype=float)"
        )
    size = prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != len(content) - file.tell():
        raise DataError(
            f"{archive.path}: array {name!r} is damaged: its header promises {size} bytes, "
            f"it has {len(content) - file.tell()}"
        )
    if size == 0:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(content, dtype, prod(shape), file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C")


def _read_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"format version {version}")
