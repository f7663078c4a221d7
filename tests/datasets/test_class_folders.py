"""Class folders: which folders are classes, which are splits, how images are brought to one size."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from metastep._errors import DataError, InputError
from metastep.datasets import ImageClasses, ImageSplits, class_folders, load_class_folders
from metastep.datasets import images as images_module


def refusal(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_class_folders(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def classes_of(path: Path, **options) -> ImageClasses:
    data = load_class_folders(path, **options)
    assert isinstance(data, ImageClasses)
    return data


def splits_of(path: Path) -> ImageSplits:
    data = load_class_folders(path)
    assert isinstance(data, ImageSplits)
    return data


def zipped(folder: Path) -> Path:
    """A zip of a folder that has the folder's own name as outermost folder, as most tools make it."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def test_folder_and_zip_give_the_same_classes(write_folder, picture) -> None:
    root = write_folder(
        {"dog/2.png": picture(20), "dog/1.png": picture(10), "cat/x.PNG": picture(30)}
    )
    for data in (classes_of(root), classes_of(zipped(root))):
        assert data.names == ("cat", "dog")
        assert data.counts.tolist() == [1, 2]
        assert data.images.shape == (3, 4, 6, 1)
        assert data.images[:, 0, 0, 0].tolist() == [30, 10, 20]  # by class, then by file name


def test_nested_classes_are_named_by_their_path(write_folder, picture) -> None:
    root = write_folder({f"sets/{a}/c{i}/1.png": picture(i) for a in ("Ä", "B") for i in range(2)})
    assert classes_of(root).names == ("B/c0", "B/c1", "Ä/c0", "Ä/c1")


def test_litter_and_notes_are_passed_over(write_folder, picture) -> None:
    litter = ("a/.DS_Store", "a/Thumbs.db", "__MACOSX/a/._1.png", ".git/x", "b/desktop.ini")
    files = {"a/1.png": picture(), "b/1.png": picture(), "README.md": b"notes"}
    root = write_folder({**files, **dict.fromkeys(litter, b"litter")})
    for path in (root, zipped(root)):
        assert classes_of(path).names == ("a", "b")


def test_links_to_images_and_folders_are_followed(write_folder, picture, tmp_path) -> None:
    kept = write_folder({"real/1.png": picture(7)}, "kept")
    root = write_folder({"a/1.png": picture(5), "b/": b""})
    (root / "b" / "link.png").symlink_to(kept / "real" / "1.png")
    (root / "c").symlink_to(kept / "real")
    assert classes_of(root).images[:, 0, 0, 0].tolist() == [5, 7, 7]


def test_a_loop_of_links_is_an_error(write_folder, picture) -> None:
    root = write_folder({"a/b/1.png": picture()})
    (root / "a" / "loop").symlink_to(root)
    assert refusal(root) == f"{root}/a/loop is reached twice through a link; remove the link"


@pytest.mark.parametrize("validation", ["val", "Validation"])
def test_folders_named_as_splits_are_the_splits(write_folder, picture, validation) -> None:
    files = {
        "train/a/1.png": 1,
        f"{validation}/b/1.png": 2,
        "test/c/d/1.png": 3,
        "test/c/e/1.png": 4,
    }
    root = write_folder({name: picture(value) for name, value in files.items()})
    data = splits_of(root)
    assert (data.train.names, data.validation.names) == (("a",), ("b",))
    assert data.test.names == ("c/d", "c/e")
    assert data.test.images[:, 0, 0, 0].tolist() == [3, 4]


def test_without_validation_a_fifth_of_training_takes_its_place(write_folder, picture) -> None:
    names = [f"train/c{i:02}" for i in range(10)] + ["test/t"]
    root = write_folder({f"{name}/1.png": picture(i) for i, name in enumerate(names)})
    data = splits_of(root)
    assert (data.train.num_classes, data.validation.num_classes) == (8, 2)
    assert sorted(data.train.names + data.validation.names) == [f"c{i:02}" for i in range(10)]
    assert splits_of(root).validation.names == data.validation.names
    assert data.test.images[0, 0, 0, 0] == 10


def test_training_folders_alone_are_plain_classes(write_folder, picture) -> None:
    root = write_folder({"train/a/1.png": picture(), "train/b/1.png": picture()})
    assert classes_of(root).names == ("a", "b")


def test_classes_that_happen_to_be_called_train_and_test(write_folder, picture) -> None:
    root = write_folder({"train/1.png": picture(), "test/1.png": picture()})
    assert classes_of(root).names == ("test", "train")


