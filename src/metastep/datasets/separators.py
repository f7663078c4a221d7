"""How a text file separates its columns and its decimals: spreadsheets of half the world write `1,5;2,5`."""

import re
from pathlib import Path
from typing import NamedTuple

from metastep._errors import DataError

_SAMPLE_BYTES = 1 << 20  # enough to meet a fraction; a file may be gigabytes
_DELIMITERS = ",;\t|"
_QUOTED = re.compile(rb'"[^"]*"')
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Separators(NamedTuple):
    """What stands between two columns, and between a whole number and its fraction."""

    delimiter: str
    decimal: str


def find_separators(path: Path) -> Separators:
    """Read them off the start of a file.

    The delimiter is the one of comma, semicolon, tab and bar that the header has most of. Where that is no comma, and
    some number has a decimal comma and none a decimal point, the comma is the decimal mark.

    Raises
    ------
    DataError
        For UTF-16 text.
    """
    with path.open("rb") as file:
        sample = file.read(_SAMPLE_BYTES)
    if sample.startswith(_UTF16):
        raise DataError(f"{path} is UTF-16 text; save it as UTF-8")
    sample = _QUOTED.sub(b"", sample)
    header = sample.lstrip().split(b"\n", 1)[0]
    delimiter = max(
        _DELIMITERS, key=lambda mark: header.count(mark.encode())
    )  # the first of equals
    if delimiter == ",":
        return Separators(",", ".")
    has_commas, has_points = (_has_fraction(sample, delimiter, mark) for mark in ",.")
    return Separators(delimiter, "," if has_commas and not has_points else ".")


def _has_fraction(sample: bytes, delimiter: str, mark: str) -> bool:
    """Whether a whole cell reads as digits, the mark and digits."""
    edge = rb"[\r\n" + re.escape(delimiter.encode()) + rb"]"
    number = rb" *[-+]?\d+" + re.escape(mark.encode()) + rb"\d+(?:[eE][-+]?\d+)? *"
    return re.search(edge + number + edge, sample + b"\n") is not None
