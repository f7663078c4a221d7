"""A folder, or a zip of one, in which every class of images has a folder of its own."""

from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from metastep._errors import DataError, InputError, check_count
from metastep.datasets.containers import ImageClasses, ImageSplits
from metastep.datasets.images import FORMATS, ImageFacts, bombs_are_errors, decode, probe
from metastep.datasets.trees import Tree, open_tree

LONGEST_SIDE = 84
"""Longer side of images when no size is asked for: that of the usual few-shot photo benchmarks."""

MAX_DECODED = 16 << 30
"""Most bytes the decoded images may take together."""

SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}

Size = int | tuple[int, int] | None


def load_class_folders(
    path: str | Path, image_size: Size = None, channels: int | None = None
) -> ImageClasses | ImageSplits:
    """Read images whose innermost folders are their classes.

    A class is named by its path, so alphabets of characters stay apart. One outer folder that holds
    everything is looked through. Hidden files and those that operating systems leave are skipped.

    When the top folders are `train`, `test` and perhaps `val` or `validation`, they are the splits;
    without a validation folder a fifth of the training classes, drawn with seed 0, takes its place.

    Parameters
    ----------
    path : a folder or a zip archive
    image_size : height and width in pixels, one number for both; every image is stretched to it.
        Default: the most common size, shrunk until its longer side is at most 84
    channels : 1 (grey) or 3 (RGB). Default: 1 if every file is stored as grey, else 3

    Returns
    -------
    `ImageSplits` when the folders say so, else `ImageClasses`; classes and images sorted by name.

    Raises
    ------
    DataError
        When the path can't be read; a class folder is empty or holds something else than images; an
        image is damaged or lies outside a class folder; there are fewer than two classes; or a
        class is in two splits.
    InputError
        When `image_size` or `channels` is out of range.
    """
    path = Path(path)
    if channels is not None and channels not in (1, 3):
        raise InputError(f"channels is {channels!r}; it must be 1 (grey) or 3 (RGB)")
    fixed = _checked_size(image_size)
    with open_tree(path) as tree, bombs_are_errors():
        classes, base = _classes(tree)
        facts = {name: probe(tree.read(name), f"{path}/{name}") for name in _all(classes)}
        size = fixed or common_size(list(facts.values()))
        depth = channels or (1 if all(fact.grey for fact in facts.values()) else 3)
        _check_memory(path, len(facts), size, depth)
        parts = _splits(path, classes, base)
        loaded = {part: _load(tree, members, size, depth) for part, members in parts.items()}
    return _as_splits(path, loaded) if len(loaded) > 1 else loaded[""]


def common_size(facts: list[ImageFacts]) -> tuple[int, int]:
    """The most common (height, width), the larger one of a tie, with its longer side at most 84."""
    sizes = Counter((fact.height, fact.width) for fact in facts)
    height, width = max(sizes, key=lambda size: (sizes[size], size))
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _checked_size(image_size: Size) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if len(size) != 2:
        raise InputError(f"image_size is {image_size!r}; give one number, or (height, width)")
    for side in size:
        check_count("image_size", side)
    return size


def _all(classes: dict[str, list[str]]) -> list[str]:
    return [name for members in classes.values() for name in members]


def _classes(tree: Tree) -> tuple[dict[str, list[str]], PurePosixPath]:
    """Files of every class folder by its full path, and the outer folder that all of them share."""
    parents = {str(PurePosixPath(folder).parent) for folder in tree.folders}
    leaves = {folder for folder in tree.folders if folder not in parents}
    classes: dict[str, list[str]] = {leaf: [] for leaf in sorted(leaves)}
    for name in tree.files:
        folder = str(PurePosixPath(name).parent)
        is_image = PurePosixPath(name).suffix.lower() in FORMATS
        if folder in leaves and is_image:
            classes[folder].append(name)
        elif folder in leaves:
            raise DataError(
                f"{tree.path}/{name} is not an image ({', '.join(FORMATS)}); "
                "class folders may hold images only"
            )
        elif is_image:
            raise DataError(
                f"{tree.path}/{name} lies outside the class folders; "
                "move it into the folder of its class"
            )
    for folder, members in classes.items():
        if not members:
            raise DataError(f"{tree.path}/{folder} is a class folder without images; remove it")
    if len(classes) < 2:
        raise DataError(
            f"{tree.path} holds {len(classes)} class folder(s) of images; "
            "few-shot tasks need at least two classes, one folder each"
        )
    return classes, _shared_folder(list(classes))


