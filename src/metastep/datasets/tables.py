"""Task tables kept as .csv, .tsv or .parquet: one row per example, one column says its task."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from metastep._errors import DataError
from metastep.datasets.containers import Kind, TaskTable
from metastep.datasets.paths import TABLE_SUFFIXES, check_file, one_line
from metastep.datasets.separators import find_separators
from metastep.datasets.targets import RawRows, build_table

TASK_COLUMN = "task"
TARGET_COLUMNS = ("y", "target", "label")
"""Names that are looked for when nobody says which column is the task and which the target."""

MAX_TABLE_BYTES = 16 << 30
"""Most bytes the numbers of a table may take in memory."""

FIRST_ROW = 1
"""Rows of tables are counted from 1 in messages, without the header."""

# pandas writes its row index under these names; a row number is no feature.
_INDEX_COLUMN = re.compile(r"(Unnamed: \d+|__index_level_\d+__|)")


def load_table(
    path: str | Path,
    task_column: str | None = None,
    target_columns: str | Sequence[str] | None = None,
    feature_columns: Sequence[str] | None = None,
    kind: Kind | None = None,
) -> TaskTable:
    """Read a task table from a .csv, .tsv or .parquet file.

    Parameters
    ----------
    path : UTF-8 text with a header, its columns separated by commas, semicolons, tabs or bars, and
        its decimals by points or, where no comma separates columns, by commas; or Parquet
    task_column : says which task a row belongs to. Default: "task"
    target_columns : one name or several. Default: the one of "y", "target", "label" that is there
    feature_columns : Default: all other columns of numbers or true/false; columns that hold only
        text, dates or nothing, and row indices written by pandas, are left out
    kind : "regression" or "classification". Default: text, true/false and whole numbers of at most
        20 different values are classes, all other numbers are quantities

    Raises
    ------
    DataError
        When the file is damaged or has no rows, a column is not there, there twice, or mixes
        numbers and text, a value is missing or not finite, or there are fewer than two tasks.
    """
    path = Path(path)
    table = read_table(path)
    task = _pick(path, table, "task_column", task_column, (TASK_COLUMN,))
    if target_columns is None or isinstance(target_columns, str):
        targets = [_pick(path, table, "target_columns", target_columns, TARGET_COLUMNS)]
    else:
        targets = [_pick(path, table, "target_columns", name, ()) for name in target_columns]
    if feature_columns is None:
        features = numeric_columns(path, table, [task, *targets])
    else:
        features = [_pick(path, table, "feature_columns", name, ()) for name in feature_columns]
    _check_roles(path, task, targets, features)
    y = target_values(path, table, targets, kind)
    x = feature_values(path, table, features)
    used = {task, *targets, *features}
    left_out = tuple(
        name
        for name in table.column_names
        if name not in used and not _INDEX_COLUMN.fullmatch(name)
    )
    task_values = column_values(path, table, task)
    raw = RawRows(path, x, y, task_values, tuple(features), tuple(targets), FIRST_ROW, left_out)
    return build_table(raw, kind)


def read_table(path: Path) -> pa.Table:
    """All columns of a .csv, .tsv or .parquet file, their names unique."""
    check_file(path)
    suffix = path.suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise DataError(
            f"{path} ends in {suffix or 'nothing'}; tables end in .csv, .tsv or .parquet"
        )
    try:
        table = _read_text(path) if suffix in (".csv", ".tsv") else _read_parquet(path)
        names = table.column_names  # decodes them, which fails unless they are UTF-8
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as a table: {one_line(error)}{_utf8_advice(error)}"
        ) from error
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path} has two columns named {twice[0]!r}; rename one of them")
    if table.num_rows == 0:
        raise DataError(f"{path} holds no rows")
    return table


def numeric_columns(path: Path, table: pa.Table, taken: Sequence[str]) -> list[str]:
    """Columns of numbers or true/false, in their order, other than those taken and row indices."""
    chosen: list[str] = []
    for name in table.column_names:
        if name in taken or _INDEX_COLUMN.fullmatch(name):
            continue
        kind = table.schema.field(name).type
        if _is_numeric(kind):
            chosen.append(name)
        elif _is_text(kind):
            _check_not_mixed(path, name, column_values(path, table, name))
    if not chosen:
        raise DataError(f"{path} has no column of numbers left for features; {_available(table)}")
    return chosen


def feature_values(path: Path, table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """Feature columns side by side: (rows, features) float64, NaN where nothing is given."""
    columns: list[np.ndarray] = []
    for name in names:
        values = column_values(path, table, name)
        if values.dtype.kind not in "fiub":
            _check_not_mixed(path, name, values)
            raise DataError(
                f"{path}: feature column {name!r} holds text; features must be numbers, "
                "so encode it or leave it out"
            )
        columns.append(values.astype(np.float64))
    return np.stack(columns, axis=1)


def target_values(
    path: Path, table: pa.Table, names: Sequence[str], kind: str | None
) -> np.ndarray:
    """Target columns: (rows,) for one, of its own type, or (rows, outputs) float64 for several."""
    columns = [column_values(path, table, name) for name in names]
    for name, values in zip(names, columns, strict=True):
        if values.dtype.kind == "O":
            if kind != "classification":
                _check_not_mixed(path, name, values)
            if kind == "regression" or len(names) > 1:
                raise DataError(f"{path}: target column {name!r} holds text, which is no quantity")
    if len(columns) == 1:
        return columns[0]
    return np.stack([values.astype(np.float64) for values in columns], axis=1)


def column_values(path: Path, table: pa.Table, name: str) -> np.ndarray:
    """One column as int64, uint64, float64, bool or an object array of str ("" where missing)."""
    column = table.column(name).combine_chunks()
    kind = column.type
    try:
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
            kind = column.type
        if not (_is_numeric(kind) or pa.types.is_null(kind)):  # null: not one cell is filled
            texts = column.cast(pa.string()).to_pylist()
            return np.asarray([text or "" for text in texts], dtype=object)
        if pa.types.is_integer(kind) and column.null_count == 0:
            return column.to_numpy(zero_copy_only=False)
        if pa.types.is_boolean(kind) and column.null_count == 0:
            return column.to_numpy(zero_copy_only=False)
        # Integers with gaps become floats, whose NaN names the gap in the messages that follow.
        return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: column {name!r} of type {kind} cannot be read as numbers or UTF-8 text: "
            f"{one_line(error)}{_utf8_advice(error)}"
        ) from error


def _read_text(path: Path) -> pa.Table:
    # Types are guessed from the first block alone, so one block must hold the whole file.
    size = path.stat().st_size
    if size >= 1 << 31:
        raise DataError(f"{path} is larger than 2 GiB; save it as .parquet")
    marks = find_separators(path)
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=size + 1),
        parse_options=pyarrow.csv.ParseOptions(delimiter=marks.delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(decimal_point=marks.decimal),
    )


def _read_parquet(path: Path) -> pa.Table:
    with pyarrow.parquet.ParquetFile(path) as file:
        size = 8 * file.metadata.num_rows * file.metadata.num_columns
        if size > MAX_TABLE_BYTES:
            raise DataError(
                f"{path} holds {file.metadata.num_rows} rows of {file.metadata.num_columns} "
                f"columns, {size / 2**30:.0f} GiB in memory; keep fewer rows or columns"
            )
        return file.read()


def _pick(
    path: Path, table: pa.Table, option: str, given: str | None, defaults: Sequence[str]
) -> str:
    """The column that was given, or the only one of the defaults that is there."""
    candidates = [given] if given is not None else list(defaults)
    found = [name for name in candidates if name in table.column_names]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{path} has the columns {' and '.join(found)}; say with {option} which one is meant"
        )
    wanted = " or ".join(repr(name) for name in candidates)
    raise DataError(f"{path} has no column {wanted} ({option}); {_available(table)}")


def _available(table: pa.Table) -> str:
    names = table.column_names
    return (
        "it has: " + ", ".join(repr(n) for n in names[:30]) + (", ..." if len(names) > 30 else "")
    )


def _check_roles(path: Path, task: str, targets: Sequence[str], features: Sequence[str]) -> None:
    """Raise when a column has two roles or a role has no column."""
    if not targets or not features:
        missing = "target_columns" if not targets else "feature_columns"
        raise DataError(f"{path}: {missing} is empty; name at least one column")
    names = [task, *targets, *features]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(
            f"{path}: column {twice[0]!r} is used twice; "
            "a column is either the task, a target or a feature"
        )


def _check_not_mixed(path: Path, name: str, values: np.ndarray) -> None:
    """Raise when a text column has numbers in it: most likely numbers with a slip somewhere."""
    given = values != ""
    numbers = np.asarray([_parses(value) for value in values], bool)
    if numbers.any() and (given & ~numbers).any():
        row = int(np.argmax(given & ~numbers))
        raise DataError(
            f"{path}: column {name!r} mixes numbers and text: row {FIRST_ROW + row} holds "
            f"{values[row][:40]!r}; mend it, or leave the column out by naming the others"
        )


def _utf8_advice(error: Exception) -> str:
    """What to do where text of another encoding stands in the way."""
    return "; save it as UTF-8 text" if re.search("utf-?8", str(error), re.IGNORECASE) else ""


def _parses(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_numeric(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_boolean(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind)
