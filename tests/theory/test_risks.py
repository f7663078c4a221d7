"""Risks against explicit inverses, and their meaning by simulation."""

import numpy as np
import oracles
import pytest

from metastep import theory
from metastep._errors import InputError

GENERATOR = np.random.default_rng(11)
PHI = GENERATOR.normal(size=(6, 5, 3)) * np.array([0.5, 1, 1.5]) + 0.3
TEST = GENERATOR.normal(size=(4, 7, 3)) - 0.2
ALPHAS = (-0.05, 0.0, 0.1, 0.4)


def draws(count):
    """Population risks of the minimiser for `count` draws of standard normal training optima."""
    ms = [c.T @ c for c in oracles.adapted(PHI, 0.1)]
    inverse = np.linalg.inv(sum(ms))
    maps = np.stack([inverse @ m for m in ms])
    optima = 2**0.5 * np.random.default_rng(0).normal(size=(count, 6, 3))
    w = np.einsum("nde,sne->sd", maps, optima)
    mbar = oracles.mean_weight_of_tests(TEST, 0.1)
    return np.einsum("sd,de,se->s", w, mbar, w) / 7 + 2 / 7 * np.trace(mbar)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_risks_are_their_formulas(alpha):
    p1, p2, p3 = oracles.trace_moments(PHI)
    expected = 1.7 / 5 * (p1 - 4 * alpha * p2 / 5 + 4 * alpha**2 * p3 / 25)
    np.testing.assert_allclose(theory.limit_risk(PHI, alpha, 1.7), expected, rtol=1e-9)
    for test in (None, TEST):
        expected = oracles.average_risk(PHI, alpha, 1.7, PHI if test is None else test)
        actual = theory.average_risk(PHI, alpha, 1.7, phi_test=test)
        np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_limit_risk_with_a_query_set_and_its_minimum():
    query = GENERATOR.normal(size=(6, 4, 3))
    expected = np.mean([np.sum(c**2) / 4 for c in oracles.adapted(PHI, 0.2, query)])
    np.testing.assert_allclose(theory.limit_risk(PHI, 0.2, phi_query=query), expected, rtol=1e-9)
    best = float(theory.limit_rate(PHI, query))
    risks = [
        float(theory.limit_risk(PHI, a, phi_query=query)) for a in (best, 0.99 * best, 1.01 * best)
    ]
    assert risks[0] < min(risks[1:])


def test_average_and_variance_are_those_of_simulated_optima():
    # 400,000 draws: the mean is within 0.1 % and the variance within about 1 % (one sigma).
    simulated = draws(400_000)
    np.testing.assert_allclose(
        theory.average_risk(PHI, 0.1, 2.0, phi_test=TEST), simulated.mean(), rtol=3e-3
    )
    np.testing.assert_allclose(
        theory.risk_variance(PHI, 0.1, 2.0, phi_test=TEST), simulated.var(), rtol=4e-2
    )


def test_average_risk_tends_to_the_limit_risk_and_variance_falls_with_the_square():
    many = np.concatenate([PHI] * 100)
    limit = theory.limit_risk(PHI, 0.1)
    excess, far = (theory.average_risk(x, 0.1) - limit for x in (PHI, many))
    np.testing.assert_allclose(far, excess / 100, rtol=1e-9)
    ratio = theory.risk_variance(PHI, 0.1) / theory.risk_variance(many, 0.1)
    np.testing.assert_allclose(ratio, 1e4, rtol=1e-9)


def test_empirical_risk_is_the_loss_after_one_step():
    w, optima = GENERATOR.normal(size=3), GENERATOR.normal(size=(6, 3))
    labels = np.einsum("nkd,nd->nk", PHI, optima)
    for alpha in ALPHAS:
        expected = oracles.loss_after_step(w, PHI, labels, alpha)
        np.testing.assert_allclose(
            theory.empirical_risk(w, PHI, optima, alpha), expected, rtol=1e-9
        )


def test_gaussian_norm_is_that_of_the_widest_coordinate():
    """psi_2 norm from its definition: E exp(x^2 / t^2) = 2 at t = L, here by the trapezoidal rule."""
    norm = float(theory.gaussian_norm(PHI, 0.1, 1.7))
    rows = [np.linalg.norm(c.T @ c, axis=1).max() for c in oracles.adapted(PHI, 0.1)]
    deviation = max(rows) * 1.7**0.5
    x = np.linspace(-30, 30, 60_001)
    density = np.exp(-(x**2) / 2) / (2 * np.pi) ** 0.5
    mean = np.trapezoid(np.exp((deviation * x / norm) ** 2) * density, x)
    assert mean == pytest.approx(2, rel=1e-6)
    large = theory.gaussian_norm(PHI, 2e4) / theory.gaussian_norm(PHI, 1e4)
    assert large == pytest.approx(4, rel=1e-2)
    assert theory.gaussian_norm(PHI.astype(np.float32), 0.1).dtype == np.float32


