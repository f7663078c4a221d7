"""A cache folder of its own for every test, and small images, folders and zips made on the spot."""

import io
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metastep.datasets import omniglot

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("METASTEP_DATA", raising=False)


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Bytes of an image filled with one value, or of the pixels given."""

    def make(fill: object = 0, size: tuple[int, int] = (6, 4), mode: str = "L", **save) -> bytes:
        """`size` is (width, height), as Pillow has it."""
        if isinstance(fill, np.ndarray):
            image = Image.fromarray(fill)
        else:
            image = Image.new(mode, size, fill)  # pyright: ignore[reportArgumentType]
        buffer = io.BytesIO()
        image.save(buffer, save.pop("format", "PNG"), **save)
        return buffer.getvalue()

    return make


@pytest.fixture
def write_folder(tmp_path: Path) -> Callable[[Files], Path]:
    """Write files below a new folder; a name that ends in "/" makes an empty folder."""

    def write(files: Files, name: str = "data") -> Path:
        root = tmp_path / name
        root.mkdir()
        for file, content in files.items():
            target = root / file
            if file.endswith("/"):
                target.mkdir(parents=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        return root

    return write


@pytest.fixture
def write_zip(tmp_path: Path) -> Callable[..., Path]:
    """Write a zip of (name or ZipInfo, content) pairs, or of a dict of them."""

    def write(
        entries: Files | Iterable[tuple[str | zipfile.ZipInfo, bytes]], name: str = "data.zip"
    ) -> Path:
        path = tmp_path / name
        pairs = entries.items() if isinstance(entries, dict) else entries
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, content in pairs:
                archive.writestr(entry, content)
        return path

    return write


@pytest.fixture
def small_omniglot(tmp_path: Path, picture, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with both sets, two characters per alphabet; the expected sizes are set to match.

    Pixel values count the drawings, so that a wrong order shows.
    """
    monkeypatch.setitem(omniglot.SETS, "images_background", 14)
    monkeypatch.setitem(omniglot.SETS, "images_evaluation", 6)
    monkeypatch.setattr(omniglot, "TEST_CHARACTERS", 3)
    alphabets = {
        "images_background": sorted([*omniglot.VALIDATION_ALPHABETS, "Greek", "Tagalog"]),
        "images_evaluation": ["Angelic", "Tibetan", "ULOG"],
    }
    root = tmp_path / "small"
    (root / "omniglot").mkdir(parents=True)
    number = 0
    for name, listed in alphabets.items():
        with zipfile.ZipFile(root / "omniglot" / f"{name}.zip", "w") as archive:
            for character in (f"{alphabet}/character{i:02}" for alphabet in listed for i in (1, 2)):
                for drawing in range(20):
                    file = f"{name}/{character}/{drawing + 1:02}.png"
                    archive.writestr(file, picture(number % 251))
                    number += 1
    return root
