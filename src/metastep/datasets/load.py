"""Any data set by its path."""

from pathlib import Path

from metastep._errors import DataError
from metastep.datasets.class_folders import load_class_folders
from metastep.datasets.containers import ImageClasses, ImageSplits, Kind, TaskTable
from metastep.datasets.npz import load_npz
from metastep.datasets.paths import TABLE_SUFFIXES, check_file
from metastep.datasets.tables import load_table


def load_path(path: str | Path, kind: Kind | None = None) -> ImageClasses | ImageSplits | TaskTable:
    """Load a folder or .zip of class folders, an .npz, or a .csv, .tsv or .parquet table, by its ending.

    Raises
    ------
    DataError
        As the loader does that is chosen, and for endings that none of them reads.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".npz" and not path.is_dir():
        return load_npz(path, kind)
    if suffix in TABLE_SUFFIXES and not path.is_dir():
        return load_table(path, kind=kind)
    if suffix != ".zip" and not path.is_dir():
        check_file(path)
        raise DataError(
            f"{path} is no data set that can be read: give a folder or .zip of class folders, "
            "an .npz, .csv, .tsv or .parquet file"
        )
    return load_class_folders(path)
