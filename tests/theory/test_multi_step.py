"""Several steps and layers: against brute force, and against the one-step rate they extend."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastep import theory
from metastep._errors import InputError

SPECTRUM = np.random.default_rng(0).gamma(1.0, size=(7, 4))


@given(st.lists(st.floats(1e-3, 1e3), min_size=6, max_size=6), st.sampled_from([1, 2, 5]))
def test_no_single_rate_is_better(eigenvalues, steps):
    rate = float(theory.multi_step_rate(eigenvalues, 10, steps))
    risk = oracles.schedule_risk(eigenvalues, 10, [rate] * steps)
    for factor in (0.9, 0.99, 1.01, 1.1):
        other = oracles.schedule_risk(eigenvalues, 10, [rate * factor] * steps)
        assert risk <= other * (1 + 1e-9)


def test_one_step_is_the_limit_rate():
    phi = np.random.default_rng(1).normal(size=(5, 4, 6))
    spectrum = theory.gram_eigenvalues(phi)
    np.testing.assert_allclose(
        spectrum, [np.linalg.eigvalsh(p @ p.T) for p in phi], rtol=1e-9, atol=1e-12
    )
    expected = oracles.limit_rate(phi)
    np.testing.assert_allclose(theory.multi_step_rate(spectrum, 4, 1), expected, rtol=1e-9)
    np.testing.assert_allclose(theory.step_schedule(spectrum, 4, 1), [expected], rtol=1e-9)
    np.testing.assert_allclose(theory.layer_rates([phi]), [expected], rtol=1e-9)


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_schedule_is_a_stationary_minimum(steps):
    rates = np.asarray(theory.step_schedule(SPECTRUM, 10, steps))
    assert (np.diff(rates) > 0).all()
    risk = oracles.schedule_risk(SPECTRUM, 10, rates)
    single = float(theory.multi_step_rate(SPECTRUM, 10, steps))
    assert risk < oracles.schedule_risk(SPECTRUM, 10, [single] * steps)
    for i in range(steps):
        for small in (1e-3, -1e-3):
            moved = rates.copy()
            moved[i] *= 1 + small
            assert oracles.schedule_risk(SPECTRUM, 10, moved) > risk


def test_schedule_nodes_integrate_polynomials_exactly():
    # Gauss nodes r_s for l^2 dmu: the monic polynomial with these roots is orthogonal to 1, l, ...
    left = SPECTRUM.ravel()
    roots = 10 / (2 * np.asarray(theory.step_schedule(SPECTRUM, 10, 4)))
    monic = np.prod([left / roots.mean() - r / roots.mean() for r in roots], axis=0)
    for power in range(4):
        inner = np.sum(left**2 * monic * left**power)
        assert abs(inner) < 1e-9 * np.sum(left**2 * np.abs(monic) * left**power)


def test_more_steps_than_eigenvalues_leaves_spare_steps():
    rates = theory.step_schedule([1.0, 2.0, 2.0, 0.0], 4, 4)
    np.testing.assert_allclose(rates, [1.0, 2.0, 0.0, 0.0], rtol=1e-12)
    assert oracles.schedule_risk([1.0, 2.0, 2.0], 4, rates) < 1e-25
    np.testing.assert_allclose(theory.multi_step_rate([2.0, 2.0], 4, 20), 1.0, rtol=1e-12)


def test_many_steps_in_float32():
    single = SPECTRUM.astype(np.float32)
    for steps in (1, 10, 100):
        np.testing.assert_allclose(
            theory.multi_step_rate(single, 5, steps),
            theory.multi_step_rate(SPECTRUM, 5, steps),
            rtol=1e-4,
        )


def test_layer_rates_minimise_the_risk_of_two_scales():
    generator = np.random.default_rng(2)
    blocks = [generator.normal(size=(6, 5, 3)), 0.1 * generator.normal(size=(6, 5, 4))]
    rates = theory.layer_rates(blocks)
    np.testing.assert_allclose(rates, oracles.layer_rates(blocks), rtol=1e-9)

    def risk(rates):
        kernels = [np.einsum("nkd,nld->nkl", b, b) for b in blocks]
        move = np.eye(5) - 2 / 5 * sum(a * k for a, k in zip(rates, kernels, strict=True))
        return np.einsum("nij,njk,nik->", move, sum(kernels), move)

    best = risk(np.asarray(rates))
    assert best < risk([oracles.limit_rate(np.concatenate(blocks, axis=2))] * 2)
    for change in ([1.01, 1], [0.99, 1], [1, 1.01], [1, 0.99]):
        assert best < risk(np.asarray(rates) * change)


def test_copies_of_a_layer_share_its_rate():
    phi = np.random.default_rng(3).normal(size=(4, 3, 2))
    np.testing.assert_allclose(
        theory.layer_rates([phi, phi]), [oracles.limit_rate(phi) / 2] * 2, rtol=1e-9
    )


def test_rates_are_differentiable_in_the_spectrum():
    direction = jnp.asarray(np.random.default_rng(4).normal(size=SPECTRUM.shape))
    for function in (theory.multi_step_rate, theory.step_schedule):

        def total(spectrum, function=function):
            return jnp.sum(function(spectrum, 10, 3) ** 2)

        small = 1e-6
        above, below = (total(SPECTRUM + s * direction) for s in (small, -small))
        exact = jnp.sum(jax.grad(total)(jnp.asarray(SPECTRUM)) * direction)
        np.testing.assert_allclose(exact, (above - below) / (2 * small), rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.multi_step_rate([-1.0], 1, 1), "eigenvalues is an array with the entry -1"),
        (lambda: theory.multi_step_rate([0.0], 1, 1), "eigenvalues are all 0"),
        (lambda: theory.multi_step_rate([1.0], 0, 1), "shots is 0"),
        (lambda: theory.step_schedule([1.0], 1, 0), "steps is 0"),
        (lambda: theory.step_schedule([1.0], 1, 1.5), "steps is 1.5"),
        (lambda: theory.layer_rates([]), "blocks is empty"),
        (lambda: theory.layer_rates([np.ones((2, 2))]), r"blocks\[0\] has shape"),
        (
            lambda: theory.layer_rates([np.ones((2, 2, 1)), np.ones((2, 3, 1))]),
            r"blocks\[1\] has shape .* those of blocks\[0\], \(2, 2\)",
        ),
        (lambda: theory.gram_eigenvalues(np.ones((2, 2))), "phi has shape"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
