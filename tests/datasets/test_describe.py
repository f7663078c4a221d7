"""What `data info` will say: worked out by hand for data small enough to see through."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_containers import images_of, table_of

from metastep._errors import DataError
from metastep.datasets import (
    ImageClasses,
    ImageSplits,
    TaskTable,
    describe,
    load_path,
    split_classes,
    split_tasks,
)


def test_a_regression_table() -> None:
    described = describe(table_of([1, 3]))  # x counts 0..7 over two columns, y = first column + 1/2
    rule = described.pop("kind_rule")
    assert "at most 20 different values are classes" in rule
    assert described == {
        "kind": "regression",
        "feature_shape": [2],
        "num_outputs": 1,
        "x_names": ["a", "b"],
        "y_names": ["y"],
        "left_out": [],
        "labels": [],
        "num_tasks": 2,
        "num_rows": 4,
        "rows_per_task": {"min": 1, "median": 2.0, "max": 3},
        "one_row_tasks": 1,
        "x_range": [0.0, 7.0],
        "columns": [
            {"name": "a", "min": 0.0, "max": 6.0},
            {"name": "b", "min": 1.0, "max": 7.0},
        ],
        "tasks": ["t0", "t1"],
        "targets": [{"name": "y", "min": 0.5, "max": 6.5}],
    }


def test_a_classification_table() -> None:
    table = TaskTable(
        np.zeros((3, 2, 2), np.float32),
        np.asarray([1, 1, 0], np.int32),
        np.asarray([2, 1]),
        ("s", "t"),
        "classification",
        labels=("no", "yes", "perhaps"),
    )
    described = describe(table)
    assert described["rows_per_label"] == {"no": 1, "yes": 2, "perhaps": 0}
    assert (described["num_outputs"], described["columns"]) == (3, [])
    assert "targets" not in described


def test_images() -> None:
    assert describe(images_of([2, 5, 1])) == {
        "kind": "images",
        "feature_shape": [2, 3, 1],
        "num_classes": 3,
        "num_images": 8,
        "images_per_class": {"min": 1, "median": 2.0, "max": 5},
        "value_range": [0, 4],
        "classes": ["c0", "c1", "c2"],
    }


def test_splits_share_what_they_share() -> None:
    images = describe(split_classes(images_of([1] * 10)))
    assert {key: images[key] for key in ("kind", "feature_shape")} == {
        "kind": "images",
        "feature_shape": [2, 3, 1],
    }
    assert [images["splits"][part]["num_classes"] for part in ("train", "validation", "test")] == [
        6,
        2,
        2,
    ]
    tables = describe(split_tasks(table_of([1] * 10)))
    assert tables["x_names"] == ["a", "b"]
    assert tables["splits"]["test"]["num_tasks"] == 2


def test_json_can_hold_it_and_long_lists_are_cut() -> None:
    for data in (images_of([1] * 50), table_of([1] * 50), split_classes(images_of([1] * 50))):
        described = describe(data)
        assert json.loads(json.dumps(described)) == described
    assert len(describe(table_of([1] * 50))["tasks"]) == 20


def test_load_path_goes_by_the_ending(tmp_path: Path, write_folder, write_zip, picture) -> None:
    files = {"a/1.png": picture(), "b/1.png": picture()}
    assert isinstance(load_path(write_folder(files)), ImageClasses)
    assert isinstance(load_path(write_folder(files, "folder.csv")), ImageClasses)
    splits = {f"{part}/{part}{i}/1.png": picture() for part in ("train", "test") for i in range(2)}
    assert isinstance(load_path(write_zip(splits)), ImageSplits)
    np.savez(tmp_path / "t.npz", x=np.zeros((2, 1)), y=[0, 1], task=[0, 1])
    (tmp_path / "t.CSV").write_text("task,x,y\n0,0,0\n1,0,1\n")
    for path in (tmp_path / "t.npz", tmp_path / "t.CSV"):
        assert load_path(path).kind == "classification"  # pyright: ignore
        assert load_path(path, "regression").kind == "regression"  # pyright: ignore


def test_load_path_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(DataError) as caught:
        load_path(tmp_path / "t.xlsx")
    assert str(caught.value) == (
        f"{tmp_path}/t.xlsx is no data set that can be read: give a folder or .zip of class "
        "folders, an .npz, .csv, .tsv or .parquet file"
    )
    with pytest.raises(DataError, match=r"nothing-here does not exist$"):
        load_path(tmp_path / "nothing-here")
