"""Loss and distance after t steps against literal gradient descent, and gaps against their differences."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastep import theory
from metastep._errors import InputError

GENERATOR = np.random.default_rng(31)
PHI = GENERATOR.normal(size=(6, 5, 3)) * np.array([0.5, 1, 1.5]) + 0.3
WIDE = GENERATOR.normal(size=(6, 2, 4)) + 0.2  # fewer shots than features: eigenvalues of 0
TRAIN = GENERATOR.normal(size=(9, 4, 3)) * np.array([1.5, 1, 0.5]) - 0.2
OPTIMA, ETA, STEPS = GENERATOR.normal(size=(6, 4)) + 1, 0.03, (0, 1, 2, 7)


def descended(w, phi, optima, steps):
    """Mean loss and mean squared distance after literal gradient steps on every task."""
    losses, distances = [], []
    for p, a in zip(phi, optima, strict=True):
        v = w
        for _ in range(steps):
            v = oracles.step(v, p, p @ a, ETA)
        losses.append(np.mean((p @ (v - a)) ** 2))
        distances.append(np.sum((v - a) ** 2))
    return np.mean(losses), np.mean(distances)


@pytest.mark.parametrize("phi", [PHI, WIDE], ids=["more shots", "more features"])
def test_loss_and_distance_are_those_of_literal_steps(phi):
    w, optima = np.array([0.5, -1.0, 2.0, 0.3])[: phi.shape[2]], OPTIMA[:, : phi.shape[2]]
    found = theory.adaptation_curve(phi, ETA).at(w, optima, STEPS)
    expected = np.array([descended(w, phi, optima, t) for t in STEPS])
    np.testing.assert_allclose(np.stack(found, axis=1), expected, rtol=1e-10)
    for t, distance in zip(STEPS, found.distance, strict=True):
        single = theory.adapted_distance(w, phi, optima, ETA, t)
        np.testing.assert_allclose(distance, single, rtol=1e-10)


def test_gap_is_the_difference_and_does_not_cancel():
    curve, optima = theory.adaptation_curve(PHI, ETA), OPTIMA[:, :3]
    one, other = np.array([0.5, -1.0, 2.0]), np.array([1.0, 0.2, -0.5])
    gap = np.stack(curve.gap(one, other, optima, STEPS))
    np.testing.assert_allclose(
        gap, np.subtract(curve.at(one, optima, STEPS), curve.at(other, optima, STEPS)), rtol=1e-9
    )
    # The slope at `one` along the difference: a gap of 1e-12 that a difference of values of size 10 would lose.
    near = np.stack(curve.gap(one, one - 2e-13 * (one - other), optima, STEPS)) / 2e-13
    halfway = np.stack(curve.gap(one, one - 1e-3 * (one - other), optima, STEPS)) / 1e-3
    np.testing.assert_allclose(near, halfway, rtol=1e-2, atol=1e-2)


def test_expected_gap_is_the_distance_gap_for_every_number_of_steps():
    found = theory.adaptation_curve(PHI, ETA).expected_gap(TRAIN, 0.1, STEPS, 1.7)
    for t, distance in zip(STEPS, found.distance, strict=True):
        expected = oracles.distance_gap(TRAIN, 0.1, ETA, t, 1.7, False, PHI)
        np.testing.assert_allclose(distance, expected, rtol=1e-8)


def test_expected_gap_is_the_mean_over_simulated_optima():
    """Loss and distance of both minimisers on 40,000 draws; beyond 5 standard errors once in 1.7 million seeds."""
    grams = np.stack(oracles.grams(TRAIN))
    factor = np.eye(3) - 2 * 0.1 / 4 * grams
    optima = GENERATOR.normal(size=(40_000, 9, 3))
    maml, erm = (
        np.einsum("ij,njk,rnk->ri", np.linalg.inv(m.sum(0)), m, optima, optimize=True)
        for m in (grams @ factor @ factor, grams)
    )
    expected = theory.adaptation_curve(PHI, ETA).expected_gap(TRAIN, 0.1, 2)
    metrics = []
    for g in oracles.grams(PHI):
        q = np.linalg.matrix_power(np.eye(3) - 2 * ETA / 5 * g, 2)
        metrics.append((q @ (g / 5) @ q, q @ q))
    for column, value in enumerate(expected):
        metric = np.mean([pair[column] for pair in metrics], axis=0)
        # The optimum adapted to is independent of both starts, so that its own share cancels.
        gaps = np.einsum("ri,ij,rj->r", maml, metric, maml) - np.einsum(
            "ri,ij,rj->r", erm, metric, erm
        )
        assert abs(gaps.mean() - value) < 5 * gaps.std() / 200


@given(st.integers(0, 10_000), st.floats(0.01, 1.0))
def test_small_steps_never_raise_the_loss_or_the_distance(seed, share):
    rng = np.random.default_rng(seed)
    phi, optima = rng.standard_t(3, size=(4, 3, 2)), rng.normal(size=(4, 2))
    eta = share * 3 / (2 * max(np.linalg.eigvalsh(g)[-1] for g in oracles.grams(phi)))
    found = theory.adaptation_curve(phi, eta).at(rng.normal(size=2), optima, range(6))
    for values in found:
        assert (np.diff(values) <= 1e-12 * values[0]).all()
        assert (values >= 0).all()


def test_rotation_and_order_of_tasks_change_nothing_and_features_scale():
    rotation = np.linalg.qr(GENERATOR.normal(size=(3, 3)))[0]
    w, optima = np.array([0.5, -1.0, 2.0]), OPTIMA[:, :3]
    plain = theory.adaptation_curve(PHI, ETA).at(w, optima, STEPS)
    turned = theory.adaptation_curve(PHI @ rotation, ETA).at(w @ rotation, optima @ rotation, STEPS)
    backwards = theory.adaptation_curve(PHI[::-1], ETA).at(w, optima[::-1], STEPS)
    scaled = theory.adaptation_curve(3 * PHI, ETA / 9).at(w, optima, STEPS)
    for other in (turned, backwards, theory.AfterSteps(scaled.loss / 9, scaled.distance)):
        np.testing.assert_allclose(np.stack(other), np.stack(plain), rtol=1e-9)


def test_shape_of_steps_float32_and_compiled_calls():
    w, optima = np.array([0.5, -1.0, 2.0]), OPTIMA[:, :3]
    curve = theory.adaptation_curve(PHI, ETA)
    square = curve.at(w, optima, np.array([[0, 1], [2, 7]]))
    np.testing.assert_array_equal(square.loss.ravel(), curve.at(w, optima, STEPS).loss)
    assert curve.at(w, optima, 2).distance.shape == ()
    compiled = jax.jit(lambda phi: theory.adaptation_curve(phi, ETA).at(w, optima, 2).loss)(PHI)
    np.testing.assert_allclose(compiled, square.loss[1, 0], rtol=1e-10)
    single = theory.adaptation_curve(PHI.astype(np.float32), ETA)
    for part in (single.at(w, optima, 2), single.gap(w, -w, optima, 2)):
        assert part.loss.dtype == part.distance.dtype == jnp.float32
    np.testing.assert_allclose(single.at(w, optima, 2).loss, square.loss[1, 0], rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: theory.adaptation_curve(PHI[0], ETA), "phi has shape"),
        (lambda c: theory.adaptation_curve(PHI, np.nan), "eta holds 1 NaN"),
        (lambda c: c.at(np.ones(2), OPTIMA[:, :3], 1), "params has shape"),
        (lambda c: c.at(np.ones(3), OPTIMA, 1), "optima has shape"),
        (lambda c: c.at(np.ones(3), OPTIMA[:, :3], -1), "steps is -1; it must hold whole numbers"),
        (lambda c: c.at(np.ones(3), OPTIMA[:, :3], 0.5), "steps is 0.5"),
        (lambda c: c.gap(np.ones(3), np.ones(2), OPTIMA[:, :3], 1), "other has shape"),
        (lambda c: c.expected_gap(WIDE, 0.1, 1), "phi has shape"),
        (lambda c: c.expected_gap(TRAIN[:1, :2], 0.1, 1), "expected_gap: phi holds 2"),
        (lambda c: c.expected_gap(TRAIN, 0.1, 1, -1.0), "task_var is -1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call(theory.adaptation_curve(PHI, ETA))
