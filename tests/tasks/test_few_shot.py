"""Few-shot episodes: which classes, which examples, which labels, and what happens to the pixels."""

from itertools import permutations

import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from metastep._errors import InputError
from metastep.datasets import load_omniglot
from metastep.tasks import FewShot, batch_of_episodes

P_VALUE = 1e-5  # each chi-square test raises a false alarm for fewer than one seed in 100,000


def named_examples(counts):
    """Examples that say who they are: 1000 * class + number within the class."""
    return np.concatenate([1000.0 * i + np.arange(n) for i, n in enumerate(counts)])[:, None]


def who(x):
    """Class and number of such examples."""
    codes = np.rint(np.asarray(x)).astype(int)[..., 0]
    return codes // 1000, codes % 1000


compiled = jax.jit(batch_of_episodes, static_argnums=2)


def draw(family, rng, num_tasks):
    key = jax.random.key(int(rng.integers(2**31)))
    return jax.tree.map(np.asarray, compiled(family, key, num_tasks))


def parts(episode):
    batches = [episode.support, episode.query, episode.curvature]
    return [batch for batch in batches if batch is not None]


# The same sizes in any order compile once: the counts are data, only the largest is static.
COUNTS = (4, 5, 4, 9, 6)


@pytest.mark.parametrize(
    ("ways", "sizes"), [(1, (1, 1, 0)), (3, (2, 1, 1)), (5, (1, 3, 0))], ids=str
)
@settings(max_examples=10)
@given(counts=st.permutations(COUNTS), seed=st.integers(0, 2**31 - 1))
def test_classes_and_examples_are_taken_once_and_labelled_alike(ways, sizes, counts, seed):
    shots, queries, curvature = sizes
    family = FewShot(
        named_examples(counts), counts, ways=ways, shots=shots, queries=queries, curvature=curvature
    )
    episodes = draw(family, np.random.default_rng(seed), 20)
    for task in range(20):
        batches = parts(jax.tree.map(lambda leaf, task=task: leaf[task], episodes))
        x, y = (np.concatenate([getattr(batch, name) for batch in batches]) for name in "xy")
        classes, numbers = who(x)
        assert len(set(zip(classes, numbers, strict=True))) == ways * (shots + queries + curvature)
        assert (numbers < np.asarray(counts)[classes]).all()  # never a neighbour of a smaller class
        assert len(set(zip(classes, y, strict=True))) == ways  # one label per class and the reverse
        for batch, size in zip(batches, (shots, queries, curvature), strict=False):
            np.testing.assert_array_equal(batch.y, np.repeat(np.arange(ways), size))


def test_every_class_example_and_label_is_equally_likely(rng):
    counts = (2, 3, 6)
    family = FewShot(named_examples(counts), counts, ways=2, shots=1, queries=1)
    episodes = draw(family, rng, 20_000)
    support, query = who(episodes.support.x), who(episodes.query.x)
    np.testing.assert_array_equal(support[0], query[0])
    pairs = [np.sum((support[0] == pair).all(axis=1)) for pair in permutations(range(3), 2)]
    assert scipy.stats.chisquare(pairs).pvalue > P_VALUE
    for group, count in enumerate(counts):
        chosen = support[0] == group
        taken = np.stack([support[1][chosen], query[1][chosen]], axis=1)
        times = [np.sum((taken == pair).all(axis=1)) for pair in permutations(range(count), 2)]
        assert sum(times) == chosen.sum()
        assert scipy.stats.chisquare(times).pvalue > P_VALUE


