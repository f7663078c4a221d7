"""One new task's rows: they must look as the training rows did, and y may be left out."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from metastep._errors import DataError
from metastep.datasets import TaskTable, describe, load_rows, load_table

REGRESSION = {
    "kind": "regression",
    "feature_shape": [2],
    "num_outputs": 1,
    "x_names": ["a", "b"],
    "y_names": ["y"],
    "labels": [],
}
CLASSES = {**REGRESSION, "kind": "classification", "num_outputs": 3, "labels": ["9", "10", "u"]}
BARE = {**REGRESSION, "x_names": []}
IMAGES = {"kind": "images", "feature_shape": [2, 3, 1]}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    return path


def save(tmp_path: Path, **arrays: object) -> Path:
    path = tmp_path / "rows.npz"
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def refusal(path: Path, like: dict, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(path, like, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_columns_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    x, y = load_rows(write(tmp_path, "note,y,b,a\nu,0.5,2,1\nv,1.5,4,3\n"), REGRESSION)
    assert (x.tolist(), x.dtype) == ([[1, 2], [3, 4]], np.float32)
    assert y is not None
    assert (y.tolist(), y.dtype) == ([[0.5], [1.5]], np.float32)


def test_a_query_may_come_without_targets(tmp_path: Path) -> None:
    x, y = load_rows(write(tmp_path, "a,b\n1,2\n"), REGRESSION, need_y=False)
    assert (x.tolist(), y) == ([[1, 2]], None)
    assert load_rows(write(tmp_path, "a,b,y\n1,2,\n"), REGRESSION, need_y=False)[1] is None
    x, y = load_rows(save(tmp_path, x=np.ones((3, 2))), REGRESSION, need_y=False)
    assert (x.shape, y) == ((3, 2), None)
    _, y = load_rows(save(tmp_path, x=np.ones((3, 2)), y=np.arange(3.0)), REGRESSION, need_y=False)
    assert y is not None
    assert y.tolist() == [[0], [1], [2]]


def test_parquet_and_a_model_trained_without_names(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"p": [1, 2], "q": [3, 4], "y": [0.5, 1.5]}), path)
    x, y = load_rows(path, BARE)
    assert x.tolist() == [[1, 3], [2, 4]]
    assert y is not None
    assert y.tolist() == [[0.5], [1.5]]


def test_labels_get_the_numbers_they_had_in_training(tmp_path: Path) -> None:
    for path in (
        write(tmp_path, "a,b,y\n0,0,10\n0,0,9\n0,0,u\n"),
        save(tmp_path, x=np.zeros((3, 2)), y=np.asarray(["10", "9", "u"])),
    ):
        _, y = load_rows(path, CLASSES)
        assert y is not None
        assert (y.tolist(), y.dtype) == ([1, 0, 2], np.int32)
    _, y = load_rows(save(tmp_path, x=np.zeros((2, 2)), y=np.asarray([10.0, 9.0])), CLASSES)
    assert y is not None
    assert y.tolist() == [1, 0]


def test_images_keep_their_bytes(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    x, y = load_rows(save(tmp_path, x=pixels, y=np.asarray([1, 0])), IMAGES)
    assert (x.shape, x.dtype) == ((2, 2, 3, 1), np.uint8)
    np.testing.assert_array_equal(x[..., 0], pixels)
    assert y is not None
    assert (y.tolist(), y.dtype) == ([1, 0], np.int32)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_what_describe_says_is_enough(tmp_path: Path, kind) -> None:
    path = tmp_path / "train.csv"
    path.write_text("task,b,a,y\nt,1,2,3\ns,4,5,6\n")
    table = load_table(path, kind=kind)
    x, y = load_rows(write(tmp_path, "a,b,y,task\n2,1,3,t\n"), describe(table))
    row = table.names.index("t")
    np.testing.assert_array_equal(x, table.x[row : row + 1])
    np.testing.assert_array_equal(y, table.y[row : row + 1])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "like", "message"),
    [
        (
            "a,c,y\n1,2,3\n",
            REGRESSION,
            " lacks the column(s) 'b' the model was trained on; it has: 'a', 'c', 'y'",
        ),
        (
            "a,b\n1,2\n",
            REGRESSION,
            " lacks the column(s) 'y' the model was trained on; it has: 'a', 'b'",
        ),
        (
            "task,a,b,y\nu,1,2,3\nv,1,2,3\n",
            REGRESSION,
            " holds rows of 2 tasks; keep those of the one to adapt to",
        ),
        (
            "a,b,y\n1,nan,3\n",
            REGRESSION,
            ": column 'b' is nan in row 1 (1 such value(s)); every value must be a finite float32, "
            "so fill or drop such rows",
        ),
        (
            "a,b,y\n1,x,3\n",
            REGRESSION,
            ": feature column 'b' holds text; features must be numbers, "
            "so encode it or leave it out",
        ),
        (
            "a,b,y\n1,2,9\n1,2,new\n",
            CLASSES,
            ": 'y' is 'new' in row 2, a label the model was not trained with; it knows 9, 10, u",
        ),
        (
            "p,q,r,y\n1,2,3,4\n",
            BARE,
            ": x has features of shape (3,); the model was trained on (2,)",
        ),
    ],
)
def test_tables_unlike_the_training_data(tmp_path: Path, text, like, message) -> None:
    path = write(tmp_path, text)
    assert refusal(path, like) == f"{path}{message}"


@pytest.mark.parametrize(
    ("arrays", "like", "message"),
    [
        ({"x": np.zeros((2, 2))}, REGRESSION, " lacks the array(s) y; it holds: x"),
        (
            {"x": np.zeros((2, 3)), "y": np.zeros(2)},
            REGRESSION,
            ": x has features of shape (3,); the model was trained on (2,)",
        ),
        (
            {"x": np.zeros((2, 2)), "y": np.zeros((2, 3))},
            REGRESSION,
            ": y has 3 output(s); the model was trained on 1",
        ),
        (
            {"x": np.zeros((2, 2)), "y": np.zeros(3)},
            REGRESSION,
            ": the arrays differ in length (x 2, y 3); each needs one entry per row",
        ),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0)}, REGRESSION, " holds no rows"),
        (
            {"x": np.zeros((2, 2)), "y": np.zeros(2), "task": [1, 2]},
            REGRESSION,
            " holds rows of 2 tasks; keep those of the one to adapt to",
        ),
        (
            {"x": np.zeros((2, 2, 3)), "y": [0, 1]},
            IMAGES,
            ": x is float64 of shape (2, 2, 3); images must be uint8 of shape "
            "(rows, height, width, channels), with ink or light at 255 as in training",
        ),
        (
            {"x": np.zeros((2, 2, 3), np.uint8), "y": [0, -1]},
            IMAGES,
            ": y is int64 of shape (2,); the classes of a task of images are whole numbers from 0, "
            "of shape (rows,)",
        ),
    ],
)
def test_arrays_unlike_the_training_data(tmp_path: Path, arrays, like, message) -> None:
    path = save(tmp_path, **arrays)
    assert refusal(path, like) == f"{path}{message}"


def test_a_table_without_names_describes_itself_well_enough(tmp_path: Path) -> None:
    table = TaskTable(
        np.ones((2, 3, 2), np.float32),
        np.ones((2, 2), np.float32),
        np.asarray([1, 1]),
        ("a", "b"),
        "regression",
    )
    x, y = load_rows(save(tmp_path, x=np.ones((5, 3, 2)), y=np.ones((5, 2))), describe(table))
    assert y is not None
    assert (x.shape, y.shape) == ((5, 3, 2), (5, 2))
