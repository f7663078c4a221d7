"""One image file to one uint8 array, through Pillow; its size is looked at before it is decoded."""

import dataclasses
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from metastep._errors import DataError
from metastep.datasets.paths import one_line

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".pbm": "PPM",
    ".pgm": "PPM",
    ".ppm": "PPM",
}
"""Endings that count as images. Pillow is held to these formats: others can start programs."""

_PILLOW_FORMATS = sorted(set(FORMATS.values()))

MAX_PIXELS = 1 << 26
"""Largest image that is decoded: 64 million pixels, 8192 x 8192."""

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16B", "I;16L"})
_ORIENTATION = 0x0112
# What Pillow raises on damaged files; SyntaxError is how its PNG reader reports a broken chunk.
_DAMAGED = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, OverflowError)


@dataclasses.dataclass(frozen=True)
class ImageFacts:
    """What the header of an image says: its size as displayed, and whether it is grey."""

    height: int
    width: int
    grey: bool


def probe(content: bytes, name: str) -> ImageFacts:
    """Read an image's header only; raises DataError as `decode` does."""
    with _opened(content, name) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5  # 5 to 8 are quarter turns
            grey = _is_grey(image)
        except _DAMAGED as error:
            raise _damaged(name, error) from error
    return ImageFacts(width, height, grey) if turned else ImageFacts(height, width, grey)


def decode(
    content: bytes, name: str, size: tuple[int, int] | None = None, channels: int = 1
) -> np.ndarray:
    """Decode an image to grey (1 channel) or RGB (3 channels), stretched to a size.

    Transparent pixels show white, the first frame of an animation counts, 16 bits become 8.
    Shrinking averages over all source pixels (a triangle filter), so thin strokes don't vanish.

    Parameters
    ----------
    content : the bytes of the file
    name : what to call it in an error
    size : (height, width), or None for the image's own
    channels : 1 or 3

    Returns
    -------
    (height, width, channels) uint8

    Raises
    ------
    DataError
        When it is damaged, in none of the `FORMATS`, larger than `MAX_PIXELS`, or 32 bits deep.
    """
    with _opened(content, name) as image:
        try:
            ImageOps.exif_transpose(image, in_place=True)
            flat = _flatten(image).convert("L" if channels == 1 else "RGB")
            if size is not None and flat.size != (size[1], size[0]):
                flat = flat.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        except _DAMAGED as error:
            if isinstance(error, DataError):
                raise
            raise _damaged(name, error) from error
    return np.asarray(flat, np.uint8).reshape(flat.height, flat.width, channels)


@contextmanager
def bombs_are_errors() -> Iterator[None]:
    """Make Pillow's warning about a huge image the error that `probe` and `decode` report."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _opened(content: bytes, name: str) -> Image.Image:
    """Parse the header and refuse what would not fit in memory."""
    try:
        image = Image.open(io.BytesIO(content), formats=_PILLOW_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except _DAMAGED as error:
        raise _damaged(name, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name)
    if image.mode in ("I", "F"):
        raise DataError(f"{name} has 32-bit pixels; save it with 8 or 16 bits per channel")
    return image


def _flatten(image: Image.Image) -> Image.Image:
    """Put transparent pixels on white and bring 16 bits down to 8."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image)
    return image


def _is_grey(image: Image.Image) -> bool:
    """By the mode of the file, and for a palette by its colours; RGB pixels are not compared."""
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in _GREY_MODES


def _damaged(name: str, error: BaseException) -> DataError:
    reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else one_line(error)
    return DataError(f"{name} cannot be read as an image ({reason}); mend or remove it")


def _too_large(name: str) -> DataError:
    return DataError(
        f"{name} has more than {MAX_PIXELS:,} pixels; shrink it, or remove it if it is no image"
    )