def test_default_size_is_the_most_common_one_up_to_84(write_folder, picture) -> None:
    small = {"a/1.png": picture(size=(6, 4)), "a/2.png": picture(size=(6, 4))}
    root = write_folder({**small, "b/1.png": picture(size=(50, 90))})
    assert classes_of(root).images.shape == (3, 4, 6, 1)
    large = write_folder({f"{c}/1.png": picture(size=(168, 126)) for c in "ab"}, "large")
    assert classes_of(large).images.shape == (2, 63, 84, 1)


def test_size_and_channels_asked_for(write_folder, picture) -> None:
    root = write_folder({f"{c}/1.png": picture() for c in "ab"})
    assert classes_of(root, image_size=5, channels=3).images.shape == (2, 5, 5, 3)
    assert classes_of(root, image_size=(2, 7)).images.shape == (2, 2, 7, 1)


def test_shrinking_averages_over_all_pixels(write_folder, picture) -> None:
    stripes = np.zeros((40, 40), np.uint8)
    stripes[:, ::2] = 255  # picking every eighth pixel would give all 0 or all 255
    root = write_folder({f"{c}/1.png": picture(stripes) for c in "ab"})
    inner = classes_of(root, image_size=5).images[:, 1:-1, 1:-1]
    assert ((inner > 110) & (inner < 145)).all()


def test_grey_stays_grey_and_one_colour_image_makes_all_rgb(write_folder, picture) -> None:
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 90, 90, 90])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    deep = np.full((4, 6), 0x8000, np.uint16)
    grey = {"a/1.png": picture(mode="1"), "a/2.png": buffer.getvalue(), "b/3.png": picture(deep)}
    data = classes_of(write_folder(grey))
    assert data.images[:, 0, 0].tolist() == [[0], [90], [128]]
    red = {"c/4.png": picture((250, 0, 0), mode="RGB")}
    data = classes_of(write_folder({**grey, **red}, "mixed"))
    assert data.images[:, 0, 0].tolist() == [[0] * 3, [90] * 3, [128] * 3, [250, 0, 0]]


def test_transparent_pixels_are_white(write_folder, picture) -> None:
    clear = picture((0, 0, 0, 0), mode="RGBA")
    solid = picture((0, 0, 0, 255), mode="RGBA")
    data = classes_of(write_folder({"a/1.png": clear, "b/1.png": solid}))
    assert data.images[:, 0, 0, 0].tolist() == [255, 0]


def test_photos_are_turned_as_their_camera_says(write_folder, picture) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise
    pixels = np.zeros((40, 80), np.uint8)
    pixels[:, 40:] = 255
    photo = picture(pixels, format="JPEG", exif=exif, quality=95)
    data = classes_of(write_folder({"a/1.jpg": photo, "b/1.jpg": photo}))
    assert data.images.shape == (2, 80, 40, 1)
    assert data.images[0, 70, 20, 0] > 250
    assert data.images[0, 10, 20, 0] < 5


def test_a_file_that_is_no_image(write_folder, picture) -> None:
    root = write_folder({"a/1.png": picture(), "a/notes.txt": b"x", "b/1.png": picture()})
    for path, inner in ((root, "a"), (zipped(root), "data/a")):
        assert refusal(path) == (
            f"{path}/{inner}/notes.txt is not an image (.png, .jpg, .jpeg, .bmp, .gif, .webp, "
            ".tif, .tiff, .pbm, .pgm, .ppm); class folders may hold images only"
        )


def test_an_image_outside_the_class_folders(write_folder, picture) -> None:
    root = write_folder({"a/1.png": picture(), "b/1.png": picture(), "stray.png": picture()})
    assert refusal(root) == (
        f"{root}/stray.png lies outside the class folders; move it into the folder of its class"
    )


def test_a_class_without_images(write_folder, picture) -> None:
    root = write_folder({"a/1.png": picture(), "b/": b"", "c/1.png": picture()})
    assert refusal(root) == f"{root}/b is a class folder without images; remove it"
    assert refusal(zipped(root)) == (
        f"{root}.zip/data/b is a class folder without images; remove it"
    )


@pytest.mark.parametrize("files", [{"a/1.png": b""}, {"readme.md": b"x"}])
def test_fewer_than_two_classes(write_folder, files) -> None:
    root = write_folder(files)
    count = sum(name.endswith("png") for name in files)
    assert refusal(root) == (
        f"{root} holds {count} class folder(s) of images; "
        "few-shot tasks need at least two classes, one folder each"
    )


@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_bytes_that_are_no_image(write_folder, picture, content: bytes) -> None:
    root = write_folder({"a/1.png": picture(), "b/bad.png": content})
    message = refusal(root)
    assert message.startswith(f"{root}/b/bad.png cannot be read as an image (")
    assert message.endswith("); mend or remove it")


