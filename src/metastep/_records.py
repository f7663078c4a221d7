"""Results as plain Python numbers: what the library hands to JSON files, tables and reports. Imports no jax."""

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Z95 = 1.959964
"""A normal variable is within so many standard deviations of its mean with a probability of 95 %."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over tasks and the half-width of its 95 % confidence interval (normal approximation)."""

    mean: float
    ci95: float

    @classmethod
    def of(cls, values: Any) -> "Estimate":
        """Summarise per-task values; one value alone has an infinite interval."""
        numbers = [float(value) for value in values]
        mean = _total(numbers) / len(numbers)
        if len(numbers) < 2:
            return cls(mean, math.inf)
        deviations = [value - mean for value in numbers]
        variance = _total([d * d for d in deviations]) / (len(numbers) - 1)
        return cls(mean, Z95 * math.sqrt(variance / len(numbers)))


def _total(numbers: list[float]) -> float:
    """The rounded exact sum; infinite or NaN, not an error, for what a diverged model leaves behind."""
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):  # too large, or infinities of both signs
        return sum(numbers)


def to_plain(record: Any) -> Any:
    """Turn dataclasses, paths and array scalars into what JSON can hold; non-finite floats become None."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {
            field.name: to_plain(getattr(record, field.name))
            for field in dataclasses.fields(record)
        }
    if isinstance(record, dict):
        return {str(key): to_plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_plain(value) for value in record]
    if isinstance(record, Path):
        return str(record)
    to_list = getattr(record, "tolist", None)  # numpy and jax arrays and scalars
    if callable(to_list):
        return to_plain(to_list())
    if isinstance(record, float) and not math.isfinite(record):
        return None
    return record


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` in one step, so that a killed process leaves the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, record: Any) -> None:
    """Write a record as indented JSON, atomically."""
    text = json.dumps(to_plain(record), indent=2, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def read_json(path: Path) -> Any:
    """Read one JSON document."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a JSON-lines file that can be read: a kill may cut the last one short, a disk damage any."""
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():  # a cut may fall inside a character
        try:
            yield json.loads(line)
        except ValueError:
            continue
