"""The synthetic families: one task per episode, and the laws their docstrings promise.

Failure budget: each law is one test statistic on a fixed seed, with a false alarm in fewer than one of
100,000 seeds (p < 1e-5, or five standard errors).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from metastep._errors import InputError
from metastep.tasks import KnownSinusoid, MixedLinear, Quadratic, Sinusoid, batch_of_episodes

P_VALUE = 1e-5
STANDARD_ERRORS = 5


NUM_TASKS = 20_000

# Ranges, centres, spreads and noise are leaves: all tests of a family share one compiled program.
compiled = jax.jit(lambda family, key: batch_of_episodes(family, key, NUM_TASKS))


def draw(family, rng):
    """Many episodes as NumPy arrays."""
    return jax.tree.map(np.asarray, compiled(family, jax.random.key(int(rng.integers(2**31)))))


def assert_mean(values, expected):
    """The mean of independent values agrees with its expectation."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) < STANDARD_ERRORS * error


def assert_uniform(values, low, high):
    assert values.min() >= low
    assert values.max() <= high
    assert scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > P_VALUE


def solve(design, targets):
    """Least squares, task by task: (tasks, n, p) and (tasks, n) to (tasks, p)."""
    return np.einsum("tpn,tn->tp", np.linalg.pinv(design), targets)


class TestSinusoid:
    sizes = {"shots": 8, "queries": 2, "curvature": 1}  # noqa: RUF012

    @staticmethod
    def design(x):
        return np.concatenate([np.sin(x), np.cos(x)], axis=-1)

    def test_one_curve_per_task_with_the_law_of_the_paper(self, rng):
        # a sin(x - p) = a cos p sin x - a sin p cos x: linear, so the support set gives a and p.
        episodes = draw(Sinusoid(**self.sizes), rng)
        weights = solve(self.design(episodes.support.x), episodes.support.y[..., 0])
        for batch in (episodes.query, episodes.curvature):
            predicted = np.einsum("tnp,tp->tn", self.design(batch.x), weights)
            np.testing.assert_allclose(predicted, batch.y[..., 0], atol=1e-7)
        amplitude, phase = np.hypot(*weights.T), np.arctan2(-weights[:, 1], weights[:, 0])
        assert_uniform(amplitude, 0.1 - 1e-7, 5 + 1e-7)
        assert_uniform(phase, -1e-5, np.pi + 1e-5)
        assert_uniform(episodes.support.x[:, 0, 0], -5, 5)
        assert_uniform(episodes.query.x[:, 0, 0], -5, 5)
        for a, b in ((amplitude, phase), (amplitude, episodes.query.x[:, 0, 0])):
            assert scipy.stats.spearmanr(a, b).pvalue > P_VALUE

    def test_moments_of_y(self, rng):
        # E y = E a E sin(x - p), where E sin x = E cos p = 0: it is -E a E cos x E sin p.
        # E y^2 = E a^2 / 2, as E cos 2p = E sin 2p = 0 over a half turn.
        y = draw(Sinusoid(**self.sizes), rng).query.y[:, 0, 0]
        assert_mean(y, -2.55 * np.sin(5) / 5 * 2 / np.pi)
        assert_mean(y**2, (5**3 - 0.1**3) / (3 * 4.9) / 2)

    def test_other_ranges_and_noise(self, rng):
        ranges = {"amplitude": (2.0, 2.0), "phase": (0.5, 0.5), "inputs": (1.0, 3.0)}
        query = draw(Sinusoid(noise=0.3, **ranges, **self.sizes), rng).query
        assert_uniform(query.x[:, 0, 0], 1, 3)
        error = (query.y - 2 * np.sin(query.x - 0.5))[..., 0]
        assert scipy.stats.kstest(error[:, 0], scipy.stats.norm(scale=0.3).cdf).pvalue > P_VALUE
        assert_mean(error[:, 0] * error[:, 1], 0)  # independent within a task

    def test_examples_differ(self, rng):
        episodes = draw(Sinusoid(**self.sizes), rng)
        x = np.concatenate([episodes.support.x, episodes.query.x, episodes.curvature.x], axis=1)
        assert all(len(np.unique(row)) == 11 for row in x[:100])


class TestMixedLinear:
    centre = np.array([1.0, -2.0, 0.5])
    sizes = {"shots": 6, "queries": 2, "curvature": 1}  # noqa: RUF012

    def test_one_plane_per_task(self, rng):
        episodes = draw(MixedLinear(self.centre, spread=0.6, noise=0.0, **self.sizes), rng)
        weights = solve(episodes.support.x, episodes.support.y[..., 0])
        for batch in (episodes.query, episodes.curvature):
            predicted = np.einsum("tnp,tp->tn", batch.x, weights)
            np.testing.assert_allclose(predicted, batch.y[..., 0], atol=1e-7)
        standard = (weights - self.centre) / (0.6 / np.sqrt(3))
        for column in standard.T:
            assert scipy.stats.kstest(column, scipy.stats.norm.cdf).pvalue > P_VALUE
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert_mean(standard[:, i] * standard[:, j], 0)

    def test_moments_of_y(self, rng):
        # E y^2 = |c|^2 + nu^2 + s^2. Given w, y is normal: E y^4 = 3 E (|w|^2 + s^2)^2. What support and
        # query share is w alone: E (x y).(x' y') = E |w|^2.
        spread, noise = 0.6, 0.4
        episodes = draw(MixedLinear(self.centre, spread=spread, noise=noise, **self.sizes), rng)
        squared = self.centre @ self.centre + spread**2
        variance = 2 * spread**4 / 3 + 4 * spread**2 / 3 * (self.centre @ self.centre)
        y = episodes.query.y[:, 0, 0]
        assert_mean(y, 0)
        assert_mean(y**2, squared + noise**2)
        assert_mean(y**4, 3 * (variance + (squared + noise**2) ** 2))
        first, second = ((batch.x * batch.y)[:, 0] for batch in (episodes.support, episodes.query))
        assert_mean(np.sum(first * second, axis=1), squared)
        for column in episodes.query.x[:, 0].T:
            assert scipy.stats.kstest(column, scipy.stats.norm.cdf).pvalue > P_VALUE

    def test_features_stand_between_inputs_and_weights(self, rng):
        features = lambda x: jnp.concatenate([jnp.ones_like(x), x, x**2], axis=1)  # noqa: E731
        family = MixedLinear(self.centre, input_size=1, features=features, noise=0.0, **self.sizes)
        assert family.input_shape == (1,)
        episodes = draw(family, rng)
        weights = solve(episodes.support.x ** np.arange(3), episodes.support.y[..., 0])
        predicted = np.einsum("tnp,tp->tn", episodes.query.x ** np.arange(3), weights)
        np.testing.assert_allclose(predicted, episodes.query.y[..., 0], atol=1e-5)
        assert_mean(weights[:, 1], self.centre[1])


