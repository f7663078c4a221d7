"""Omniglot: 1623 handwritten characters of 50 alphabets, drawn 20 times each (Lake et al., 2015).

References
----------
Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program
induction", Science 350 (2015): the images and the background and evaluation sets.
Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, "Matching Networks for One Shot Learning",
NeurIPS 2016: the split that most few-shot papers report on.
"""

import io
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from metastep._errors import DataError, InputError, check_choice, check_count
from metastep._records import write_bytes
from metastep.datasets.containers import ImageClasses, ImageSplits
from metastep.datasets.images import bombs_are_errors, decode
from metastep.datasets.paths import cache_root
from metastep.datasets.trees import Tree, fingerprint, open_tree

SETS = {"images_background": 964, "images_evaluation": 659}
"""The two official sets and how many characters each has."""

DRAWINGS = 20
"""Drawings of each character, one per drawer."""

VALIDATION_ALPHABETS = frozenset(
    {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
)
"""The background alphabets of the usual validation set: 172 characters."""

TEST_CHARACTERS = 423
"""The usual test set is the last 423 evaluation characters, sorted by alphabet and number."""

HINT = "run `metastep data fetch omniglot`, or put the official images_*.zip there"


def load_omniglot(
    root: str | Path,
    split: str = "vinyals",
    image_size: int = 28,
    seed: int = 0,
    cache: bool = True,
) -> ImageSplits:
    """Read Omniglot from ROOT/omniglot, where the official zips or their unpacked folders lie.

    Ink is 255 and paper 0 (the files have it the other way round). The 105 x 105 drawings are
    shrunk by a triangle filter, which averages over all pixels. (The resizing script of Finn et
    al., 2017, asks for Lanczos on 1-bit images, which Pillow turns into nearest-neighbour.)

    Parameters
    ----------
    root : the data root; see `data_root`
    split : "vinyals" for the 1028/172/423 characters most papers use: validation is 5 background
        alphabets, test the last 423 evaluation characters, train the rest of both sets; "official"
        for the sets as published: test is the evaluation set (659), and 5 whole alphabets of the
        background set, drawn with `seed`, are the validation set
    image_size : height and width in pixels, 1 to 105
    seed : which alphabets validate under "official"; "vinyals" does not use it
    cache : keep the decoded arrays in the user's cache folder; a changed file is decoded anew

    Returns
    -------
    `ImageSplits`; class names are "Alphabet/characterNN", images (.., image_size, image_size, 1).

    Raises
    ------
    DataError
        When a set is missing, damaged, or does not have its 964 or 659 characters of 20 drawings.
    """
    check_choice("split", split, ("vinyals", "official"))
    check_count("image_size", image_size)
    check_count("seed", seed, 0)
    if image_size > 105:
        raise InputError(f"image_size is {image_size}; Omniglot's drawings have 105 x 105 pixels")
    folder = Path(root).expanduser() / "omniglot"
    background, evaluation = (_load_set(folder, name, image_size, cache) for name in SETS)
    if split == "vinyals":
        return _vinyals(background, evaluation)
    return _official(background, evaluation, seed)


def alphabet_of(name: str) -> str:
    """The alphabet of a character: "Greek" of "Greek/character01"."""
    return name.split("/")[0]


def find_set(folder: Path, name: str) -> Path | None:
    """The zip or else the unpacked folder of a set in `folder`, or None."""
    for candidate in (folder / f"{name}.zip", folder / name):
        if candidate.exists():
            return candidate
    return None


def drawings_of(tree: Tree, name: str) -> dict[str, list[str]]:
    """Files of each character of the set `name`, checked to be the complete official set.

    Returns
    -------
    Character name ("Alphabet/characterNN") to its 20 files, both sorted.

    Raises
    ------
    DataError
        When there are too many or too few characters or drawings, or the layout is another.
    """
    drawings: dict[str, list[str]] = {}
    for file in tree.files:
        parts = PurePosixPath(file).parts
        if parts[0] == name:  # the zips have the set's name as outermost folder, a folder has not
            parts = parts[1:]
        if len(parts) != 3 or not file.endswith(".png"):
            raise DataError(
                f"{tree.path} holds {file!r}, which is no alphabet/character/drawing.png"
            )
        drawings.setdefault("/".join(parts[:2]), []).append(file)
    sizes = Counter(len(files) for files in drawings.values())
    if sizes != {DRAWINGS: SETS[name]}:
        found = ", ".join(f"{count} of {size} drawings" for size, count in sorted(sizes.items()))
        raise DataError(
            f"{tree.path} is not the complete {name}: it must hold {SETS[name]} characters of "
            f"{DRAWINGS} drawings, and holds {found or 'none'}; fetch it again"
        )
    return dict(sorted(drawings.items()))


def _vinyals(background: ImageClasses, evaluation: ImageClasses) -> ImageSplits:
    held_out = np.asarray([alphabet_of(name) in VALIDATION_ALPHABETS for name in background.names])
    cut = evaluation.num_classes - TEST_CHARACTERS
    train = [background.select(np.flatnonzero(~held_out)), evaluation.select(np.arange(cut))]
    return ImageSplits(
        ImageClasses(
            np.concatenate([part.images for part in train]),
            np.concatenate([part.counts for part in train]),
            train[0].names + train[1].names,
        ),
        background.select(np.flatnonzero(held_out)),
        evaluation.select(np.arange(cut, evaluation.num_classes)),
    )


def _official(background: ImageClasses, evaluation: ImageClasses, seed: int) -> ImageSplits:
    of_class = np.asarray([alphabet_of(name) for name in background.names])
    alphabets = np.unique(of_class)
    chosen = np.random.default_rng(seed).choice(alphabets, size=5, replace=False)
    held_out = np.isin(of_class, chosen)
    return ImageSplits(
        background.select(np.flatnonzero(~held_out)),
        background.select(np.flatnonzero(held_out)),
        evaluation,
    )


def _load_set(folder: Path, name: str, image_size: int, cache: bool) -> ImageClasses:
    """One official set, from the cache when its files have not changed since."""
    path = find_set(folder, name)
    if path is None:
        raise DataError(f"no {name}.zip and no {name}/ in {folder}; {HINT}")
    stored = cache_root() / "decoded" / f"{name}-{image_size}-{fingerprint(path)}.npz"
    data = _read_cache(stored) if cache else None
    if data is None:
        with open_tree(path) as tree, bombs_are_errors():
            data = _decode_set(tree, name, image_size)
        if cache:
            _write_cache(stored, data)
    return data


def _decode_set(tree: Tree, name: str, image_size: int) -> ImageClasses:
    drawings = drawings_of(tree, name)
    size = (image_size, image_size)
    images = np.empty((SETS[name] * DRAWINGS, *size, 1), np.uint8)
    files = [file for members in drawings.values() for file in members]
    for row, file in enumerate(files):
        images[row] = 255 - decode(tree.read(file), f"{tree.path}/{file}", size)
    return ImageClasses(images, np.full(SETS[name], DRAWINGS, np.int64), tuple(drawings))


def _read_cache(path: Path) -> ImageClasses | None:
    """The stored arrays, or None when there are none or they are damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = tuple(str(name) for name in stored["names"])
            return ImageClasses(stored["images"], stored["counts"], names)
    except Exception:  # whatever is wrong with a cache, decoding the files again mends it
        return None


def _write_cache(path: Path, data: ImageClasses) -> None:
    """Store decoded arrays; a cache folder that can't be written to costs time, not the result."""
    buffer = io.BytesIO()
    np.savez(buffer, images=data.images, counts=data.counts, names=np.asarray(data.names))
    try:
        write_bytes(path, buffer.getvalue())
    except OSError:
        return
