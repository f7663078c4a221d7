"""Hostile and broken zips, each refused with one line that says what is wrong."""

import os
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from metastep._errors import DataError
from metastep.datasets import open_zip


def refusal(path: Path, **limits) -> str:
    """The message `open_zip` refuses an archive with; it must be one line."""
    with pytest.raises(DataError) as caught:
        _read_all(path, **limits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _read_all(path: Path, **limits) -> None:
    with open_zip(path, **limits) as archive:
        for name in archive.members:
            archive.read(name)


def test_files_folders_and_content_of_a_good_archive(write_zip) -> None:
    path = write_zip({"b/ü.txt": b"two", "a.txt": b"one", "empty/deep/": b"", "w\\x.txt": b"three"})
    with open_zip(path) as archive:
        assert list(archive.members) == ["a.txt", "b/ü.txt", "w/x.txt"]
        assert archive.folders == {"b", "empty", "empty/deep", "w"}
        assert [archive.read(name) for name in archive.members] == [b"one", b"two", b"three"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:/x", "..\\x", "a/.."])
def test_paths_that_leave_the_archive(write_zip, name: str) -> None:
    path = write_zip({name: b"x"})
    shown = name.replace("\\", "/")
    assert refusal(path) == f"{path} holds {shown!r}, a path that leads out of the archive"


def test_symbolic_links(write_zip) -> None:
    link = zipfile.ZipInfo("class/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = write_zip([(link, b"/etc/passwd")])
    assert refusal(path) == f"{path} holds 'class/link.png', a symbolic link; pack the file itself"


def test_encrypted(write_zip) -> None:
    path = write_zip({"secret.png": b"x"})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.find(signature) + offset] |= 1  # the flag that says "encrypted"
    path.write_bytes(content)
    assert refusal(path) == f"{path} is encrypted ('secret.png'); pack it again without a password"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice(write_zip) -> None:
    path = write_zip([("a.png", b"1"), ("a.png", b"2")])
    assert refusal(path) == f"{path} holds 'a.png' twice; pack it again with one of them"


def test_too_much_in_all(write_zip) -> None:
    path = write_zip({"a": os.urandom(2 << 20), "b": os.urandom(2 << 20)})
    assert refusal(path, max_bytes=3 << 20) == (
        f"{path} would unpack to 4 MiB; at most 3 MiB are read"
    )


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("zeros", "w", force_zip64=True) as file,
    ):
        for _ in range(300):
            file.write(bytes(1 << 20))
    message = refusal(path)
    assert message.startswith(f"{path} would unpack to 300 MiB, ")
    assert message.endswith("more than 150 times is taken for a decompression bomb")


def test_small_files_of_zeros_are_no_bomb(write_zip) -> None:
    with open_zip(write_zip({"zeros": bytes(1 << 20)})) as archive:
        assert len(archive.read("zeros")) == 1 << 20


def test_a_size_that_lies_is_found_on_reading(write_zip) -> None:
    path = write_zip({"a": bytes(100_000)})
    content = bytearray(path.read_bytes())
    directory = content.find(b"PK\x01\x02")
    struct.pack_into("<I", content, directory + 24, 10)  # claims to unpack to 10 bytes
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: cannot read 'a': Bad CRC-32")


def test_a_flipped_byte(write_zip) -> None:
    path = write_zip({"a": os.urandom(1000)})
    content = bytearray(path.read_bytes())
    content[500] ^= 0xFF
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}: cannot read 'a': ")


def test_truncated(write_zip) -> None:
    path = write_zip({"a": os.urandom(1000)})
    path.write_bytes(path.read_bytes()[:700])
    assert refusal(path) == (
        f"{path} is not a readable zip archive (File is not a zip file); fetch or make it again"
    )


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.zip") == f"{tmp_path / 'none.zip'} does not exist"
    empty = tmp_path / "empty.zip"
    empty.touch()
    assert refusal(empty) == f"{empty} is empty (0 bytes)"
    assert refusal(tmp_path) == f"{tmp_path} is a folder; a file is needed here"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    assert refusal(tmp_path / "pipe.zip") == f"{tmp_path / 'pipe.zip'} is not a regular file"


def test_no_permission(write_zip, monkeypatch) -> None:
    path = write_zip({"a": b"x"})
    # The tests may run as root, whom no mode bits stop.
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert refusal(path) == f"{path} cannot be read: permission denied"


def test_impossible_names(tmp_path: Path) -> None:
    assert refusal(tmp_path / ("x" * 300)).endswith("cannot be read: File name too long")
    assert refusal(Path("a\0b")) == "a\0b does not exist"
