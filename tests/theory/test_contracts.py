"""What every function of features must keep: one table of functions, one test per invariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep import theory
from metastep._errors import InputError

SHAPES = [(9, 6, 3), (8, 2, 5)]  # more and fewer shots than features: both Gram matrices are used
OPTIMA = np.random.default_rng(5).normal(size=(9, 5)) + 1


def optima(phi):
    return jnp.asarray(OPTIMA[: phi.shape[0], : phi.shape[2]], phi.dtype)


# Name, function of the features alone, power of the feature scale it must follow.
RATES = {
    "limit_rate": (theory.limit_rate, -2),
    "limit_rate, query": (
        lambda x: theory.limit_rate(x, x[:, ::-1] + x.mean(1, keepdims=True)),
        -2,
    ),
    "limit_rate, query of its own": (lambda x: theory.limit_rate(x, x[:, :2] * 1.5), -2),
    "batch_rate": (theory.batch_rate, -2),
    "second_moment_rate": (theory.second_moment_rate, -2),
    "batch_rate_as_printed": (theory.batch_rate_as_printed, -2),
    "predicted_gain": (theory.predicted_gain, 0),
    "lower end of rate_interval": (lambda x: theory.rate_interval(x).lower, -2),
    "moment bound": (lambda x: theory.rate_interval(x).moment_bound, -2),
    "upper end as printed": (lambda x: theory.rate_interval_as_printed(x).upper, -2),
    "finite_task_coefficient": (theory.finite_task_coefficient, -2),
    "finite_task_scatter": (theory.finite_task_scatter, -2),
    "average_risk_rate": (theory.average_risk_rate, -2),
    "multi_step_rate": (
        lambda x: theory.multi_step_rate(theory.gram_eigenvalues(x), x.shape[1], 3),
        -2,
    ),
    "step_schedule": (
        lambda x: theory.step_schedule(theory.gram_eigenvalues(x), x.shape[1], 2),
        -2,
    ),
    "layer_rates": (lambda x: theory.layer_rates([x[..., :1], 2 * x[..., 1:]]), -2),
    "label_aware_rate": (
        lambda x: theory.label_aware_rate(x, jnp.ones(x.shape[:2], x.dtype).at[:, 0].set(2)),
        -2,
    ),
    "gram_limit_rate": (
        lambda x: theory.gram_limit_rate(jnp.einsum("nkd,nld->nkl", x, x)),
        -2,
    ),
    "p3": (lambda x: theory.gram_moments(x).p3, 6),
    "limit_risk at 0": (lambda x: theory.limit_risk(x, 0.0), 2),
    "average_risk at 0": (lambda x: theory.average_risk(x, 0.0), 2),
    "risk_variance at 0": (lambda x: theory.risk_variance(x, 0.0), 4),
    "minimiser": (lambda x: theory.minimiser(x, optima(x)), 0),
    "risk_curve at 0": (lambda x: theory.risk_curve(x, optima(x)).risks(0.0), 2),
    "distance_gap": (lambda x: theory.distance_gap(x, 0.3 * theory.limit_rate(x), 0.0, 2), 0),
    "sign_change_rate": (lambda x: theory.sign_change_rate(x, 0.0, 0), -2),
    "radius bound": (lambda x: theory.rate_interval(x).radius_bound, -2),
    "minimiser_shares": (
        lambda x: jnp.sum(theory.minimiser_shares(x, 0.3 * theory.limit_rate(x)) ** 2),
        0,
    ),
    "gaussian_norm": (lambda x: theory.gaussian_norm(x, 0.3 * theory.limit_rate(x)), 2),
    "adapted_losses": (
        lambda x: jnp.mean(
            theory.adapted_losses(
                jnp.zeros(x.shape[2], x.dtype),
                x,
                jnp.ones(x.shape[:2], x.dtype).at[:, 0].set(2),
                0.3 * theory.limit_rate(x),
            )
        ),
        0,
    ),
    "expected gap of the adaptation curve": (
        lambda x: (
            theory.adaptation_curve(x, 0.1 * theory.limit_rate(x))
            .expected_gap(x, 0.3 * theory.limit_rate(x), 3)
            .loss
        ),
        2,
    ),
}
NOT_DIFFERENTIABLE = {
    "average_risk_rate",
    "sign_change_rate",
    "expected gap of the adaptation curve",  # eigenvectors of equal eigenvalues
}
ROWS = pytest.mark.parametrize("name", RATES)
BOTH = pytest.mark.parametrize("shape", SHAPES, ids=str)


def features(shape, seed=3):
    # Not centred and not isotropic, so that a lost sign or transpose shows.
    draw = np.random.default_rng(seed).normal(size=shape)
    return draw * np.linspace(0.5, 1.5, shape[2]) + 0.3


def close(actual, expected, rtol=1e-9):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-13)


@BOTH
@ROWS
def test_follows_the_feature_scale(name, shape):
    function, power = RATES[name]
    phi = features(shape)
    close(function(phi * 3.0), 3.0**power * np.asarray(function(phi)), rtol=1e-8)


@ROWS
def test_jit_vmap_and_numpy_agree_with_a_plain_call(name):
    function, _ = RATES[name]
    pair = np.stack([features(SHAPES[0]), features(SHAPES[0], seed=4)])
    expected = [function(phi) for phi in pair]
    close(jax.jit(function)(pair[0]), expected[0])
    close(jax.vmap(function)(pair), np.stack(expected))


@ROWS
def test_float32_stays_float32_and_agrees(name):
    function, _ = RATES[name]
    phi = features(SHAPES[0])
    single = function(phi.astype(np.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, function(phi), rtol=3e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape"),  # each shape for every other function: compiling gradients takes the time
    [(name, SHAPES[i % 2]) for i, name in enumerate(RATES) if name not in NOT_DIFFERENTIABLE],
)
def test_gradient_is_the_numeric_one(name, shape):
    function, _ = RATES[name]
    phi, direction = features(shape), features(shape, seed=8)
    total = jax.jit(lambda x: jnp.sum(function(x)))
    small = 1e-5
    numeric = (total(phi + small * direction) - total(phi - small * direction)) / (2 * small)
    exact = jnp.sum(jax.jit(jax.grad(total))(phi) * direction)
    np.testing.assert_allclose(exact, numeric, rtol=2e-5, atol=1e-8)


USE_COORDINATES = {
    "layer_rates",
    "minimiser",
    "risk_curve at 0",
    "batch_rate_as_printed",
    "gaussian_norm",
}


@BOTH
@pytest.mark.parametrize("name", [name for name in RATES if name not in USE_COORDINATES])
def test_rotating_features_changes_nothing(name, shape):
    function, _ = RATES[name]
    phi = features(shape)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(shape[2], shape[2])))[0]
    close(function(phi @ rotation), function(phi), rtol=1e-8)


@BOTH
@pytest.mark.parametrize("name", [n for n in RATES if n not in ("minimiser", "risk_curve at 0")])
def test_order_of_tasks_is_irrelevant(name, shape):
    function, _ = RATES[name]
    phi = features(shape)
    close(function(phi[::-1]), function(phi), rtol=1e-8)


CURVES = {  # name -> function of features and alpha, for any number of rates
    "average_risk": theory.average_risk,
    "risk_variance": theory.risk_variance,
    "distance_gap": lambda x, alpha: theory.distance_gap(x, alpha, 0.01, 2),
    "distance_gap, linearised": lambda x, a: theory.distance_gap(x, a, 0.01, 2, linearised=True),
    "minimiser_distance": lambda x, a: theory.minimiser_distance(x, x[:, ::2] * 1.5, a, 1.3, 0.2),
    "concentration_spread": lambda x, alpha: theory.concentration_spread(alpha, 1.0, 1.5, 6),
    "concentration_bound": lambda x, alpha: theory.concentration_bound(alpha, 1.0, 1.5, 9, 6, 3),
}


@pytest.mark.parametrize("name", CURVES)
def test_many_rates_are_one_at_a_time(name):
    phi, alphas = features(SHAPES[0]), np.array([[0.0, 0.05], [0.1, 0.4]])
    found = CURVES[name](phi, alphas)
    assert found.shape == alphas.shape
    for alpha, value in zip(alphas.ravel(), np.asarray(found).ravel(), strict=True):
        close(value, CURVES[name](phi, alpha), rtol=1e-10)
    if "concentration" not in name:  # these have no features to follow
        assert CURVES[name](phi.astype(np.float32), alphas).dtype == jnp.float32


@pytest.mark.parametrize("name", CURVES)
def test_a_bad_rate_among_many_is_named(name):
    with pytest.raises(InputError, match="alpha holds 1 NaN or infinite numbers"):
        CURVES[name](features(SHAPES[0]), np.array([0.1, np.nan]))


def test_features_that_no_longer_determine_the_minimiser_end_one_rate_and_many():
    """At alpha = K / (2 G) an inner step forgets the start: C = 0 for one feature and equal tasks."""
    phi = np.ones((3, 2, 1))
    with pytest.raises(InputError, match="risk_variance: the stacked adapted features"):
        theory.risk_variance(phi, 0.5)
    with pytest.raises(RuntimeError, match="risk_variance: the stacked adapted features"):
        theory.risk_variance(phi, np.array([0.1, 0.5]))