def small_images(counts, size=3, channels=2, seed=0):
    shape = (sum(counts), size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_bytes_become_numbers_from_0_to_1(rng):
    images = small_images((4, 4))
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0, 255
    episodes = draw(FewShot(images, (4, 4), ways=2, shots=1, queries=3), rng, 3)
    assert episodes.query.x.min() == 0
    assert episodes.query.x.max() == 1
    known = {image.tobytes() for image in images}
    for image in np.concatenate([episodes.support.x, episodes.query.x], axis=1)[0]:
        assert np.rint(image * 255).astype(np.uint8).tobytes() in known


def test_features_are_handed_on_as_they_are(rng):
    features = rng.normal(scale=1000, size=(6, 5))
    episodes = draw(FewShot(features, (3, 3), ways=2, shots=1, queries=2), rng, 2)
    for example in np.concatenate([episodes.support.x, episodes.query.x], axis=1).reshape(-1, 5):
        assert (features == example).all(axis=1).any()


def test_rotations_are_four_classes_of_turned_images(rng):
    # 12-way over 3 characters: each of the 12 (character, turn) pairs is one class of every task.
    counts = (2, 3, 2)
    images = small_images(counts)
    family = FewShot(images, counts, ways=12, shots=1, queries=1, rotations=True)
    episodes = draw(family, rng, 30)
    looks = {
        np.rot90(image, turn).tobytes(): (int(character), turn)
        for image, character in zip(images, np.repeat(range(3), counts), strict=True)
        for turn in range(4)
    }
    assert len(looks) == 4 * sum(counts)
    identity = lambda x: looks[np.rint(x * 255).astype(np.uint8).tobytes()]  # noqa: E731
    labels = []
    for support, query in zip(episodes.support.x, episodes.query.x, strict=True):
        classes = [identity(x) for x in support]
        assert len(set(classes)) == 12
        assert classes == [identity(x) for x in query]  # both sets of a class are turned alike
        assert not (support == query).all(axis=(1, 2, 3)).any()
        labels.append(classes.index((0, 0)))
    assert len(set(labels)) > 3  # the order of the labels is drawn too


def test_turned_classes_are_equally_likely(rng):
    images = np.zeros((2, 2, 2, 1))
    images[0, 0, 0], images[1, 0, 0] = 1, 2  # a mark in the corner tells character and turn
    family = FewShot(np.repeat(images, 2, axis=0), (2, 2), ways=1, queries=1, rotations=True)
    x = draw(family, rng, 8000).support.x[:, 0, :, :, 0].reshape(8000, 4)
    place, character = x.argmax(axis=1), x.max(axis=1)
    counts = np.unique(np.stack([place, character]), axis=1, return_counts=True)[1]
    assert len(counts) == 8
    assert scipy.stats.chisquare(counts).pvalue > P_VALUE


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ((3, 3), {"ways": 3}, "3-way tasks need 3 classes, but there are only 2"),
        ((3, 3), {"ways": 0}, "ways is 0; it must be a whole number of at least 1"),
        ((3, 3), {"shots": 0}, "shots is 0; it must be a whole number of at least 1"),
        ((3, 3), {"queries": -1}, "queries is -1; it must be a whole number of at least 1"),
        ((3, 3), {"curvature": -1}, "curvature is -1; it must be a whole number of at least 0"),
        (
            (3, 2, 1),
            {"queries": 2},
            "2 of 3 classes have fewer than 3 examples (shots 1 + queries 2); the smallest, 'c', has 1: "
            "lower --shots or --queries, or leave the small classes out",
        ),
        (
            (3, 2, 3),
            {"curvature": 1},
            "1 of 3 classes have fewer than 3 examples (shots 1 + queries 1 + curvature 1); the smallest, "
            "'b', has 2: lower --shots or --queries, or leave the small classes out",
        ),
        (
            (3, 3),
            {"rotations": True},
            "rotations need square images (n, size, size, channels), not (6, 1)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(counts, options, message):
    options = {"ways": 2, "shots": 1, "queries": 1, "names": ("a", "b", "c")} | options
    with pytest.raises(InputError) as caught:
        FewShot(named_examples(counts), counts, **options)
    assert str(caught.value) == message


def test_a_nameless_class_is_given_by_its_number():
    with pytest.raises(InputError, match="the smallest, 1, has 1: lower"):
        FewShot(named_examples((4, 1)), (4, 1), ways=2, shots=1, queries=2)


def test_images_must_be_square_to_be_turned():
    with pytest.raises(InputError, match=r"not \(4, 3, 2, 1\)$"):
        FewShot(np.zeros((4, 3, 2, 1)), (2, 2), ways=2, queries=1, rotations=True)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((2, 3), "counts add up to 5, but there are 6 examples; give the number of each class"),
        ((4, 4), "counts add up to 8, but there are 6 examples; give the number of each class"),
        ((3.0, 3.0), "counts must be whole numbers, one for each class"),
        (((3, 3),), "counts must be whole numbers, one for each class"),
    ],
)
def test_counts_that_do_not_fit_the_examples_are_refused(counts, message):
    # Indices past the end are clipped on the device, so this would train on wrong classes in silence.
    with pytest.raises(InputError, match=message):
        FewShot(np.zeros((6, 1)), counts, ways=2, shots=1, queries=1)


@pytest.mark.omniglot
def test_omniglot(omniglot_root, rng):
    data = load_omniglot(omniglot_root)
    names = [set(part.names) for part in (data.train, data.validation, data.test)]
    assert [len(part) for part in names] == [1028, 172, 423]
    assert len(set.union(*names)) == 1623  # no character in two splits
    for part in (data.train, data.test):
        family = FewShot(part.images, part.counts, ways=5, shots=1, queries=5, rotations=True)
        x = draw(family, rng, 40).query.x
        assert x.shape == (40, 25, 28, 28, 1)
        # Pen strokes cover a few per cent of a drawing, and no drawing is empty or full.
        assert 0.04 < x.mean() < 0.12
        per_image = x.mean(axis=(2, 3, 4))
        assert 0.001 < per_image.min() <= per_image.max() < 0.4
        # Two drawings of a character, however it is turned, are more alike than of two characters.
        flat = x.reshape(40, 5, 5, -1)  # task, class, example
        distance = lambda a, b: np.mean((a - b) ** 2)  # noqa: E731
        within = distance(flat[:, :, 0], flat[:, :, 1])
        assert within < 0.9 * distance(flat[:, 0, 0], flat[:, 1, 0])
