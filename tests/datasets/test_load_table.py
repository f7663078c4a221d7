"""Tables from .csv and .parquet: round trips, which columns are what, and every way to be wrong."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metastep._errors import DataError, InputError
from metastep.datasets import TaskTable, load_table, tables

single = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Text that a CSV cell can hold and that no reader takes for a number, a date or true/false.
names = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=6).map(
    "n-".__add__
)
rows = st.lists(st.tuples(names, single, single, single), min_size=2, max_size=30).filter(
    lambda drawn: len({row[0] for row in drawn}) > 1
)


def save(path: Path, columns: dict[str, list]) -> Path:
    table = pa.table(columns)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)
    return path


def write(tmp_path: Path, text: str | bytes, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_table(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def check_rows(table: TaskTable, drawn: list[tuple]) -> None:
    """The table must hold the rows drawn, sorted by task, otherwise in their order."""
    expected = sorted(drawn, key=lambda row: row[0])
    got = list(
        zip(
            np.repeat(table.names, table.counts).tolist(),
            *table.x.T.tolist(),
            table.y[:, 0].tolist(),
            strict=True,
        )
    )
    assert got == [(task, *values) for task, *values in expected]
    assert sorted(set(table.names)) == list(table.names)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=rows)
def test_rows_survive_a_round_trip(drawn, suffix, tmp_path) -> None:
    task, a, b, y = (list(column) for column in zip(*drawn, strict=True))
    # Doubles in the file: a whole column of 1.0 must not come back as integers.
    columns = {"é": a, "task": task, "y": y, "b c": b}
    table = load_table(save(tmp_path / f"t{suffix}", columns), kind="regression")
    assert (table.x_names, table.y_names, table.kind) == (("é", "b c"), ("y",), "regression")
    assert (table.x.dtype, table.y.dtype, table.counts.dtype) == (np.float32, np.float32, np.int64)
    check_rows(table, drawn)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(st.tuples(st.sampled_from("ab"), names), min_size=3, max_size=20))
def test_labels_survive_a_round_trip(drawn, tmp_path) -> None:
    drawn = [*drawn, ("a", "n-1"), ("b", "n-2")]
    task, label = (list(column) for column in zip(*drawn, strict=True))
    columns = {"task": task, "x": list(range(len(task))), "label": label}
    for name in ("t.csv", "t.parquet"):
        table = load_table(save(tmp_path / name, columns))
        assert table.kind == "classification"
        assert table.labels == tuple(sorted(set(label)))
        assert [table.labels[index] for index in table.y] == [
            label[int(row)] for row in table.x[:, 0]
        ]


def test_windows_text_with_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufefftask,größe,y\r\nb,1,0.5\r\n"a, b",2,1.5\r\n')
    table = load_table(path)
    assert table.names == ("a, b", "b")
    assert table.x_names == ("größe",)
    assert table.x.tolist() == [[2.0], [1.0]]


def test_a_fraction_far_down_a_column_of_whole_numbers(tmp_path: Path) -> None:
    lines = ["task,x,y", *(f"{i % 2},{i},0.5" for i in range(200_000)), "0,0.25,0.5"]
    table = load_table(write(tmp_path, "\n".join(lines)))  # beyond the reader's default block
    assert len(table.x) == 200_001
    assert 0.25 in table.x[:, 0]


def test_numbers_as_tasks_sort_as_numbers(tmp_path: Path) -> None:
    table = load_table(write(tmp_path, "task,x,y\n10,1,.5\n9,2,.5\n10,3,.5\n"))
    assert table.names == ("9", "10")
    assert table.x[:, 0].tolist() == [2, 1, 3]


@pytest.mark.parametrize("cells", [["1.0", "2.0"], ["true", "false"], ["2020-01-01", "2021-01-01"]])
def test_other_types_of_task(tmp_path: Path, cells) -> None:
    table = load_table(write(tmp_path, f"task,x,y\n{cells[0]},1,.5\n{cells[1]},2,.5\n"))
    assert set(table.names) == {cell.removesuffix(".0") for cell in cells}


@pytest.mark.parametrize(
    ("cells", "kind", "labels"),
    [
        (["a", "b", "a"], "classification", ("a", "b")),
        (["true", "false", "true"], "classification", ("false", "true")),
        (["10", "9", "10"], "classification", ("9", "10")),
        (["1.0", "2.5", "1.0"], "regression", ()),
        ([str(i) for i in range(20)], "classification", tuple(map(str, range(20)))),
        ([str(i) for i in range(21)], "regression", ()),
    ],
)
def test_kind_by_the_documented_rule(tmp_path: Path, cells, kind, labels) -> None:
    lines = ["task,x,y", *(f"{i % 2},{i},{cell}" for i, cell in enumerate(cells))]
    table = load_table(write(tmp_path, "\n".join(lines)))
    assert (table.kind, table.labels) == (kind, labels)
    assert table.y.dtype == (np.int32 if kind == "classification" else np.float32)


def test_kind_overrules(tmp_path: Path) -> None:
    path = write(tmp_path, "task,x,y\n0,1,3.0\n1,2,-1.0\n")
    table = load_table(path, kind="classification")
    assert (table.labels, table.y.tolist()) == (("-1", "3"), [1, 0])
    path = write(tmp_path, "task,x,y\n0,1,3\n1,2,-1\n")
    assert load_table(path, kind="regression").y.tolist() == [[3.0], [-1.0]]
    with pytest.raises(InputError, match=r"^kind is 'both'; choose one of: classification, "):
        load_table(path, kind="both")  # pyright: ignore[reportArgumentType]


def test_columns_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "who,a,b,c,note\nu,1,2,3,x\nv,4,5,6,y\n")
    table = load_table(path, "who", ["b", "a"], ["c"])
    assert (table.y_names, table.x_names) == (("b", "a"), ("c",))
    assert table.kind == "regression"
    assert table.y.tolist() == [[2, 1], [5, 4]]
    table = load_table(path, "who", "a", kind="regression")
    assert (table.x_names, table.left_out) == (("b", "c"), ("note",))


def test_row_numbers_that_pandas_writes_are_no_features(tmp_path: Path) -> None:
    path = write(tmp_path, ",task,x,y,Unnamed: 7\n0,a,1,.5,0\n1,b,2,.5,1\n")
    assert (load_table(path).x_names, load_table(path).left_out) == (("x",), ())
    columns = {"task": ["a", "b"], "x": [1, 2], "y": [0.5, 0.5], "__index_level_0__": [0, 1]}
    assert load_table(save(tmp_path / "t.parquet", columns)).x_names == ("x",)


def test_types_that_only_parquet_has(tmp_path: Path) -> None:
    columns = {
        "task": pa.array(["a", "b", "a"]).dictionary_encode(),
        "x": pa.array([1, 2, 3], pa.decimal128(5, 2)),
        "z": pa.array([1, 2, 3], pa.uint8()),
        "h": pa.array([1, 2, 3], pa.float16()),
        "label": pa.array(["u", "v", "u"], pa.large_string()),
        "day": pa.array([1, 2, 3], pa.date32()),
    }
    table = load_table(save(tmp_path / "t.parquet", columns))
    assert (table.x_names, table.labels) == (("x", "z", "h"), ("u", "v"))
    assert table.x.tolist() == [[1, 1, 1], [3, 3, 3], [2, 2, 2]]


def same_rows(path: Path, expected: TaskTable) -> None:
    found = load_table(path, kind="regression")
    assert found.x_names == expected.x_names
    np.testing.assert_array_equal(found.x, expected.x)
    np.testing.assert_array_equal(found.y, expected.y)
    assert found.names == expected.names


@pytest.mark.parametrize("mark", [";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
@given(drawn=rows)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_columns_and_decimals_are_separated_as_the_file_does_it(
    tmp_path: Path, drawn: list[tuple], mark: str, decimal: str
) -> None:
    """A spreadsheet of another country holds the same table."""
    columns = dict(zip(("task", "x", "z", "y"), map(list, zip(*drawn, strict=True)), strict=True))
    columns["z"][0] = 0.5  # some number has a fraction
    expected = load_table(save(tmp_path / "t.csv", columns), kind="regression")
    lines = [mark.join(columns)]
    for task, *values in zip(*columns.values(), strict=True):
        texts = [f"{value!r}".replace(".", decimal) for value in values]
        lines.append(mark.join(['"' + task.replace('"', '""') + '"', *texts]))
    for name in ("u.csv", "u.tsv"):
        same_rows(write(tmp_path, "\r\n".join(lines) + "\r\n", name), expected)


@pytest.mark.parametrize(
    "text",
    [
        "task;x;y\na;1,5;2\nb;2;3,25\n",  # the fraction ends its line
        '\ufefftask;x;y;"note; with, marks"\na;1,5;2;"1.5;"\nb;2;3,25;"2.5;"\n',
        "task\tx\ty\tday\na\t1,5\t2\t03.12.2024\nb\t2\t3,25\t04.12.2024\n",  # a date has points
        "task|x|y\na| 1.5|2\nb|2|3.25\n",
        '"task","x","y"\n"a",1.5,2\n"b",2,3.25\n',
        'task,x,y,"a;b;c;d;e"\na,1.5,2,u\nb,2,3.25,v\n',  # what is quoted separates nothing
    ],
)
def test_separators_are_not_taken_from_what_stands_beside_them(tmp_path: Path, text: str) -> None:
    table = load_table(write(tmp_path, text))
    assert table.x_names == ("x",)
    assert table.x.tolist() == [[1.5], [2]]
    assert table.y.tolist() == [[2], [3.25]]


def test_both_marks_for_decimals_are_a_slip(tmp_path: Path) -> None:
    path = write(tmp_path, "task;x;y\na;1,5;2\na;1.5;2\nb;2;3\n")
    assert refusal(path) == (
        f"{path}: column 'x' mixes numbers and text: row 1 holds '1,5'; mend it, or leave the "
        "column out by naming the others"
    )


def test_text_of_two_bytes_a_letter_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "task\tx\ty\na\t1\t2\n".encode("utf-16"))
    assert refusal(path) == f"{path} is UTF-16 text; save it as UTF-8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "id,x,y\na,1,2\n",
            "has no column 'task' (task_column); it has: 'id', 'x', 'y'",
        ),
        (
            "task,x\na,1\n",
            "has no column 'y' or 'target' or 'label' (target_columns); it has: 'task', 'x'",
        ),
        (
            "task;x;y\na;1;2\n",
            "holds one task only (a); meta-learning needs several, "
            "so check which column says the task of a row",
        ),
        (
            "task,x,y,label\na,1,2,3\n",
            "has the columns y and label; say with target_columns which one is meant",
        ),
        ("task,x,x,y\na,1,2,3\n", "has two columns named 'x'; rename one of them"),
        ("task,x,y\n", "holds no rows"),
        (
            "task,x,y\na,1,2\na,3,4\n",
            "holds one task only (a); meta-learning needs several, "
            "so check which column says the task of a row",
        ),
        (
            "task,y,text\na,1,u\nb,2,v\n",
            "has no column of numbers left for features; it has: 'task', 'y', 'text'",
        ),
    ],
)
def test_tables_without_what_is_needed(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert refusal(path) == f"{path} {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "task,a,x,y\nu,0,1,2\nv,0,,2\nv,0,nan,2\n",
            "column 'x' is nan in row 2 (2 such value(s)); every value must be a finite float32, "
            "so fill or drop such rows",
        ),
        (
            "task,x,y\nu,1,-inf\nv,1,2\n",
            "column 'y' is -inf in row 1 (1 such value(s)); every value must be a finite float32, "
            "so fill or drop such rows",
        ),
        (
            "task,x,y\nu,1e39,2.5\nv,1,2\n",
            "column 'x' is 1e+39 in row 1 (1 such value(s)); every value must be a finite "
            "float32, so fill or drop such rows",
        ),
        (
            "task,x,y\nu,1,2\nv,oops,2\n",
            "column 'x' mixes numbers and text: row 2 holds 'oops'; "
            "mend it, or leave the column out by naming the others",
        ),
        (
            "task,x,y\nu,1,2.5\nv,1,1.5 kg\n",
            "column 'y' mixes numbers and text: row 2 holds '1.5 kg'; "
            "mend it, or leave the column out by naming the others",
        ),
        ("task,x,y\nu,1,2\n,1,2\n", "'task' is missing in row 2; each row needs a task"),
        ("task,x,y\n1,1,2\n,1,2\n", "'task' is missing in row 2; each row needs a task"),
        (
            "task,x,y\n1.5,1,2\n2,1,2\n",
            "'task' is 1.5 in row 1; a task must be text or a whole number",
        ),
        ("task,x,y\nu,1,a\nv,1,\n", "'y' is missing in row 2; each row needs a class label"),
    ],
)
def test_cells_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert refusal(path) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"feature_columns": ["text"]},
            ": feature column 'text' holds text; features must be numbers, "
            "so encode it or leave it out",
        ),
        (
            {"feature_columns": ["none"]},
            " has no column 'none' (feature_columns); it has: 'task', 'x', 'text', 'y'",
        ),
        ({"feature_columns": []}, ": feature_columns is empty; name at least one column"),
        ({"target_columns": []}, ": target_columns is empty; name at least one column"),
        (
            {"feature_columns": ["x", "y"]},
            ": column 'y' is used twice; a column is either the task, a target or a feature",
        ),
        (
            {"target_columns": "text", "kind": "regression"},
            ": target column 'text' holds text, which is no quantity",
        ),
        (
            {"target_columns": ["x", "y"], "feature_columns": ["x"]},
            ": column 'x' is used twice; a column is either the task, a target or a feature",
        ),
        (
            {"kind": "classification"},
            ": 'y' is 0.5 in row 1; a class label must be text or a whole number",
        ),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict, message: str) -> None:
    path = write(tmp_path, "task,x,text,y\na,1,u,0.5\nb,2,v,1.5\n")
    assert refusal(path, **options) == f"{path}{message}"


def test_several_targets_cannot_be_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "task,x,a,b\nu,1,0,1\nv,2,1,0\n")
    assert refusal(path, target_columns=["a", "b"], kind="classification") == (
        f"{path}: y has shape (2, 2); classification needs one label per row, (rows,)"
    )


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"task,x,y\na,1\n", "t.csv"),
        (b"task,x,y\na,1,2,3\n", "t.csv"),
        (b"PAR1 not a parquet file PAR1", "t.parquet"),
        (b"task,x,y\na,1,2\n", "t.parquet"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, name: str) -> None:
    path = write(tmp_path, content, name)
    assert refusal(path).startswith(f"{path} cannot be read as a table: ")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path, "task,x,y\nä,1,2\nb,1,2\n".encode("latin-1"))
    assert refusal(path).startswith(
        f"{path}: column 'task' of type binary cannot be read as numbers or UTF-8 text: "
    )
    assert refusal(path).endswith("; save it as UTF-8 text")


def test_a_header_that_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path, "task,größe,y\na,1,2\nb,1,2\n".encode("latin-1"))
    assert refusal(path).startswith(f"{path} cannot be read as a table: 'utf-8' codec can't decode")
    assert refusal(path).endswith("; save it as UTF-8 text")


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    path = save(tmp_path / "t.parquet", {"task": ["a", "b"], "x": [1, 2], "y": [1.0, 2.0]})
    whole = path.read_bytes()
    for cut in (1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert refusal(path).startswith(f"{path} cannot be read as a table: ")


def test_a_parquet_file_beyond_memory(tmp_path: Path, monkeypatch) -> None:
    path = save(tmp_path / "t.parquet", {"task": [1] * 9999, "x": [0] * 9999, "y": [0.0] * 9999})
    assert math.log10(path.stat().st_size) < 4  # a few bytes that unpack to many
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 1 << 17)
    assert refusal(path) == (
        f"{path} holds 9999 rows of 3 columns, 0 GiB in memory; keep fewer rows or columns"
    )


def test_paths_that_are_no_table(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.csv") == f"{tmp_path}/none.csv does not exist"
    assert refusal(tmp_path) == f"{tmp_path} is a folder; a file is needed here"
    assert refusal(write(tmp_path, "", "e.csv")) == f"{tmp_path}/e.csv is empty (0 bytes)"
    assert refusal(write(tmp_path, "\n", "n.csv")) == (
        f"{tmp_path}/n.csv cannot be read as a table: CSV parse error: Empty CSV file or block: "
        "cannot infer number of columns"
    )
    assert refusal(write(tmp_path, "x", "t.xlsx")) == (
        f"{tmp_path}/t.xlsx ends in .xlsx; tables end in .csv, .tsv or .parquet"
    )
