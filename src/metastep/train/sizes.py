"""Sizes in bytes, as people write them."""

import re

from metastep._errors import InputError

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """Bytes of "2GB", "500 MB", "1.5GiB" or a plain number; powers of 1000, or of 1024 with an i.

    Raises
    ------
    InputError
        When it is none of these, or less than one byte.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmg]i?)?b?\s*", text.lower())
    try:
        size = float(match[1]) * _UNITS[match[2] or ""] if match else 0
    except ValueError:  # more than one point
        size = 0
    if size < 1:
        raise InputError(f"--memory-limit is {text!r}; give a size such as 2GB, 500MB or 1.5GiB")
    return int(size)


def show_bytes(size: float) -> str:
    """A size with three figures: 1.23 GB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
