"""Random damage to every kind of file: it is read, or refused with one clear line; nothing else."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from metastep._errors import DataError
from metastep.datasets import describe, load_path

damage = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8)


@pytest.fixture
def intact(tmp_path: Path, write_zip, picture, rng) -> dict[str, Path]:
    """One good file of each kind."""
    import pyarrow as pa
    import pyarrow.parquet

    rows = {"task": ["a", "b", "ü"], "x": [1.0, 2.0, 3.0], "y": [0.5, 1.5, 2.5]}
    pyarrow.parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("task,x,y\na,1,0.5\nb,2,1.5\nü,3,2.5\n")
    np.savez(tmp_path / "t.npz", x=rng.normal(size=(3, 2)), y=np.ones(3), task=["a", "b", "c"])
    noise = rng.integers(0, 256, (9, 9, 3), np.uint8)
    formats = {
        "png": "PNG",
        "jpg": "JPEG",
        "gif": "GIF",
        "bmp": "BMP",
        "tif": "TIFF",
        "webp": "WEBP",
    }
    images = {
        f"c{i}/1.{end}": picture(noise, format=name)
        for i, (end, name) in enumerate(formats.items())
    }
    for name, content in images.items():  # outside a zip no checksum stands before the decoder
        target = tmp_path / "folder" / name
        target.parent.mkdir(parents=True)
        target.write_bytes(content)
    return {
        "parquet": tmp_path / "t.parquet",
        "csv": tmp_path / "t.csv",
        "npz": tmp_path / "t.npz",
        "zip": write_zip(images),
        **{name[3:]: tmp_path / "folder" / name for name in images},
    }


@pytest.mark.filterwarnings("ignore")  # Pillow warns about odd tags in what it can still read
@pytest.mark.parametrize(
    "kind",
    ["parquet", "csv", "npz", "zip", "1.png", "1.jpg", "1.gif", "1.bmp", "1.tif", "1.webp"],
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(changes=[], length=0.999)
@given(changes=damage, length=st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.5, 0.1]))
def test_damaged_bytes(intact, kind: str, changes, length: float) -> None:
    path = intact[kind]
    whole = path.read_bytes()
    spoilt = bytearray(whole[: int(length * len(whole))])
    for place, value in changes:
        if spoilt:
            spoilt[min(int(place * len(spoilt)), len(spoilt) - 1)] = value
    path.write_bytes(spoilt)
    message = None
    try:
        describe(load_path(path.parents[1] if path.parents[1].name == "folder" else path))
    except DataError as error:
        message = str(error)
    finally:
        path.write_bytes(whole)
    assert message is None or ("\n" not in message and str(path) in message)
