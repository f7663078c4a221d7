"""A folder and a zip archive seen as the same thing: files with relative names and content."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from metastep._errors import DataError
from metastep.datasets.archives import SafeZip, open_zip
from metastep.datasets.paths import check_folder

IGNORED_FOLDERS = frozenset({"__macosx"})
IGNORED_FILES = frozenset({"thumbs.db", "desktop.ini"})
"""What operating systems leave behind, compared in lower case; names with a leading dot go too."""


class Tree(Protocol):
    """Files below one root; names are relative, with forward slashes, sorted."""

    path: Path
    files: tuple[str, ...]
    folders: frozenset[str]

    def read(self, name: str) -> bytes:
        """The content of one file; DataError when it cannot be read."""
        ...


class ZipTree:
    """The files of a zip archive."""

    def __init__(self, archive: SafeZip):
        self.path = archive.path
        self.files = tuple(name for name in archive.members if not is_ignored(name))
        self.folders = frozenset(name for name in archive.folders if not is_ignored(name))
        self.read = archive.read


class FolderTree:
    """The regular files below a folder; links are followed, since they are the user's own."""

    def __init__(self, path: Path):
        check_folder(path)
        self.path = path
        names, folders = _walk(path)
        self.files = tuple(sorted(names))
        self.folders = frozenset(folders)

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.path / name} cannot be read: {error.strerror}") from error


@contextmanager
def open_tree(path: Path) -> Iterator[Tree]:
    """Open a folder or a zip archive; raises DataError as `open_zip` and `check_folder` do."""
    if path.is_file():
        with open_zip(path) as archive:
            yield ZipTree(archive)
    else:
        yield FolderTree(path)


def fingerprint(path: Path) -> str:
    """A short text that changes when a file of a folder or zip is added, removed or rewritten."""
    names = [""] if path.is_file() else ["", *FolderTree(path).files]
    statuses = [(path / name).stat() for name in names]
    entries = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(names, statuses, strict=True)]
    return hashlib.sha256(repr((str(path.resolve()), entries)).encode()).hexdigest()[:20]


def is_ignored(name: str) -> bool:
    """Whether a path is hidden or is an operating system's litter, or lies in such a folder."""
    parts = name.lower().split("/")
    hidden = any(part.startswith(".") for part in parts)
    return hidden or parts[-1] in IGNORED_FILES or not IGNORED_FOLDERS.isdisjoint(parts)


def _walk(root: Path) -> tuple[list[str], list[str]]:
    """Names of all files and folders below `root` that are not ignored."""
    files: list[str] = []
    folders: list[str] = []
    seen: set[tuple[int, int]] = set()
    for current, subfolders, names in os.walk(root, followlinks=True, onerror=_fail):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in seen:
            raise DataError(f"{current} is reached twice through a link; remove the link")
        seen.add((status.st_dev, status.st_ino))
        base = Path(current).relative_to(root)
        subfolders[:] = [name for name in subfolders if not is_ignored(name)]
        folders += [(base / name).as_posix() for name in subfolders]
        for name in names:
            if is_ignored(name):
                continue
            if not (root / base / name).is_file():  # pipes and devices would block, dead links fail
                raise DataError(f"{root / base / name} is not a regular file")
            files.append((base / name).as_posix())
    return files, folders


def _fail(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
