"""Zip archives from strangers: what can be wrong with one is found before a byte is used.

Nothing is ever unpacked to disk, so a path like "../x" could do no harm here; it is refused all the
same, because an archive that holds one was made to be dangerous or is broken.
"""

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metastep._errors import DataError
from metastep.datasets.paths import check_file, one_line

MAX_BYTES = 32 << 30
"""Most an archive may hold uncompressed: 32 GiB, more than a data set in memory can be."""

MAX_RATIO = 150.0
"""Most an archive above `RATIO_FROM` may shrink by; images and tables stay far below it."""

RATIO_FROM = 256 << 20
"""Below 256 MiB uncompressed the ratio is not looked at: zeros may well shrink by 1000."""

UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)
"""What zipfile raises on damaged, truncated or unsupported input."""


class SafeZip:
    """The regular files of a checked zip archive, by name.

    Attributes
    ----------
    path : the archive
    members : name to zip entry, in the order of the names; folders are left out
    folders : names of the folders, with or without an entry of their own
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]):
        self.path = path
        self.members = members
        self.folders = _folders(archive, members)
        self._archive = archive

    def read(self, name: str) -> bytes:
        """The whole content of one file, its checksum verified.

        Raises
        ------
        DataError
            When the entry is damaged or packed by a method Python cannot read.
        """
        try:
            return self._archive.read(self.members[name])
        except UNREADABLE as error:
            raise DataError(f"{self.path}: cannot read {name!r}: {one_line(error)}") from error


@contextmanager
def open_zip(
    path: Path, max_bytes: int = MAX_BYTES, max_ratio: float = MAX_RATIO
) -> Iterator[SafeZip]:
    """Open a zip archive for reading after checking every entry of its directory.

    Raises
    ------
    DataError
        When the file is missing, empty, not a zip or damaged; when an entry is encrypted, a link,
        there twice, or has a path that leaves the archive; when it would unpack to more than
        `max_bytes`, or to more than `max_ratio` times its size (and above 256 MiB).
    """
    check_file(path)
    try:
        archive = zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise DataError(
            f"{path} is not a readable zip archive ({one_line(error)}); fetch or make it again"
        ) from error
    with archive:
        _check_size(path, archive, max_bytes, max_ratio)
        yield SafeZip(path, archive, _checked_members(path, archive))


def _check_size(path: Path, archive: zipfile.ZipFile, max_bytes: int, max_ratio: float) -> None:
    """Raise when the archive would unpack to more than anyone means it to."""
    total = sum(entry.file_size for entry in archive.infolist())
    if total > max_bytes:
        raise DataError(
            f"{path} would unpack to {total / 2**20:,.0f} MiB; "
            f"at most {max_bytes / 2**20:,.0f} MiB are read"
        )
    ratio = total / path.stat().st_size
    if total > RATIO_FROM and ratio > max_ratio:
        raise DataError(
            f"{path} would unpack to {total / 2**20:,.0f} MiB, {ratio:,.0f} times its size; "
            f"more than {max_ratio:,.0f} times is taken for a decompression bomb"
        )


def _checked_members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The regular files by name, or an error that names the first entry that is not acceptable."""
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        # Some Windows tools write backslashes, against the zip specification.
        name = entry.filename.replace("\\", "/")
        parts = name.split("/")
        if not parts[0] or ".." in parts or parts[0][1:2] == ":":
            raise DataError(f"{path} holds {name!r}, a path that leads out of the archive")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(f"{path} holds {name!r}, a symbolic link; pack the file itself")
        if entry.flag_bits & 0x1:
            raise DataError(f"{path} is encrypted ({name!r}); pack it again without a password")
        if name.endswith("/"):
            continue
        if name in members:
            raise DataError(f"{path} holds {name!r} twice; pack it again with one of them")
        members[name] = entry
    return dict(sorted(members.items()))


def _folders(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> set[str]:
    """Every folder that is an entry or is part of the path of one."""
    listed = [name.replace("\\", "/") for name in archive.namelist()]
    folders = {name.rstrip("/") for name in listed if name.endswith("/")}
    pending = {name.rpartition("/")[0] for name in [*members, *folders]}
    while pending := pending - folders - {""}:
        folders |= pending
        pending = {name.rpartition("/")[0] for name in pending}
    return folders