def test_a_truncated_image(write_folder, picture, rng) -> None:
    noise = picture(rng.integers(0, 256, (50, 50), np.uint8))
    for cut in (len(noise) // 2, len(noise) - 40):
        root = write_folder({"a/1.png": picture(), "b/bad.png": noise[:cut]}, f"cut{cut}")
        message = refusal(root)
        assert message.startswith(f"{root}/b/bad.png cannot be read as an image (")


def test_a_huge_image_is_refused_by_its_header(write_folder, picture) -> None:
    for side in (9_000, 10_000, 30_000):  # below, between and above Pillow's own two limits
        png = bytearray(picture())
        png[16:24] = side.to_bytes(4, "big") * 2
        png[29:33] = PngImagePlugin.zlib.crc32(png[12:29]).to_bytes(4, "big")
        root = write_folder({"a/1.png": picture(), "b/bomb.png": bytes(png)}, f"side{side}")
        assert refusal(root) == (
            f"{root}/b/bomb.png has more than 67,108,864 pixels; "
            "shrink it, or remove it if it is no image"
        )


def test_32_bit_pixels(write_folder, picture) -> None:
    deep = picture(np.zeros((4, 6), np.float32), format="TIFF")
    root = write_folder({"a/1.tif": deep, "b/1.tif": deep})
    assert refusal(root) == (
        f"{root}/a/1.tif has 32-bit pixels; save it with 8 or 16 bits per channel"
    )


def test_more_images_than_memory(write_folder, picture, monkeypatch) -> None:
    monkeypatch.setattr(class_folders, "MAX_DECODED", 1 << 20)
    root = write_folder({f"{c}/1.png": picture() for c in "ab"})
    assert refusal(root, image_size=1000) == (
        f"{root}: 2 images of 1000 x 1000 x 1 take 0 GiB of memory; give a smaller image_size"
    )


def test_a_class_in_two_splits(write_folder, picture) -> None:
    names = ("train/a/1.png", "train/b/1.png", "test/a/1.png")
    root = write_folder({name: picture() for name in names})
    assert refusal(root) == (
        f"{root} has the class 'a' in train and in test; meta-learning is judged on classes it was "
        "not trained on, so each may be in one of them only"
    )


@pytest.mark.parametrize(
    ("folders", "listed"),
    [
        (("train/a", "test/b", "more/c"), "test, train, more"),
        (("train/a", "train/c", "val/b"), "train, val"),
        (("train/a", "val/b", "validation/c", "test/d"), "test, train, val, validation"),
    ],
)
def test_splits_that_are_unclear(write_folder, picture, folders, listed) -> None:
    root = write_folder({f"{folder}/1.png": picture() for folder in folders})
    assert refusal(root) == (
        f"{root} holds the folders {listed}; data that is split already must have train/ and "
        "test/, may have val/ or validation/, and nothing beside them"
    )


def test_one_training_class_cannot_be_split_further(write_folder, picture) -> None:
    root = write_folder({f"{name}/1.png": picture() for name in ("train/a", "test/b")})
    assert refusal(root) == (
        f"{root} has one training class and no validation folder; at least two are needed"
    )


def test_paths_that_hold_nothing(tmp_path: Path, write_folder) -> None:
    assert refusal(tmp_path / "none") == f"{tmp_path / 'none'} does not exist"
    empty = write_folder({}, "empty")
    assert refusal(empty) == f"{empty} is an empty folder"


def test_a_pipe_in_a_class_folder(write_folder, picture) -> None:
    root = write_folder({"a/1.png": picture()})
    os.mkfifo(root / "a" / "2.png")
    assert refusal(root) == f"{root}/a/2.png is not a regular file"


def test_a_folder_that_may_not_be_listed(write_folder, picture, monkeypatch) -> None:
    root = write_folder({"a/1.png": picture(), "b/1.png": picture()})
    monkeypatch.setattr(os, "access", lambda *_: False)  # root passes real mode bits
    assert refusal(root) == f"{root} cannot be read: permission denied"


def test_a_file_that_may_not_be_read(write_folder, picture, monkeypatch) -> None:
    root = write_folder({"a/1.png": picture(), "b/1.png": picture()})

    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", deny)
    assert refusal(root) == f"{root}/a/1.png cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size is 0; it must be a whole number of at least 1"),
        (
            {"image_size": (1, 2, 3)},
            "image_size is (1, 2, 3); give one number, or (height, width)",
        ),
        ({"channels": 2}, "channels is 2; it must be 1 (grey) or 3 (RGB)"),
    ],
)
def test_options_out_of_range(tmp_path, options, message) -> None:
    with pytest.raises(InputError) as caught:
        load_class_folders(tmp_path, **options)
    assert str(caught.value) == message


def test_only_formats_that_start_no_programs() -> None:
    assert "EPS" not in images_module.FORMATS.values()
