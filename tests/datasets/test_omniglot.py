"""Omniglot: the splits against the published lists, the pixels against Pillow, the cache, bad files."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metastep._errors import InputError
from metastep.datasets import ImageSplits, load_omniglot, omniglot
from metastep.datasets.paths import cache_root


@pytest.fixture(scope="session")
def real(omniglot_root: Path) -> ImageSplits:
    return load_omniglot(omniglot_root, cache=False)


def parts_of(data: ImageSplits) -> tuple:
    return data.train, data.validation, data.test


@pytest.mark.omniglot
def test_the_rule_gives_exactly_the_published_lists(real, omniglot_root) -> None:
    for part, name in zip(parts_of(real), ("train", "val", "test"), strict=True):
        path = omniglot_root / "omniglot" / "splits" / f"omniglot_vinyals_{name}.json"
        listed = json.loads(path.read_text())
        published = [
            f"{alphabet}/{character}"
            for alphabets in listed.values()
            for alphabet, characters in alphabets.items()
            for character in characters
        ]
        assert list(part.names) == published
        assert set(part.counts.tolist()) == {20}


@pytest.mark.omniglot
def test_sizes_and_ink(real) -> None:
    assert [part.num_classes for part in parts_of(real)] == [1028, 172, 423]
    for part in parts_of(real):
        assert part.images.shape == (20 * part.num_classes, 28, 28, 1)
        assert 10 < part.images.mean() < 40  # little ink on much paper
        assert part.images.max() == 255
        assert part.images.min() == 0
        assert (part.images.reshape(len(part.images), -1).max(axis=1) > 60).all()  # none is blank


@pytest.mark.omniglot
def test_pixels_are_inverted_averages_of_the_drawing(real, omniglot_root) -> None:
    archive = zipfile.ZipFile(omniglot_root / "omniglot" / "images_evaluation.zip")
    files = sorted(name for name in archive.namelist() if name.startswith("images_evaluation/ULOG"))
    drawing = next(name for name in files if name.endswith("character26/1623_01.png"))
    with archive.open(drawing) as file:
        ink = 1.0 - np.asarray(Image.open(file), float)  # (105, 105), 1 where there is ink
    # An oracle: each of the 28 pixels averages its neighbourhood with weights max(0, 1 - |t|).
    centres = (np.arange(28) + 0.5) * 105 / 28 - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(105) - centres[:, None]) / (105 / 28))
    weights /= weights.sum(axis=1, keepdims=True)
    expected = 255 * weights @ ink @ weights.T
    first = real.test.images[real.test.starts[real.test.names.index("ULOG/character26")], ..., 0]
    np.testing.assert_allclose(first, expected, atol=2.0)  # Pillow rounds after each direction


@pytest.mark.omniglot
@pytest.mark.slow
def test_official_split_holds_out_whole_alphabets(omniglot_root) -> None:
    first, again, other = (
        load_omniglot(omniglot_root, "official", seed=seed) for seed in (0, 0, 1)
    )
    assert first.test.num_classes == 659
    assert first.train.num_classes + first.validation.num_classes == 964
    of_part = [{name.split("/")[0] for name in part.names} for part in parts_of(first)]
    assert [len(alphabets) for alphabets in of_part] == [25, 5, 20]
    assert len(set.union(*of_part)) == 50
    assert first.validation.names == again.validation.names
    assert first.validation.names != other.validation.names


def test_folders_zips_and_cache_agree(small_omniglot, tmp_path) -> None:
    from_zip = load_omniglot(small_omniglot, image_size=3)
    unpacked = tmp_path / "root" / "omniglot"
    for name in ("images_background", "images_evaluation"):
        zipfile.ZipFile(small_omniglot / "omniglot" / f"{name}.zip").extractall(unpacked)
    from_folder = load_omniglot(tmp_path / "root", image_size=3)
    from_cache = load_omniglot(small_omniglot, image_size=3)
    for parts in zip(*(parts_of(d) for d in (from_zip, from_folder, from_cache)), strict=True):
        for part in parts[1:]:
            np.testing.assert_array_equal(parts[0].images, part.images)
            assert parts[0].names == part.names
    assert [part.num_classes for part in parts_of(from_zip)] == [4 + 3, 10, 3]
    assert from_zip.train.names[-3:] == (
        "Angelic/character01",
        "Angelic/character02",
        "Tibetan/character01",
    )
    # Drawing 280 is the first of the evaluation set; 255 - (its number modulo 251) is its ink.
    assert from_zip.train.images[4 * 20, 0, 0, 0] == 255 - 280 % 251
    assert from_zip.train.images.dtype == from_cache.train.images.dtype == np.uint8


def test_the_cache_is_used_and_a_changed_or_damaged_one_is_not(small_omniglot, monkeypatch) -> None:
    load_omniglot(small_omniglot, image_size=2)
    decoded = []
    original = omniglot._decode_set
    monkeypatch.setattr(
        omniglot, "_decode_set", lambda *given: decoded.append(given[1]) or original(*given)
    )
    load_omniglot(small_omniglot, image_size=2)
    assert decoded == []
    stored = sorted((cache_root() / "decoded").glob("images_background-2-*.npz"))
    stored[0].write_bytes(b"damaged")
    load_omniglot(small_omniglot, image_size=2)
    assert decoded == ["images_background"]
    archive = small_omniglot / "omniglot" / "images_evaluation.zip"
    with zipfile.ZipFile(archive, "a") as changed:
        changed.comment = b"touched"
    load_omniglot(small_omniglot, image_size=2)
    assert decoded == ["images_background", "images_evaluation"]


def test_a_cache_that_cannot_be_written_is_no_error(small_omniglot, monkeypatch) -> None:
    def deny(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(omniglot, "write_bytes", deny)
    assert load_omniglot(small_omniglot, image_size=1).test.num_classes == 3


def test_missing_sets_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_omniglot(tmp_path)
    assert str(caught.value) == (
        f"no images_background.zip and no images_background/ in {tmp_path}/omniglot; "
        "run `metastep data fetch omniglot`, or put the official images_*.zip there"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "lake"}, "split is 'lake'; choose one of: official, vinyals"),
        ({"image_size": 106}, "image_size is 106; Omniglot's drawings have 105 x 105 pixels"),
        ({"image_size": 0}, "image_size is 0; it must be a whole number of at least 1"),
        ({"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
    ],
)
def test_options_out_of_range(tmp_path, options, message) -> None:
    with pytest.raises(InputError) as caught:
        load_omniglot(tmp_path, **options)
    assert str(caught.value) == message


def test_incomplete_sets(small_omniglot, tmp_path, write_zip) -> None:
    folder = small_omniglot / "omniglot"
    names = zipfile.ZipFile(folder / "images_background.zip").namelist()
    for kept, found in ((names[:-1], "1 of 19 drawings, 13 of 20 drawings"), ([], "none")):
        with zipfile.ZipFile(folder / "images_background.zip", "w") as archive:
            for name in kept:
                archive.writestr(name, b"")
        with pytest.raises(InputError) as caught:
            load_omniglot(small_omniglot)
        assert str(caught.value) == (
            f"{folder}/images_background.zip is not the complete images_background: it must hold "
            f"14 characters of 20 drawings, and holds {found}; fetch it again"
        )


def test_another_layout(small_omniglot) -> None:
    path = small_omniglot / "omniglot" / "images_background.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pictures/cat.png", b"")
    with pytest.raises(InputError) as caught:
        load_omniglot(small_omniglot)
    assert str(caught.value) == (
        f"{path} holds 'pictures/cat.png', which is no alphabet/character/drawing.png"
    )
