"""Bring Omniglot to the data root: from the network with checksums, or from a folder at hand."""

import dataclasses
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pooch

from metastep._errors import DataError
from metastep.datasets.omniglot import SETS, drawings_of, find_set
from metastep.datasets.paths import check_folder, one_line
from metastep.datasets.trees import Tree, open_tree

OFFICIAL_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
"""Folder of the authors' repository that holds the archives."""

OFFICIAL_HASHES: dict[str, str] = {
    "images_background.zip": "md5:68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "md5:6b91aef0f799c5bb55b94e3f2daec811",
}
"""Checksums of the archives as published."""

PLACES = ("", "omniglot", "python", "omniglot-py", "omniglot/python")
"""Where below `source` the sets may lie; the authors' repository and torchvision have them so."""

Progress = Callable[[str, int, int], None]
"""Called with the file name, the bytes received so far and the bytes in all (0 if not known)."""


@dataclasses.dataclass(frozen=True)
class Fetched:
    """Where the data lies now, and per file whether it was present, downloaded or copied."""

    folder: Path
    actions: dict[str, str]


def fetch_omniglot(
    root: str | Path,
    source: str | Path | None = None,
    base_url: str = OFFICIAL_URL,
    registry: Mapping[str, str] = OFFICIAL_HASHES,
    progress: Progress | None = None,
    timeout: float = 30.0,
) -> Fetched:
    """Put Omniglot's two archives into ROOT/omniglot.

    A set that is there already, with the published checksum or complete and undamaged, is kept. A
    download is kept only if its checksum is the published one. From `source`, a set is kept if it
    is complete and undamaged, since a re-packed archive has another checksum; folders are packed.
    Each file appears in one step or not at all.

    Parameters
    ----------
    root : the data root; see `data_root`
    source : a folder that holds the zips or the unpacked folders; None downloads
    base_url : where the archives are downloaded from
    registry : file name to checksum, as "md5:..." or "sha256:..."
    progress : called as bytes arrive
    timeout : seconds to wait for the server

    Raises
    ------
    DataError
        When `source` lacks a complete set, the server can't be reached, a checksum is wrong, or the
        data root can't be written to.
    """
    folder = Path(root).expanduser() / "omniglot"
    actions: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, known_hash in registry.items():
            if _is_present(folder, file, known_hash):
                actions[file] = "present"
            elif source is not None:
                _copy(Path(source).expanduser(), folder, file)
                actions[file] = "copied"
            else:
                _download(f"{base_url.rstrip('/')}/{file}", known_hash, folder, progress, timeout)
                actions[file] = "downloaded"
    except OSError as error:
        raise DataError(
            f"cannot write to {folder}: {error.strerror}; choose another data root"
        ) from error
    return Fetched(folder, actions)


def _is_present(folder: Path, file: str, known_hash: str) -> bool:
    """Whether a set lies in `folder`, by its checksum or, re-packed or unpacked, by its content."""
    algorithm, _, digest = known_hash.partition(":")
    path = folder / file
    if path.is_file() and pooch.file_hash(str(path), alg=algorithm) == digest:
        return True
    found = find_set(folder, path.stem)
    if found is None:
        return False
    try:
        with open_tree(found) as tree:
            _check_content(tree, path.stem)
    except DataError:
        return False
    return True


def _check_content(tree: Tree, name: str) -> None:
    """Raise unless a set is complete and every drawing can be read (in a zip: has its checksum)."""
    if name not in SETS:
        raise DataError(f"{tree.path}: {name!r} is no set of Omniglot")
    for files in drawings_of(tree, name).values():
        for file in files:
            tree.read(file)


def _copy(source: Path, folder: Path, file: str) -> None:
    """Copy a complete set out of `source` as a zip."""
    check_folder(source)
    name = Path(file).stem
    places = [find_set(source / place, name) for place in PLACES]
    found = next((place for place in places if place is not None), None)
    if found is None:
        raise DataError(f"{source} holds neither {file} nor a folder {name}/")
    with open_tree(found) as tree, TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        packed = Path(scratch) / file
        _pack(tree, name, packed)
        packed.replace(folder / file)


def _pack(tree: Tree, name: str, target: Path) -> None:
    """Write the drawings of a set to a new zip in the official layout, and nothing else."""
    if name not in SETS:
        raise DataError(f"{tree.path}: {name!r} is no set of Omniglot")
    with zipfile.ZipFile(target, "w") as archive:
        for character, files in drawings_of(tree, name).items():
            for file in files:
                archive.writestr(f"{name}/{character}/{Path(file).name}", tree.read(file))


def _download(
    url: str, known_hash: str, folder: Path, progress: Progress | None, timeout: float
) -> None:
    """Download one file; pooch writes to a temporary name and moves it when the checksum agrees."""
    file = url.rsplit("/", 1)[1]
    # pooch accepts any object with a bar's methods, though its annotations say bool.
    bar: Any = False if progress is None else _Bar(file, progress)
    downloader: Any = pooch.HTTPDownloader(progressbar=bar, timeout=timeout)
    try:
        with _quiet_pooch():
            pooch.retrieve(url, known_hash, fname=file, path=folder, downloader=downloader)
    except ValueError as error:
        raise DataError(
            f"{url}: what arrived does not have the published checksum ({known_hash}) and was "
            "thrown away; try again, or give a folder that holds the files as source"
        ) from error
    except OSError as error:  # requests' errors are among these
        if isinstance(error, PermissionError):
            raise
        raise DataError(
            f"{url} could not be downloaded ({one_line(error)}); try again, "
            "or give a folder that holds the files as source"
        ) from error


class _Bar:
    """What pooch wants of a progress bar, handed on as a plain call."""

    def __init__(self, file: str, progress: Progress):
        self.total = 0
        self._file = file
        self._progress = progress
        self._done = 0

    def update(self, size: int) -> None:
        # pooch adds the chunk size even for a last chunk that is shorter.
        self._done = min(self._done + size, self.total) if self.total else self._done + size
        self._progress(self._file, self._done, self.total)

    def reset(self) -> None:
        self._done = 0

    def close(self) -> None:
        pass


@contextmanager
def _quiet_pooch() -> Iterator[None]:
    """Keep pooch's own notices from the terminal for a while."""
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