class TestQuadratic:
    sizes = {"shots": 16, "queries": 2, "curvature": 1}  # noqa: RUF012

    @staticmethod
    def design(x):
        a, b = x[..., 0], x[..., 1]
        return np.stack([a * a, b * b, 2 * a * b, 2 * a, 2 * b, np.ones_like(a)], axis=-1)

    def test_one_square_per_task(self, rng):
        episodes = draw(Quadratic(np.array([1.0, -0.5]), noise=0.0, **self.sizes), rng)
        weights = solve(self.design(episodes.support.x), episodes.support.y[..., 0])
        for batch in (episodes.query, episodes.curvature):
            predicted = np.einsum("tnp,tp->tn", self.design(batch.x), weights)
            np.testing.assert_allclose(predicted, batch.y[..., 0], rtol=1e-6, atol=1e-6)
        aa, bb, ab, a, b, one = weights.T  # of the square of one affine function: rank one
        for product, expected in ((aa * bb, ab**2), (aa * one, a**2), (bb * one, b**2)):
            np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)
        # The constant is b^2 with b standard normal.
        chi_square = scipy.stats.chi2(1).cdf
        assert scipy.stats.kstest(np.abs(one), chi_square).pvalue > P_VALUE

    def test_moments_of_y(self, rng):
        # u = x'w + b is N(0, |w|^2 + 1) given w: E u^2 = E|w|^2 + 1 and E u^4 = 3 E (|w|^2 + 1)^2.
        centre, spread, noise = np.array([0.4, -0.8]), 0.5, 0.3
        family = Quadratic(centre, spread=spread, noise=noise, **self.sizes)
        y = draw(family, rng).query.y[:, 0, 0]
        squared = centre @ centre + spread**2
        variance = 2 * spread**4 / 2 + 4 * spread**2 / 2 * (centre @ centre)
        assert_mean(y, squared + 1)
        assert_mean(y**2, 3 * (variance + (squared + 1) ** 2) + noise**2)


SIZED = {
    "sinusoid": Sinusoid,
    "linear": lambda **sizes: MixedLinear(np.ones(3), **sizes),
    "quadratic": lambda **sizes: Quadratic(np.ones(3), **sizes),
}


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("size", ["shots", "queries", "curvature"])
@pytest.mark.parametrize("value", [-1, 1.5, True])
def test_sizes_are_checked(name, size, value):
    least = 0 if size == "curvature" else 1
    message = f"{size} is {value}; it must be a whole number of at least {least}"
    with pytest.raises(InputError, match=f"^{message}$"):
        SIZED[name](**{size: value})


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("size", ["shots", "queries"])
def test_no_examples_are_refused(name, size):
    with pytest.raises(InputError, match=f"^{size} is 0; "):
        SIZED[name](**{size: 0})


class TestKnownSinusoid:
    def test_inputs_fix_the_label_and_follow_the_laws(self, rng):
        laws = Sinusoid(amplitude=(1.0, 3.0), phase=(0.5, 1.0), inputs=(-2.0, 4.0))
        episodes = draw(KnownSinusoid(6, laws), rng)
        x, amplitude, phase = np.moveaxis(episodes.query.x, -1, 0)
        expected = amplitude * np.sin(x - phase)
        np.testing.assert_allclose(episodes.query.y[..., 0], expected, rtol=1e-12, atol=1e-15)
        assert np.all(amplitude == amplitude[:, :1])
        assert np.all(phase == phase[:, :1])
        for values, law in ((x[:, 0], (-2, 4)), (amplitude[:, 0], (1, 3)), (phase[:, 0], (0.5, 1))):
            assert_uniform(values, *law)

    def test_support_and_query_are_the_same_examples(self):
        family = KnownSinusoid(4)
        episode = family.sample(jax.random.key(0))
        np.testing.assert_array_equal(episode.support.x, episode.query.x)
        np.testing.assert_array_equal(episode.support.y, episode.query.y)
        assert episode.query.x.shape == (4, *family.input_shape)
        assert episode.query.y.shape == (4, family.output_size)
        assert episode.curvature is None
        assert family.kind == "regression"

    def test_an_episode_needs_examples(self):
        with pytest.raises(InputError, match="examples is 0"):
            KnownSinusoid(0)
