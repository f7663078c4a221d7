"""Held-out classes and tasks: disjoint, complete, repeatable, and refused when too few."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_containers import images_of, table_of

from metastep._errors import InputError
from metastep.datasets import split_classes, split_indices, split_tasks


@given(
    st.integers(3, 400),
    st.integers(0, 2**32 - 1),
    st.sampled_from([(0.64, 0.16, 0.2), (0.2, 0.4, 0.4), (0.98, 0.01, 0.01)]),
)
def test_parts_are_disjoint_complete_repeatable_and_near_their_share(total, seed, shares) -> None:
    parts = split_indices(total, seed, shares)
    assert sorted(np.concatenate(parts).tolist()) == list(range(total))
    for part, share, again in zip(parts, shares, split_indices(total, seed, shares), strict=True):
        np.testing.assert_array_equal(part, again)
        assert (np.diff(part) > 0).all()
        assert len(part) >= 1
        # Off by less than one row from rounding, and by at most two more from topping up.
        assert abs(len(part) - share * total) < 3


def test_default_shares_are_64_16_20() -> None:
    assert [len(part) for part in split_indices(100)] == [64, 16, 20]


def test_another_seed_is_another_split() -> None:
    assert split_indices(50, 0)[2].tolist() != split_indices(50, 1)[2].tolist()


def test_every_part_gets_its_minimum() -> None:
    assert [len(part) for part in split_indices(15, minimum=5)] == [5, 5, 5]


def test_too_few_groups_say_how_many_are_needed() -> None:
    with pytest.raises(InputError) as caught:
        split_indices(14, minimum=5)
    assert str(caught.value) == (
        "14 classes or tasks are too few to train on some, choose by some and test on the rest; "
        "at least 15 are needed (5 in each of the three parts)"
    )
    with pytest.raises(InputError, match=r"^2 classes or tasks are too few.*at least 3 are needed"):
        split_tasks(table_of([4, 4]))


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.6, 0.6, -0.2), (0.5, 0.2, 0.2)])
def test_fractions_must_be_three_shares(fractions: tuple) -> None:
    with pytest.raises(InputError) as caught:
        split_indices(10, fractions=fractions)
    assert str(caught.value) == (
        f"fractions is {fractions!r}; it must be three positive numbers that add up to 1"
    )


def test_seed_must_be_a_whole_number() -> None:
    with pytest.raises(InputError, match=r"^seed is -1; it must be a whole number of at least 0$"):
        split_indices(10, -1)


def test_classes_and_tasks_are_split_the_same_way() -> None:
    counts = [3, 1, 2, 5, 4, 2, 2]
    images, table = split_classes(images_of(counts), 7), split_tasks(table_of(counts), 7)
    for part in ("train", "validation", "test"):
        numbers = [name[1:] for name in getattr(images, part).names]
        assert numbers == [name[1:] for name in getattr(table, part).names]
        pixels = getattr(images, part).images[:, 1, 1, 0]
        assert sorted(set(pixels.tolist())) == [int(number) for number in numbers]