@pytest.mark.parametrize("split", [False, True])
def test_losses_of_tasks_are_those_of_a_step_on_each(split):
    rng = np.random.default_rng(2)
    phi, query = rng.normal(size=(5, 4, 3)), rng.normal(size=(5, 6, 3)) + 0.2
    y, y_query, w = rng.normal(size=(5, 4)), rng.normal(size=(5, 6)), np.array([0.5, -1.0, 2.0])
    given = {"phi_query": query, "labels_query": y_query} if split else {}
    for alpha in (0.0, 0.1, -0.05):
        found = theory.adapted_losses(w, phi, y, alpha, **given)
        for task in range(5):
            moved = oracles.step(w, phi[task], y[task], alpha)
            judged = (query[task], y_query[task]) if split else (phi[task], y[task])
            loss = np.mean((judged[0] @ moved - judged[1]) ** 2)
            np.testing.assert_allclose(found[task], loss, rtol=1e-9)
        mean = theory.risk_curve_from_labels(phi, y, **given).risks_at(w, alpha)
        np.testing.assert_allclose(found.mean(), mean, rtol=1e-9)
    single = theory.adapted_losses(w, phi.astype(np.float32), y.astype(np.float32), 0.1)
    assert single.dtype == np.float32
    order = np.arange(5)[::-1]
    reversed_order = theory.adapted_losses(w, phi[order], y[order], 0.1)
    np.testing.assert_allclose(
        reversed_order[order], theory.adapted_losses(w, phi, y, 0.1), rtol=1e-12
    )


def test_concentration_bound_by_hand():
    # K = 2, alpha = 0.1: step 2 alpha / K = 0.1. above = 2 - 0.2 * 1 + 0.01 * 8 = 1.88 and
    # below = 1 - 0.2 * 4 + 0.01 * 1 = 0.21.
    spread, log_term = 1.88 / 0.21**2, np.log(2 / 0.1)
    for dim, expected in [
        (1, 9 / 2 * spread * log_term / (0.5 * 10)),
        (400, 9 / 2 * spread * np.sqrt(400 * log_term / (0.5 * 100))),
    ]:
        bound = theory.concentration_bound(0.1, 1.0, 2.0, 10, 2, dim, 3.0, 0.1, 0.5)
        np.testing.assert_allclose(bound, expected, rtol=1e-9)
    np.testing.assert_allclose(theory.concentration_spread(0.1, 1.0, 2.0, 2), spread, rtol=1e-9)
    for dim, expected in [
        (1, 9 / 2 * spread * log_term / 10),
        (4000, 9 / 2 * np.sqrt(4000 * spread * log_term / 100)),
    ]:
        printed = theory.concentration_bound_as_printed(0.1, 1.0, 2.0, 10, 2, dim, 3.0, 0.1)
        np.testing.assert_allclose(printed, expected, rtol=1e-9)
    for bound in (theory.concentration_bound, theory.concentration_bound_as_printed):
        assert bound(0.2, 1.0, 2.0, 10, 2, 3) == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.empirical_risk(np.ones(2), PHI, np.ones((6, 3))), "params has shape"),
        (lambda: theory.limit_risk(PHI, 0.1, -1.0), "task_var is -1"),
        (lambda: theory.limit_risk(PHI, [0.1]), "alpha has shape"),
        (lambda: theory.average_risk(PHI, 0.1, phi_test=TEST[..., :2]), "phi_test has shape"),
        (lambda: theory.average_risk(PHI[:1, :2], 0.1), "average_risk: phi holds 2 examples"),
        (lambda: theory.risk_variance(PHI[:1, :2], 0.1), "risk_variance: phi holds 2 examples"),
        (lambda: theory.concentration_bound(0.1, 1.0, 2.0, 0, 1, 1), "num_tasks is 0"),
        (lambda: theory.concentration_bound(0.1, 0.0, 2.0, 1, 1, 1), "smallest is 0"),
        (lambda: theory.concentration_bound(0.1, 3.0, 2.0, 1, 1, 1), "largest - smallest is -1"),
        (lambda: theory.concentration_bound(0.1, 1.0, 2.0, 1, 1, 1, delta=1.0), "delta is 1.0"),
        (
            lambda: theory.adapted_losses(np.ones(2), PHI, np.ones(PHI.shape[:2])),
            "params has shape",
        ),
        (lambda: theory.gaussian_norm(PHI, 0.1, -1.0), "task_var is -1"),
        (lambda: theory.concentration_bound(-1, 1.0, 2.0, 1, 1, 1), "alpha is -1"),
        (lambda: theory.concentration_bound(0, 1.0, 2.0, 1, 1, 1, constant=0.0), "constant is 0.0"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
