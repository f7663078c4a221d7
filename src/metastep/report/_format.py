"""Numbers as people read them. A value that was not finite when written is None in the files."""

import json
import math
import numbers
import shlex
from typing import Any

NOT_FINITE = "not finite"


def as_number(value: Any) -> float:
    """The value as a float, the mean of an estimate, or NaN for anything that is not a number."""
    if isinstance(value, dict):
        value = value.get("mean")
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    return math.nan


def number(value: Any) -> str:
    """Four significant digits."""
    real = as_number(value)
    return f"{real:.4g}" if math.isfinite(real) else NOT_FINITE


def count(value: Any) -> str:
    """A whole number with thin thousands groups, or the value as it is."""
    return f"{value:,}".replace(",", "\u202f") if isinstance(value, int) else plain(value)


def percent(value: Any) -> str:
    """A fraction in [0, 1] as a percentage with one decimal."""
    real = as_number(value)
    return f"{100 * real:.1f} %" if math.isfinite(real) else NOT_FINITE


def interval(bounds: Any) -> str:
    """A pair of bounds as [low, high], or an empty string when there is none."""
    if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
        return ""
    return f"[{number(bounds[0])}, {number(bounds[1])}]"


def estimate(record: Any, as_percent: bool = False) -> str:
    """A mean with its 95 % half-width; the half-width sets how many digits are shown."""
    mean = as_number(record)
    width = as_number(record.get("ci95")) if isinstance(record, dict) else math.nan
    if not math.isfinite(mean):
        return NOT_FINITE
    if not math.isfinite(width):
        return percent(mean) if as_percent else number(mean)
    scale, unit = (100.0, " %") if as_percent else (1.0, "")
    if not as_percent and (abs(mean) >= 1e5 or 0 < abs(mean) < 1e-3):
        return f"{mean:.3g} ± {width:.1g}"
    digits = _decimals(scale * width, most=2 if as_percent else 5)
    return f"{scale * mean:.{digits}f} ± {scale * width:.{digits}f}{unit}"


def _decimals(width: float, most: int) -> int:
    """Decimals that show two significant digits of the half-width, within [0, most]."""
    if width <= 0:
        return min(4, most)
    return max(0, min(most, 1 - math.floor(math.log10(width))))


def plain(value: Any) -> str:
    """Any JSON value as short text."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value, ensure_ascii=False)


def plural(amount: Any, noun: str) -> str:
    """`1 step`, `5 steps`."""
    return f"{count(amount)} {noun}" + ("" if amount == 1 else "s")


def command_line(command: Any) -> str:
    """A recorded command, kept as it is or quoted for a shell when it was recorded word by word."""
    if isinstance(command, (list, tuple)):
        return shlex.join(str(word) for word in command)
    return command if isinstance(command, str) else ""
