"""Tasks from tables: rows of one task only, none in both sets, all equally likely."""

from itertools import permutations

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from metastep._errors import InputError
from metastep.tasks import TableTasks, batch_of_episodes

P_VALUE = 1e-5  # each chi-square test raises a false alarm for fewer than one seed in 100,000


def named_rows(counts):
    """Rows that say who they are: (task, number within the task), and targets that repeat it."""
    pairs = [(task, number) for task, count in enumerate(counts) for number in range(count)]
    return np.array(pairs, float).reshape(-1, 2)


def regression(counts, **sizes):
    x = named_rows(counts)
    return TableTasks(x, 10 * x, counts, kind="regression", output_size=2, **sizes)


compiled = jax.jit(batch_of_episodes, static_argnums=2)


def draw(family, seed, num_tasks):
    return jax.tree.map(np.asarray, compiled(family, jax.random.key(seed), num_tasks))


# The same sizes in any order compile once: the counts are data, only the largest is static.
COUNTS = (4, 7, 4, 5)


@pytest.mark.parametrize("sizes", [(1, 1, 0), (2, 1, 1), (1, 3, 0)], ids=str)
@settings(max_examples=10)
@given(counts=st.permutations(COUNTS), seed=st.integers(0, 2**31 - 1))
def test_an_episode_is_different_rows_of_one_task(sizes, counts, seed):
    sizes = dict(zip(("shots", "queries", "curvature"), sizes, strict=True))
    episodes = draw(regression(counts, **sizes), seed, 20)
    assert (episodes.curvature is None) == (sizes["curvature"] == 0)
    batches = [episodes.support, episodes.query]
    batches += [episodes.curvature] if sizes["curvature"] else []
    x = np.concatenate([batch.x for batch in batches], axis=1)
    y = np.concatenate([batch.y for batch in batches], axis=1)
    np.testing.assert_array_equal(y, 10 * x)  # a row stays whole
    tasks, numbers = x[..., 0].astype(int), x[..., 1].astype(int)
    assert (tasks == tasks[:, :1]).all()
    assert (numbers < np.asarray(counts)[tasks]).all()
    assert all(len(set(row)) == sum(sizes.values()) for row in numbers.tolist())


def test_every_task_and_every_pair_of_rows_is_equally_likely(rng):
    counts = (2, 5, 3)  # a task with more rows is not drawn more often
    episodes = draw(regression(counts, shots=1, queries=1), int(rng.integers(2**31)), 20_000)
    tasks = episodes.support.x[:, 0, 0]
    assert scipy.stats.chisquare(np.bincount(tasks.astype(int))).pvalue > P_VALUE
    rows = np.stack([episodes.support.x[:, 0, 1], episodes.query.x[:, 0, 1]], axis=1)
    for task, count in enumerate(counts):
        chosen = rows[tasks == task]
        times = [np.sum((chosen == pair).all(axis=1)) for pair in permutations(range(count), 2)]
        assert sum(times) == len(chosen)
        assert scipy.stats.chisquare(times).pvalue > P_VALUE


def test_class_labels_stay_integers(rng):
    labels = np.arange(8) % 3
    family = TableTasks(
        named_rows((4, 4)), labels, (4, 4), kind="classification", output_size=3, shots=2, queries=2
    )
    episodes = draw(family, 0, 10)
    assert (family.kind, family.output_size, family.input_shape) == ("classification", 3, (2,))
    assert np.issubdtype(episodes.query.y.dtype, np.integer)
    row = (4 * episodes.query.x[..., 0] + episodes.query.x[..., 1]).astype(int)
    np.testing.assert_array_equal(episodes.query.y, labels[row])


def make(x=None, y=None, counts=(4, 4), kind="regression", output_size=1, **options):
    x = np.zeros((8, 2)) if x is None else x
    y = np.zeros((8, 1)) if y is None else y
    options = {"shots": 2, "queries": 2} | options
    return TableTasks(x, y, counts, kind=kind, output_size=output_size, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": 0}, "shots is 0; it must be a whole number of at least 1"),
        ({"queries": 0}, "queries is 0; it must be a whole number of at least 1"),
        ({"curvature": -2}, "curvature is -2; it must be a whole number of at least 0"),
        ({"output_size": 0}, "output_size is 0; it must be a whole number of at least 1"),
        ({"counts": ()}, "there are no tasks; at least one is needed"),
        (
            {"counts": (5, 3), "names": ("pump", "fan")},
            "1 of 2 tasks have fewer than 4 rows (shots 2 + queries 2); the smallest, 'fan', has 3: lower "
            "--shots or --queries, or leave the small tasks out",
        ),
        (
            {"counts": (4, 5)},
            "counts add up to 9, but there are 8 rows; give the number of each task",
        ),
        ({"y": np.zeros((7, 1))}, "y has 7 rows, but x has 8; give one target for each input"),
        (
            {"y": np.zeros(8)},
            "y has shape (8,); a regression with output_size 1 needs (8, 1), one column per output",
        ),
        (
            {"output_size": 2},
            "y has shape (8, 1); a regression with output_size 2 needs (8, 2), one column per output",
        ),
        (
            {"kind": "classification", "output_size": 2},
            "y has shape (8, 1) and type float64; class labels are whole numbers of shape (8,)",
        ),
        (
            {"kind": "classification", "y": np.arange(8) % 3, "output_size": 2},
            "y has a class label 2; with output_size 2 labels are 0 to 1",
        ),
        (
            {"kind": "classification", "y": np.arange(8) % 3 - 1, "output_size": 2},
            "y has a class label -1; with output_size 2 labels are 0 to 1",
        ),
        ({"kind": "ranking"}, "kind is 'ranking'; choose one of: classification, regression"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        make(**options)
    assert str(caught.value) == message


def test_targets_of_several_dimensions_pass():
    assert make(y=np.zeros((8, 3)), output_size=3).output_size == 3
