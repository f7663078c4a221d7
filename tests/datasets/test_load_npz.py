"""Tables from .npz: round trips with NumPy's own writer, and files made to deceive."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from metastep._errors import DataError
from metastep.datasets import load_npz

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


class Trap:
    """Unpickling this leaves a mark."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def save(tmp_path: Path, **given_arrays: object) -> Path:
    path = tmp_path / "t.npz"
    good = {"x": np.zeros((4, 2)), "y": np.zeros(4), "task": np.asarray([0, 0, 1, 1])}
    np.savez(path, **{**good, **given_arrays})  # pyright: ignore[reportArgumentType]
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_npz(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x of any rank, one or two outputs, tasks as text or numbers, of any byte order and layout."""
    rows = draw(st.integers(2, 12))
    shape = (rows, *draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    x = draw(arrays.arrays(draw(st.sampled_from(["<f4", ">f4", "<f8"])), shape, elements=finite))
    y = draw(arrays.arrays("f4", draw(st.sampled_from([(rows,), (rows, 2)])), elements=finite))
    kind = draw(st.sampled_from([np.int8, np.uint64, "U3", "S3"]))
    task = np.asarray(draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows)), kind)
    task[:2] = [0, 1]
    return np.asarray(x, order=draw(st.sampled_from("CF"))), y, task


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=tables())
def test_rows_survive_a_round_trip(drawn, tmp_path) -> None:
    x, y, task = drawn
    table = load_npz(save(tmp_path, x=x, y=y, task=task))
    order = np.argsort(task.astype(int), kind="stable")
    np.testing.assert_array_equal(table.x, x[order].astype(np.float32))
    np.testing.assert_array_equal(table.y, y[order].reshape(len(y), -1))
    assert table.names == tuple(str(value) for value in sorted(set(task.astype(int).tolist())))
    assert np.repeat(table.names, table.counts).tolist() == [str(int(t)) for t in task[order]]
    assert (table.kind, table.x.dtype, table.x.flags.c_contiguous) == (
        "regression",
        np.float32,
        True,
    )


@pytest.mark.parametrize(
    ("y", "labels", "codes"),
    [
        (np.asarray(["b", "a", "b", "a"]), ("a", "b"), [1, 0, 1, 0]),
        (np.asarray([b"b", b"a", b"b", b"a"]), ("a", "b"), [1, 0, 1, 0]),
        (np.asarray([True, False, True, False]), ("false", "true"), [1, 0, 1, 0]),
        (np.asarray([[10], [9], [10], [9]], np.uint8), ("9", "10"), [1, 0, 1, 0]),
    ],
)
def test_labels(tmp_path: Path, y, labels, codes) -> None:
    table = load_npz(save(tmp_path, y=y))
    assert (table.kind, table.labels, table.y.tolist()) == ("classification", labels, codes)
    assert table.y.dtype == np.int32


def test_kind_overrules(tmp_path: Path) -> None:
    path = save(tmp_path, y=np.asarray([0, 1, 2, 3]))
    assert load_npz(path).kind == "classification"
    assert load_npz(path, "regression").y.tolist() == [[0], [1], [2], [3]]


def test_compressed_files_and_other_arrays_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez_compressed(
        path, x=np.ones((3, 1)), y=np.ones(3), task=["a", "b", "b"], note=np.asarray([{}])
    )
    assert load_npz(path).counts.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": np.zeros(4)},
            "x has shape (4,); it must be (rows, features), "
            "so give a single feature an axis of its own, as x[:, None] does",
        ),
        (
            {"x": np.zeros((4, 0))},
            "x has shape (4, 0); it must be (rows, features), "
            "so give a single feature an axis of its own, as x[:, None] does",
        ),
        (
            {"y": np.zeros(3)},
            "the arrays differ in length (x 4, y 3, task 4); each needs one entry per row",
        ),
        (
            {"task": np.asarray(7)},
            "the arrays differ in length (x 4, y 4, task 0); each needs one entry per row",
        ),
        ({"task": np.zeros((4, 1), int)}, "task has shape (4, 1); it must be (rows,)"),
        (
            {"y": np.zeros((4, 1, 1))},
            "y has shape (4, 1, 1); it must be (rows,) or (rows, outputs)",
        ),
        (
            {"y": np.asarray([["a"] * 2] * 4)},
            "y has shape (4, 2); class labels must have shape (rows,)",
        ),
        (
            {"x": np.asarray([[0, 1], [2, np.nan], [0, np.inf], [0, 0]])},
            "x[:, 1] is nan in row 1 (2 such value(s)); every value must be a finite float32, "
            "so fill or drop such rows",
        ),
        (
            {"x": np.full((4, 2, 2), -np.inf)},
            "x[:, 0, 0] is -inf in row 0 (16 such value(s)); every value must be a finite float32, "
            "so fill or drop such rows",
        ),
        (
            {"y": np.asarray([0, 0, 1e300, 0])},
            "column 'y' is 1e+300 in row 2 (1 such value(s)); every value must be a finite "
            "float32, so fill or drop such rows",
        ),
        ({"x": np.zeros((4, 2), complex)}, "x is of type complex128; it must hold real numbers"),
        ({"x": np.full((4, 2), "a")}, "x is of type <U1; it must hold real numbers"),
        ({"y": np.zeros(4, "M8[s]")}, "y is of type datetime64[s]; it must hold real numbers"),
        ({"task": np.zeros(4, complex)}, "'task' is of type complex128, which is no task"),
        (
            {"task": np.asarray([0, np.nan, 1, 1])},
            "'task' is missing in row 1; each row needs a task",
        ),
        (
            {"task": np.asarray(["", "a", "b", "c"])},
            "'task' is missing in row 0; each row needs a task",
        ),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, change: dict, message: str) -> None:
    path = save(tmp_path, **change)
    assert refusal(path) == f"{path}: {message}"


def test_no_rows_and_one_task(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.zeros((0, 2)), y=np.zeros(0), task=np.zeros(0, int))
    assert refusal(path) == f"{path} holds no rows"
    path = save(tmp_path, task=np.full(4, 3))
    assert refusal(path) == (
        f"{path} holds one task only (3); meta-learning needs several, "
        "so check which column says the task of a row"
    )


def test_missing_arrays(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, X=np.zeros((2, 1)), y=np.zeros(2))
    assert refusal(path) == f"{path} lacks the array(s) x, task; it holds: X, y"


@pytest.mark.parametrize("name", ["x", "y", "task"])
def test_pickles_are_not_opened(tmp_path: Path, name: str) -> None:
    path = save(tmp_path, **{name: np.asarray([Trap()] * 4, dtype=object)})
    assert refusal(path) == (
        f"{path}: array {name!r} holds Python objects, which are never unpickled; "
        "save it as numbers or text, for example with np.asarray(values, dtype=float)"
    )
    assert not Trap.sprung


def test_a_bare_pickle_and_a_bare_array(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    for content in (pickle.dumps(Trap()), buffer.getvalue(), b"PK\x03\x04 cut"):
        path.write_bytes(content)
        assert refusal(path) == (
            f"{path} is not a readable zip archive (File is not a zip file); fetch or make it again"
        )
    assert not Trap.sprung


def npy(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode("latin-1").ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 9), }"),
            "its header promises 72000000000000 bytes, it has 0",
        ),
        (
            npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -1), }", bytes(8)),
            "its header promises 8 bytes, it has 8",
        ),
        (
            npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1), }", bytes(15)),
            "its header promises 16 bytes, it has 15",
        ),
        (npy("__import__('os').abort()"), ""),
        (npy("{'descr': '<f8'}"), ""),
        (npy("{}", version=b"\x09\x00"), "format version (9, 0)"),
        (b"", ""),
        (b"\x93NUMPY", ""),
    ],
)
def test_headers_that_lie(tmp_path: Path, content: bytes, message: str) -> None:
    path = save(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
        for name in ("y.npy", "task.npy"):
            archive.writestr(name, npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0,), }"))
    start = f"{path}: array 'x' is damaged: {message}"
    assert refusal(path).startswith(start)


def test_text_of_length_zero(tmp_path: Path) -> None:
    path = save(tmp_path, task=np.asarray(["", "", "", ""]))
    assert refusal(path) == f"{path}: 'task' is missing in row 0; each row needs a task"


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, x=np.ones((100, 10)), y=np.ones(100), task=np.arange(100))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: cannot read 'x.npy': Bad CRC-32")
