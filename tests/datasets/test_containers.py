"""Groups of rows: what `select` takes, and what the containers refuse to hold."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastep._errors import InputError
from metastep.datasets import ImageClasses, TaskTable


def images_of(counts: list[int]) -> ImageClasses:
    """Class i holds `counts[i]` images whose pixels are all i, and whose corner is its number."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.tile(labels[:, None, None, None], (1, 2, 3, 1)).astype(np.uint8)
    images[:, 0, 0, 0] = np.concatenate([np.arange(count) for count in counts])
    return ImageClasses(images, np.asarray(counts), tuple(f"c{i}" for i in range(len(counts))))


def table_of(counts: list[int]) -> TaskTable:
    rows = sum(counts)
    x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    names = tuple(f"t{i}" for i in range(len(counts)))
    return TaskTable(x, x[:, :1] + 0.5, np.asarray(counts), names, "regression", ("a", "b"))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_select_takes_the_rows_of_each_group_in_the_order_asked_for(counts, random) -> None:
    chosen = random.sample(range(len(counts)), random.randint(1, len(counts)))
    table, images = table_of(counts), images_of(counts)
    pieces = np.split(table.x, np.cumsum(counts)[:-1])  # the slow and obvious way
    expected = np.concatenate([pieces[index] for index in chosen])

    part = table.select(chosen)
    np.testing.assert_array_equal(part.x, expected)
    np.testing.assert_array_equal(part.y, expected[:, :1] + 0.5)
    assert part.counts.tolist() == [counts[index] for index in chosen]
    assert part.names == tuple(f"t{index}" for index in chosen)
    assert part.starts.tolist() == [sum(part.counts[:i]) for i in range(len(chosen))]
    assert (part.x_names, part.kind) == (("a", "b"), "regression")

    classes = images.select(chosen)
    assert classes.images[:, 1, 1, 0].tolist() == [i for i in chosen for _ in range(counts[i])]
    assert classes.images[:, 0, 0, 0].tolist() == [k for i in chosen for k in range(counts[i])]


def test_select_copies() -> None:
    images = images_of([2, 2])
    images.select([0, 1]).images[:] = 9
    assert images.images.max() == 1


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "indices is []; it must be a non-empty list of whole numbers"),
        ([0.5], "indices is [0.5]; it must be a non-empty list of whole numbers"),
        ([0, 2], "indices run from 0 to 2; each must be between 0 and 1 and occur once"),
        ([-1], "indices run from -1 to -1; each must be between 0 and 1 and occur once"),
        ([1, 1], "indices run from 1 to 1; each must be between 0 and 1 and occur once"),
    ],
)
def test_select_refuses_indices(indices: list, message: str) -> None:
    for data in (images_of([2, 1]), table_of([2, 1])):
        with pytest.raises(InputError) as caught:
            data.select(indices)
        assert str(caught.value) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "ranking"}, "kind is 'ranking'; choose one of: classification, regression"),
        (
            {"x": np.zeros((3, 2))},
            "x is float64 of shape (3, 2); it must be float32 of shape (rows, features)",
        ),
        (
            {"x": np.zeros(3, np.float32)},
            "x is float32 of shape (3,); it must be float32 of shape (rows, features)",
        ),
        (
            {"kind": "classification"},
            "y is float32 of shape (3, 1) for 3 rows of x; "
            "classification needs int32 of shape (rows,)",
        ),
        (
            {"y": np.zeros((2, 1), np.float32)},
            "y is float32 of shape (2, 1) for 3 rows of x; "
            "regression needs float32 of shape (rows, outputs)",
        ),
        (
            {"counts": np.asarray([3, 0])},
            "counts add up to 3 with a smallest entry of 0, but x has 3 rows; "
            "every group needs at least one row and a count of its own",
        ),
        (
            {"names": ("only",)},
            "counts is int64 of shape (2,) for 1 names; it must be int64 with one entry per name",
        ),
    ],
)
def test_tables_that_do_not_fit_together(change: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        dataclasses.replace(table_of([2, 1]), **change)
    assert str(caught.value) == message


def test_images_must_be_bytes_with_channels() -> None:
    with pytest.raises(InputError) as caught:
        ImageClasses(np.zeros((2, 3, 3), np.uint8), np.asarray([1, 1]), ("a", "b"))
    assert str(caught.value) == (
        "images is uint8 of shape (2, 3, 3); "
        "it must be uint8 of shape (num_images, height, width, channels)"
    )


def test_width_of_the_output() -> None:
    table = table_of([2, 1])
    assert (table.num_outputs, table.feature_shape, table.num_tasks) == (1, (2,), 2)
    classes = dataclasses.replace(
        table, y=np.zeros(3, np.int32), kind="classification", labels=("a", "b", "c")
    )
    assert classes.num_outputs == 3
