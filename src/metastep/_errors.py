"""The kinds of error a user can meet, and the checks that raise them.

Every message names what was given, what is wrong with it and what to do. The command line prints the
message of a `UserError` as one line and exits with status 2; anything else is a bug and keeps its traceback.
"""

import math
import numbers
from collections.abc import Collection


class UserError(Exception):
    """Something the caller can mend; its message is all they need to see."""


class InputError(UserError, ValueError):
    """An argument, option or array that cannot be used as it is."""


class DataError(InputError):
    """A data file or folder that cannot be used as it is."""


class DivergenceError(UserError, ArithmeticError):
    """Meta-training left the range where its numbers mean anything; the message says which loop did."""


class ProcessLostError(UserError):
    """Another process of the run is gone; the message says what is left, and how to go on."""


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a finite real number above zero."""
    if not _is_finite_real(value) or value <= 0:
        raise InputError(f"{name} is {value!r}; it must be a finite number above 0")


def _is_finite_real(value: object) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer or fraction beyond the floats
        return False


def check_count(name: str, value: int, minimum: int = 1) -> None:
    """Raise unless `value` is an integer of at least `minimum`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < minimum:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least {minimum}")


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {value!r}; choose one of: {', '.join(sorted(choices))}")
