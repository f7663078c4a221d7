"""Minimisers against the normal equations, against the loss itself, and the curve against both."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from metastep import theory
from metastep._errors import InputError

GENERATOR = np.random.default_rng(7)
PHI = GENERATOR.normal(size=(9, 6, 4)) * np.linspace(0.5, 1.5, 4) + 0.3
QUERY = GENERATOR.normal(size=(9, 5, 4)) - 0.2
OPTIMA = GENERATOR.normal(size=(9, 4)) + 3
WEIGHTS = GENERATOR.uniform(0, 2, size=9)
LABELS, LABELS_QUERY = GENERATOR.normal(size=(9, 6)), GENERATOR.normal(size=(9, 5))
ALPHAS = np.array([-0.1, 0.0, 0.05, 0.3])
CASES = pytest.mark.parametrize(
    ("query", "weights"), [(None, None), (QUERY, None), (None, WEIGHTS), (QUERY, WEIGHTS)]
)


def weighted_risk(w, alpha, query, weights):
    rows = [
        np.mean((c @ (w - a)) ** 2)
        for c, a in zip(oracles.adapted(PHI, alpha, query), OPTIMA, strict=True)
    ]
    return np.average(rows, weights=weights)


@CASES
def test_minimiser_and_curve_solve_the_normal_equations(query, weights):
    options = {"phi_query": query, "weights": weights}
    curve = theory.risk_curve(PHI, OPTIMA, **options)
    path, risks = curve.minimisers(ALPHAS), curve.risks(ALPHAS)
    for i, alpha in enumerate(ALPHAS):
        expected = oracles.minimiser(PHI, OPTIMA, alpha, query, weights)
        np.testing.assert_allclose(
            theory.minimiser(PHI, OPTIMA, alpha, **options), expected, rtol=1e-9
        )
        np.testing.assert_allclose(path[i], expected, rtol=1e-9)
        least = weighted_risk(expected, alpha, query, weights)
        np.testing.assert_allclose(risks[i], least, rtol=1e-9)
        risk = theory.empirical_risk(expected, PHI, OPTIMA, alpha, **options)
        np.testing.assert_allclose(risk, least, rtol=1e-9)
        other = expected + 0.1
        risk = curve.risks_at(other, alpha)
        np.testing.assert_allclose(risk, weighted_risk(other, alpha, query, weights), rtol=1e-9)


@pytest.mark.parametrize("split", [False, True])
def test_label_minimiser_makes_the_gradient_vanish(split):
    query = (QUERY, LABELS_QUERY) if split else (None, None)
    options = {"phi_query": query[0], "labels_query": query[1]}
    w = np.asarray(theory.label_minimiser(PHI, LABELS, 0.1, **options))
    curve = theory.risk_curve_from_labels(PHI, LABELS, **options)
    np.testing.assert_allclose(curve.minimisers(0.1), w, rtol=1e-9)
    least = oracles.loss_after_step(w, PHI, LABELS, 0.1, *query)
    np.testing.assert_allclose(curve.risks(0.1), least, rtol=1e-9)
    for i in range(4):
        away = np.eye(4)[i] * 1e-4
        above = oracles.loss_after_step(w + away, PHI, LABELS, 0.1, *query)
        below = oracles.loss_after_step(w - away, PHI, LABELS, 0.1, *query)
        assert abs(above - below) < 1e-9
        assert above > least


def test_best_rate_is_where_the_risk_is_least():
    curve = theory.risk_curve_from_labels(PHI, LABELS, phi_query=QUERY, labels_query=LABELS_QUERY)
    fine = np.linspace(0, 0.5, 20_001)
    assert curve.best_rate(0.5) == pytest.approx(fine[np.argmin(curve.risks(fine))], abs=3e-5)
    best = curve.best_rate(0.5)
    near = np.asarray(curve.risks(np.array([best - 1e-5, best, best + 1e-5])))
    assert near.argmin() == 1


def test_best_rate_is_the_lower_of_two_minima():
    class TwoMinima:
        def risks(self, alphas):
            return np.minimum((alphas - 0.2) ** 2 + 0.01, 4 * (alphas - 0.7123) ** 2)

    found = theory.RiskCurve.best_rate(TwoMinima(), 1.0)
    assert found == pytest.approx(0.7123, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.1, -0.2])
def test_shares_make_the_minimiser_of_any_optima(alpha):
    shares = np.asarray(theory.minimiser_shares(PHI, alpha))
    np.testing.assert_allclose(shares.sum(0), np.eye(PHI.shape[2]), atol=1e-12)
    for optima in (OPTIMA, np.random.default_rng(9).normal(size=OPTIMA.shape)):
        expected = oracles.minimiser(PHI, optima, alpha)
        np.testing.assert_allclose(np.einsum("nde,ne->d", shares, optima), expected, rtol=1e-9)
    weighted = np.asarray(theory.minimiser_shares(PHI, alpha, weights=WEIGHTS))
    expected = oracles.minimiser(PHI, OPTIMA, alpha, None, WEIGHTS)
    np.testing.assert_allclose(np.einsum("nde,ne->d", weighted, OPTIMA), expected, rtol=1e-9)
    some = theory.minimiser_shares(PHI, alpha, weights=1.0 * (np.arange(len(PHI)) < len(PHI) - 1))
    np.testing.assert_allclose(some[:-1], theory.minimiser_shares(PHI[:-1], alpha), rtol=1e-9)
    assert not np.asarray(some[-1]).any()
    assert theory.minimiser_shares(PHI.astype(np.float32), alpha).dtype == np.float32
    order = np.arange(len(PHI))[::-1]
    backwards = theory.minimiser_shares(PHI[order], alpha)
    np.testing.assert_allclose(backwards, shares[order], rtol=1e-9, atol=1e-12)


def test_zero_rate_is_empirical_risk_minimisation():
    stacked, labels = PHI.reshape(-1, 4), np.einsum("nkd,nd->nk", PHI, OPTIMA).ravel()
    expected = np.linalg.lstsq(stacked, labels, rcond=None)[0]
    np.testing.assert_allclose(theory.minimiser(PHI, OPTIMA), expected, rtol=1e-9)


def test_invariances_of_the_minimiser():
    rotation = np.linalg.qr(GENERATOR.normal(size=(4, 4)))[0]
    w = theory.minimiser(PHI, OPTIMA, 0.1, weights=WEIGHTS)
    turned = theory.minimiser(PHI @ rotation, OPTIMA @ rotation, 0.1, weights=WEIGHTS)
    np.testing.assert_allclose(turned, w @ rotation, rtol=1e-9)
    shifted = theory.minimiser(PHI, OPTIMA + 5, 0.1, weights=WEIGHTS)
    np.testing.assert_allclose(shifted, w + 5, rtol=1e-9)
    twice = theory.minimiser(PHI, OPTIMA, 0.1, weights=2 * WEIGHTS)
    np.testing.assert_allclose(twice, w, rtol=1e-9)
    scaled = theory.minimiser(3 * PHI, OPTIMA, 0.1 / 9, weights=WEIGHTS)
    np.testing.assert_allclose(scaled, w, rtol=1e-9)
    kept = WEIGHTS * (np.arange(9) != 2)
    without = theory.minimiser(
        np.delete(PHI, 2, 0), np.delete(OPTIMA, 2, 0), 0.1, weights=np.delete(WEIGHTS, 2)
    )
    np.testing.assert_allclose(theory.minimiser(PHI, OPTIMA, 0.1, weights=kept), without, rtol=1e-9)


def test_fewer_shots_than_features_is_fine_while_all_tasks_suffice():
    phi = GENERATOR.normal(size=(5, 2, 4))
    w = theory.minimiser(phi, OPTIMA[:5], 0.1)
    np.testing.assert_allclose(w, oracles.minimiser(phi, OPTIMA[:5], 0.1), rtol=1e-9)
    # 10 examples, but 2 dim + 2 = 10 columns; with 4 tasks the factor is wider than high.
    curve = theory.risk_curve(phi[:3], OPTIMA[:3])
    assert curve.factor.shape == (6, 10)
    np.testing.assert_allclose(
        curve.minimisers(0.1), oracles.minimiser(phi[:3], OPTIMA[:3], 0.1), rtol=1e-9
    )


def test_ill_conditioned_features_keep_float32_useful():
    # Condition number 1e4 of the features, 1e8 of the Gram matrices: the normal equations in
    # float32 (eps 6e-8) have no digit left, least squares has about three.
    phi = PHI * np.array([1, 1, 1, 1e-4])
    single = theory.minimiser(phi.astype(np.float32), OPTIMA.astype(np.float32), 0.05)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, theory.minimiser(phi, OPTIMA, 0.05), rtol=2e-2)
    curve = theory.risk_curve(phi.astype(np.float32), OPTIMA.astype(np.float32))
    np.testing.assert_allclose(
        curve.risks(ALPHAS), theory.risk_curve(phi, OPTIMA).risks(ALPHAS), rtol=1e-4
    )


def test_far_optima_do_not_cancel():
    curve, near = theory.risk_curve(PHI, OPTIMA + 1e6), theory.risk_curve(PHI, OPTIMA)
    np.testing.assert_allclose(curve.risks(ALPHAS), near.risks(ALPHAS), rtol=1e-6)


def test_curve_is_differentiable_in_alpha_and_features():
    direction = GENERATOR.normal(size=PHI.shape)
    small = 1e-6

    def risk(phi, alpha):
        return theory.risk_curve(phi, OPTIMA, phi_query=QUERY).risks(alpha)

    by_phi, by_alpha = jax.grad(risk, argnums=(0, 1))(jnp.asarray(PHI), 0.1)
    numeric = (risk(PHI + small * direction, 0.1) - risk(PHI - small * direction, 0.1)) / 2 / small
    np.testing.assert_allclose(np.sum(by_phi * direction), numeric, rtol=1e-6)
    numeric = (risk(PHI, 0.1 + small) - risk(PHI, 0.1 - small)) / 2 / small
    np.testing.assert_allclose(by_alpha, numeric, rtol=1e-6)


def test_curve_is_a_pytree_that_does_not_retrace():
    count = []

    @jax.jit
    def value(curve, alpha):
        count.append(0)
        return curve.risks(alpha)

    first, second = theory.risk_curve(PHI, OPTIMA), theory.risk_curve(PHI, OPTIMA + 1)
    assert value(first, 0.1).shape == value(second, 0.2).shape == ()
    assert len(count) == 1
    assert first.minimisers(np.zeros((2, 3))).shape == (2, 3, 4)


def test_dependent_features_give_nan_on_the_curve_and_an_error_alone():
    twice = np.concatenate([PHI, PHI[..., :1]], axis=2)
    optima = np.concatenate([OPTIMA, OPTIMA[:, :1]], axis=1)
    curve = theory.risk_curve(twice, optima)
    assert np.isnan(curve.risks(0.1))
    assert np.isnan(curve.minimisers(0.1)).all()
    with pytest.raises(
        InputError, match="minimiser: the stacked adapted features have a condition"
    ):
        theory.minimiser(twice, optima, 0.1)
    with pytest.raises(Exception, match="drop dependent features, change alpha or use float64"):
        jax.block_until_ready(jax.jit(theory.minimiser)(twice, optima, 0.1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.minimiser(PHI[0], OPTIMA), "phi has shape"),
        (lambda: theory.minimiser(PHI, OPTIMA[:, :2]), "optima has shape"),
        (lambda: theory.minimiser(PHI, OPTIMA, np.nan), "alpha holds 1 NaN"),
        (lambda: theory.minimiser(PHI, OPTIMA, weights=-WEIGHTS), "weights is an array"),
        (lambda: theory.minimiser(PHI, OPTIMA, phi_query=QUERY[:1]), "phi_query has shape"),
        (
            lambda: theory.minimiser(PHI[:1, :2], OPTIMA[:1]),
            "minimiser: phi holds 2 examples in all for 4 features, .* minimum_norm_coefficients",
        ),
        (lambda: theory.risk_curve(PHI[:1, :2], OPTIMA[:1]), "risk_curve: phi holds 2 examples"),
        (lambda: theory.minimiser_shares(PHI[:1, :2]), "minimiser_shares: phi holds 2 examples"),
        (lambda: theory.risk_curve(PHI, OPTIMA).risks(np.nan), "alphas holds 1 NaN"),
        (lambda: theory.risk_curve(PHI, OPTIMA).best_rate(0.0), "highest is 0; it must be above 0"),
        (lambda: theory.label_minimiser(PHI, LABELS[:, :1]), "labels has shape"),
        (
            lambda: theory.label_minimiser(PHI, LABELS, phi_query=QUERY),
            "labels_query is None; give phi_query and labels_query together",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