def _shared_folder(folders: list[str]) -> PurePosixPath:
    """The longest path that all class folders lie in."""
    base: list[str] = []
    for level in zip(*(PurePosixPath(folder).parts[:-1] for folder in folders), strict=False):
        if len(set(level)) > 1:
            break
        base.append(level[0])
    return PurePosixPath(*base)


def _splits(
    path: Path, classes: dict[str, list[str]], base: PurePosixPath
) -> dict[str, dict[str, list[str]]]:
    """Split name to (class name to files); one split named "" when the folders name none."""
    names = {folder: PurePosixPath(folder).relative_to(base) for folder in classes}
    tops = {name.parts[0] for name in names.values() if len(name.parts) > 1}
    found = sorted(top for top in tops if top.lower() in SPLIT_NAMES)
    if len(found) < 2:
        return {"": {str(names[folder]): files for folder, files in classes.items()}}
    others = {name.parts[0] for name in names.values()} - set(found)
    kinds = [SPLIT_NAMES[top.lower()] for top in found]
    if others or len(set(kinds)) < len(kinds) or not {"train", "test"} <= set(kinds):
        listed = ", ".join([*found, *sorted(others)[:5]])
        raise DataError(
            f"{path} holds the folders {listed}; data that is split already must have train/ "
            "and test/, may have val/ or validation/, and nothing beside them"
        )
    parts: dict[str, dict[str, list[str]]] = {
        kind: {} for kind in ("train", "validation", "test") if kind in kinds
    }
    for folder, files in classes.items():
        top, *rest = names[folder].parts
        parts[SPLIT_NAMES[top.lower()]]["/".join(rest)] = files
    _check_disjoint(path, parts)
    return parts


def _check_disjoint(path: Path, parts: dict[str, dict[str, list[str]]]) -> None:
    """Raise when a class is trained on and judged by: the score would not be one on new classes."""
    seen: dict[str, str] = {}
    for part, members in parts.items():
        for name in members:
            if name in seen:
                raise DataError(
                    f"{path} has the class {name!r} in {seen[name]} and in {part}; meta-learning "
                    "is judged on classes it was not trained on, so each may be in one of them only"
                )
            seen[name] = part


def _load(
    tree: Tree, members: dict[str, list[str]], size: tuple[int, int], channels: int
) -> ImageClasses:
    """Decode the images of some classes into one array."""
    names = sorted(members)
    counts = np.asarray([len(members[name]) for name in names], np.int64)
    images = np.empty((int(counts.sum()), *size, channels), np.uint8)
    for row, file in enumerate(file for name in names for file in members[name]):
        images[row] = decode(tree.read(file), f"{tree.path}/{file}", size, channels)
    return ImageClasses(images, counts, tuple(names))


def _as_splits(path: Path, loaded: dict[str, ImageClasses]) -> ImageSplits:
    """Name the three parts; without a validation folder, carve it out of the training classes."""
    if "validation" in loaded:
        return ImageSplits(loaded["train"], loaded["validation"], loaded["test"])
    train = loaded["train"]
    if train.num_classes < 2:
        raise DataError(
            f"{path} has one training class and no validation folder; at least two are needed"
        )
    order = np.random.default_rng(0).permutation(train.num_classes)
    held_out = max(1, train.num_classes // 5)
    return ImageSplits(
        train.select(np.sort(order[held_out:])),
        train.select(np.sort(order[:held_out])),
        loaded["test"],
    )


def _check_memory(path: Path, count: int, size: tuple[int, int], channels: int) -> None:
    needed = count * size[0] * size[1] * channels
    if needed > MAX_DECODED:
        raise DataError(
            f"{path}: {count} images of {size[0]} x {size[1]} x {channels} take "
            f"{needed / 2**30:.0f} GiB of memory; give a smaller image_size"
        )
