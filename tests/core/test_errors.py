"""Every check lets good values pass and names the bad ones."""

import math
from fractions import Fraction

import numpy as np
import pytest

from metastep._errors import (
    DataError,
    DivergenceError,
    InputError,
    UserError,
    check_choice,
    check_count,
    check_positive,
)


@pytest.mark.parametrize("value", [1, 0.5, 1e-300, np.float32(2), np.int64(3), Fraction(1, 3)])
def test_positive_numbers_pass(value):
    check_positive("alpha", value)


@pytest.mark.parametrize(
    "value",
    [0, -1, -0.0, math.nan, math.inf, -math.inf, True, "1", None, 1j, [1.0], np.array([1.0, 2.0])],
)
def test_what_is_not_a_positive_number_is_named(value):
    with pytest.raises(InputError) as caught:
        check_positive("--alpha", value)
    assert str(caught.value) == f"--alpha is {value!r}; it must be a finite number above 0"


@pytest.mark.parametrize("value", [10**400, Fraction(10**400)], ids=["integer", "fraction"])
def test_a_number_beyond_the_floats_is_not_a_rate(value):
    with pytest.raises(InputError, match="it must be a finite number above 0"):
        check_positive("--alpha", value)


@pytest.mark.parametrize(("value", "minimum"), [(1, 1), (0, 0), (np.int32(4), 4), (10**30, 2)])
def test_counts_pass(value, minimum):
    check_count("shots", value, minimum)


@pytest.mark.parametrize(
    ("value", "minimum"), [(0, 1), (-1, 0), (1, 2), (1.0, 1), (True, 1), ("3", 1), (None, 1)]
)
def test_what_is_not_a_count_is_named(value, minimum):
    with pytest.raises(InputError) as caught:
        check_count("--shots", value, minimum)
    expected = f"--shots is {value!r}; it must be a whole number of at least {minimum}"
    assert str(caught.value) == expected


def test_choices_are_listed_in_order():
    check_choice("kind", "b", {"b": 1, "a": 2})
    with pytest.raises(InputError) as caught:
        check_choice("--kind", "c", {"b": 1, "a": 2})
    assert str(caught.value) == "--kind is 'c'; choose one of: a, b"
    with pytest.raises(InputError, match=r"^kind is None; choose one of: a$"):
        check_choice("kind", None, ["a"])


@pytest.mark.parametrize("choices", [["a"], {"a": 1}, {"a"}])
def test_a_choice_that_cannot_be_a_key_is_named_too(choices):
    with pytest.raises(InputError, match=r"^kind is \['a'\]; choose one of: a$"):
        check_choice("kind", ["a"], choices)


def test_errors_can_be_caught_by_their_python_names():
    # Callers of a library catch ValueError; the command line catches UserError.
    assert issubclass(InputError, (UserError,))
    assert issubclass(InputError, ValueError)
    assert issubclass(DataError, InputError)
    assert issubclass(DivergenceError, UserError)
    assert issubclass(DivergenceError, ArithmeticError)
    assert not issubclass(DivergenceError, ValueError)
