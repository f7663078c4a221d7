"""Where data lies, and the first questions to ask of a path."""

import os
from pathlib import Path

import pooch

from metastep._errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
"""How the names of tables end."""


def data_root(option: str | Path | None = None) -> Path:
    """The folder that holds `omniglot/`: the option, else METASTEP_DATA, else the user cache.

    The folder need not exist yet. An empty option or variable counts as not given.
    """
    chosen = option or os.environ.get("METASTEP_DATA")
    return Path(chosen).expanduser() if chosen else cache_root()


def cache_root() -> Path:
    """The user's cache folder for metastep, by the custom of the operating system."""
    return Path(pooch.os_cache("metastep"))


def check_file(path: Path) -> None:
    """Raise unless `path` is a regular file that can be read and is not empty."""
    _check_exists(path)
    if path.is_dir():
        raise DataError(f"{path} is a folder; a file is needed here")
    if not path.is_file():
        raise DataError(f"{path} is not a regular file")
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} cannot be read: permission denied")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes)")


def check_folder(path: Path) -> None:
    """Raise unless `path` is a folder that can be listed and is not empty."""
    _check_exists(path)
    if not path.is_dir():
        raise DataError(f"{path} is a file; a folder is needed here")
    if not os.access(path, os.R_OK | os.X_OK):
        raise DataError(f"{path} cannot be read: permission denied")
    if not any(path.iterdir()):
        raise DataError(f"{path} is an empty folder")


def one_line(error: BaseException) -> str:
    """The message of another library's error, on one line and not endless."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _check_exists(path: Path) -> None:
    try:
        exists = path.exists()
    except OSError as error:  # a name too long, or a parent folder that may not be entered
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not exists:
        raise DataError(f"{path} does not exist")
