"""The rate of grown outputs against networks whose growth has a closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep.models import Objective
from metastep.rates import grown_rate
from metastep.tasks import MixedLinear

FAMILY = MixedLinear(np.array([30.0, -20.0, 10.0]), shots=6, queries=8, spread=9.0)
KEYS = jax.random.split(jax.random.key(0), 16)


def layers(num_layers, width=7, seed=0):
    """Parameters and function of a ReLU network without offsets."""
    rng = np.random.default_rng(seed)
    sizes = [3, *[width] * (num_layers - 1), 1]
    params = [jnp.asarray(rng.normal(size=(a, b)) / a**0.5) for a, b in itertools.pairwise(sizes)]

    def apply(params, x):
        for weight in params[:-1]:
            x = jax.nn.relu(x @ weight)
        return x @ params[-1]

    return params, apply


def grown(params, apply, width, **options):
    return grown_rate(Objective.of(apply, "regression"), params, FAMILY, KEYS, width, **options)


def width_of(params, apply):
    episodes = jax.vmap(FAMILY.sample)(KEYS)
    return float(np.std(np.asarray(jax.vmap(lambda x: apply(params, x))(episodes.query.x))))


@pytest.mark.parametrize("num_layers", [1, 2, 4])
def test_outputs_of_layers_grow_with_the_power_of_their_number(num_layers):
    params, apply = layers(num_layers)
    found = grown(params, apply, 40.0)
    expected = (40.0 / width_of(params, apply)) ** (1 / num_layers)
    assert found.factor == pytest.approx(expected, rel=1e-4)
    assert found.width == 40.0


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_rate_is_the_label_aware_one_at_the_grown_parameters(num_layers):
    # Slope by differences of the query loss along the support gradient, curvature by those of the outputs.
    params, apply = layers(num_layers)
    found = grown(params, apply, 40.0)
    large = [found.factor * p for p in params]
    slope = curvature = 0.0
    for key in KEYS:
        episode = FAMILY.sample(key)
        support = lambda w, e=episode: jnp.sum((apply(w, e.support.x) - e.support.y) ** 2) / 6  # noqa: E731
        along = jax.grad(support)(large)
        h = 1e-6 / max(float(jnp.abs(g).max()) for g in along)
        there, back = (
            [w + sign * h * g for w, g in zip(large, along, strict=True)] for sign in (1, -1)
        )
        outputs = [np.asarray(apply(w, episode.query.x)) for w in (there, back)]
        losses = [np.sum((out - np.asarray(episode.query.y)) ** 2) / 8 for out in outputs]
        slope += (losses[0] - losses[1]) / (2 * h)
        curvature += 2 / 8 * np.sum(((outputs[0] - outputs[1]) / (2 * h)) ** 2)
    assert found.alpha == pytest.approx(slope / curvature, rel=1e-4)


def test_outputs_that_are_wide_already_stay():
    params, apply = layers(2)
    assert grown(params, apply, 0.5 * width_of(params, apply)).factor == pytest.approx(1, rel=1e-4)


def test_outputs_that_cannot_be_so_wide_have_no_rate():
    params, apply = layers(2)
    assert grown(params, lambda p, x: jnp.tanh(apply(p, x)), 40.0) is None
    nothing = [jnp.zeros_like(p) for p in params]
    assert grown(nothing, apply, 40.0) is None


def test_outputs_beyond_the_largest_number_count_as_wide():
    # The first factor that is tried, 100, makes them 1e600 times as large.
    params, _ = layers(1)
    apply = lambda p, x: x @ jnp.sign(p[0]) * jnp.sum(jnp.abs(p[0])) ** 300  # noqa: E731
    start = [p / jnp.sum(jnp.abs(p)) for p in params]
    found = grown(start, apply, 40.0)
    assert found.factor == pytest.approx((40.0 / width_of(start, apply)) ** (1 / 300), rel=1e-4)


def test_only_what_the_inner_loop_moves_counts_and_all_of_it_grows():
    params, apply = layers(2)
    head_only = lambda gradient: [jnp.zeros_like(gradient[0]), gradient[1]]  # noqa: E731
    found = grown(params, apply, 40.0, restrict=head_only, tasks_at_once=3)
    # A head on fixed features is a linear model: the rate is that of the features, c times as large.
    c = found.factor
    features = lambda x: jax.nn.relu(x @ (c * params[0]))  # noqa: E731
    batch = jax.vmap(FAMILY.sample)(KEYS)
    slope = curvature = 0.0
    for i in range(len(KEYS)):
        one = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), batch)
        fs, fq = np.asarray(features(one.support.x)), np.asarray(features(one.query.x))
        w = c * np.asarray(params[1])
        gs = 2 / 6 * fs.T @ (fs @ w - one.support.y)
        gq = 2 / 8 * fq.T @ (fq @ w - one.query.y)
        slope += np.sum(gs * gq)
        curvature += 2 / 8 * np.sum((fq @ gs) ** 2)
    assert found.alpha == pytest.approx(slope / curvature, rel=1e-6)
