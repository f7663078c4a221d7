"""Which classes or tasks are trained on and which are held out: seeded, disjoint, never by row."""

import numpy as np

from metastep._errors import InputError, check_count
from metastep.datasets.containers import ImageClasses, ImageSplits, TableSplits, TaskTable

FRACTIONS = (0.64, 0.16, 0.20)
"""Train, validation and test: the proportions of the usual few-shot image benchmarks (64/16/20)."""


def split_indices(
    num_groups: int,
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    minimum: int = 1,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split range(num_groups) into train, validation and test indices.

    Parameters
    ----------
    num_groups : how many classes or tasks there are, at least `3 * minimum`
    seed : non-negative integer; the same seed gives the same split on every machine
    fractions : three positive numbers that add up to 1
    minimum : the least number of groups in each part, such as the `ways` of a task

    Returns
    -------
    Three sorted int64 arrays; disjoint, and together every index once.

    Raises
    ------
    InputError
        When there are too few groups for three parts, or an argument is out of range.
    """
    check_count("seed", seed, 0)
    check_count("minimum", minimum)
    if len(fractions) != 3 or min(fractions) <= 0 or not np.isclose(sum(fractions), 1.0):
        raise InputError(
            f"fractions is {fractions!r}; it must be three positive numbers that add up to 1"
        )
    if num_groups < 3 * minimum:
        raise InputError(
            f"{num_groups} classes or tasks are too few to train on some, choose by some and test "
            f"on the rest; at least {3 * minimum} are needed ({minimum} in each of the three parts)"
        )
    sizes = _part_sizes(num_groups, np.asarray(fractions), minimum)
    order = np.random.default_rng(seed).permutation(num_groups)
    train, validation, test = np.split(order, np.cumsum(sizes)[:2])
    return np.sort(train), np.sort(validation), np.sort(test)


def split_classes(
    data: ImageClasses,
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    minimum: int = 1,
) -> ImageSplits:
    """Split image classes into three disjoint parts; arguments and errors as `split_indices`."""
    parts = split_indices(data.num_classes, seed, fractions, minimum)
    return ImageSplits(*(data.select(part) for part in parts))


def split_tasks(
    data: TaskTable,
    seed: int = 0,
    fractions: tuple[float, float, float] = FRACTIONS,
    minimum: int = 1,
) -> TableSplits:
    """Split a table's tasks into three disjoint parts; arguments and errors as `split_indices`."""
    parts = split_indices(data.num_tasks, seed, fractions, minimum)
    return TableSplits(*(data.select(part) for part in parts))


def _part_sizes(num_groups: int, fractions: np.ndarray, minimum: int) -> np.ndarray:
    """Whole part sizes by largest remainder, then topped up to `minimum` from the largest part."""
    shares = fractions * num_groups
    sizes = np.floor(shares).astype(np.int64)
    left_over = num_groups - sizes.sum()
    sizes[np.argsort(sizes - shares, kind="stable")[:left_over]] += 1
    while sizes.min() < minimum:
        sizes[np.argmax(sizes)] -= 1
        sizes[np.argmin(sizes)] += 1
    return sizes
