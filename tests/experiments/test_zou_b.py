"""The experiments on Zou's figures 4 to 9, table 2 and Bernacchia's setting: records, claims, headline numbers.

Every experiment runs once at a reduced size. Beside its claims one number of its records is computed
again in NumPy, from the same random draws or from exact moments, without the library.
"""

import dataclasses
import functools
import itertools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from metastep import experiments, theory
from metastep._records import to_plain
from metastep.experiments import (
    bernacchia_fig12,
    zou_fig4,
    zou_fig8,
    zou_fig9,
)
from metastep.experiments.core import Report, log_slope
from metastep.experiments.linear_designs import (
    EXPONENTIAL,
    LAWS,
    NORMAL,
    UNIFORM,
    WIDE_NORMAL,
    draw_law,
)
from metastep.models import mlp
from metastep.report import style
from metastep.tasks import Quadratic, batch_of_episodes
from metastep.theory.grams import gram_power_sums
from metastep.theory.minimisers import covariance_from_powers

SIZES: dict[str, dict[str, Any]] = {
    "zou-fig4": {"tasks": 600, "points": 4, "network_width": 512, "network_tasks": 8, "network_points": 3},
    "zou-fig5": {"tasks": 60, "repeats": 24, "steps": (0, 100, 2000)},
    "zou-fig6": {"variances": 11},
    "zou-moments": {"samples": 50_000},
    "zou-fig8": {"population": 2048, "shift_doublings": (6, 8)},
    "zou-fig9": {"tasks": 1500, "trials": 3, "points": 21},
    "zou-table2": {"pretraining": (300, 600), "train_tasks": 500, "test_tasks": 500, "points": 41},
    "bernacchia-fig11": {"repeats": 6, "points": 41, "test_tasks": 20_000},
    "bernacchia-fig12": {
        "rates": (-0.01, 0.0, 0.01, 0.02), "hidden": 20, "inner_steps": 1, "iterations": 150, "fold_tasks": 40,
    },
}  # fmt: skip

# What each claim must come out as; the evidence for it is in formulas, not in these runs.
VERDICTS = {
    "zou-fig4": ["holds with a condition", "does not hold", "holds", "holds"],
    "zou-fig6": ["holds", "holds with a condition", "does not hold"],
    "zou-moments": ["does not hold", "holds with a condition", "holds"],
    "zou-fig8": ["holds"] * 9,
    "zou-table2": ["does not hold", "holds", "not tested", "does not hold", "holds"],
    "bernacchia-fig11": ["holds", "holds", "holds", "holds with a condition", "does not hold"],
}  # fmt: skip


@functools.cache
def _run(name: str) -> dict[str, Any]:
    """Records of a reduced quick run, as a file would give them back."""
    experiment = experiments.load(name)
    config = dataclasses.replace(experiment.quick, **SIZES[name])
    with jax.enable_x64(experiment.float64):
        found = experiment.run(config, 0, Report())
    records = {"config": dataclasses.asdict(config), **found}
    return json.loads(json.dumps(to_plain(records), allow_nan=False))


def _numbers(record: Any) -> list[float]:
    if isinstance(record, dict):
        record = list(record.values())
    if isinstance(record, list):
        return list(itertools.chain.from_iterable(map(_numbers, record)))
    return [] if isinstance(record, str) else [math.nan if record is None else float(record)]


@pytest.mark.parametrize("name", SIZES)
def test_records_claims_and_figure(name):
    records, experiment = _run(name), experiments.load(name)
    claims = experiment.claims(records)
    assert np.isfinite(_numbers(records)).all()
    assert claims
    assert all(claim.text and claim.source and claim.test and claim.evidence for claim in claims)
    assert "nan" not in " ".join(claim.evidence for claim in claims)
    assert len(style.render(experiment.plot(records), "png")) > 20_000
    assert experiment.paper_scale != experiment.quick
    if name in VERDICTS:
        assert [claim.verdict for claim in claims] == VERDICTS[name]


@pytest.mark.parametrize(
    "law", [EXPONENTIAL, NORMAL, UNIFORM, WIDE_NORMAL], ids=lambda law: law.title
)
def test_laws_draw_what_their_moments_say(law, rng):
    """A million draws: the fourth moment of Exp(1) has a relative standard error below 1 %."""
    x = law.draw(rng, (1000, 1000))
    found = [np.mean(x**r) for r in range(5)]
    np.testing.assert_allclose(law.raw_moments(4), found, rtol=0.03, atol=0.03 * np.std(x) ** 3)


def _row_moments(phi: np.ndarray, weights: np.ndarray, shots: int) -> float:
    """alpha_lim for independent rows phi (points, dim) of a weighted law, by exact moments: K p2 / (2 p3)."""
    second = (phi * weights[:, None]).T @ phi
    norms, form = np.sum(phi**2, 1), np.einsum("pd,de,pe->p", phi, second, phi)
    p2 = shots * weights @ norms**2 + shots * (shots - 1) * np.sum(second**2)
    p3 = shots * weights @ norms**3 + 3 * shots * (shots - 1) * weights @ (norms * form)
    p3 += shots * (shots - 1) * (shots - 2) * np.trace(second @ second @ second)
    return shots * p2 / (2 * p3)


def test_fig4_rates_match_quadrature():
    """Centres about the data: the rate rises with the variance; exact moments by the trapezoidal rule."""
    one = _run("zou-fig4")["designs"]["rbf_centred"]
    exact = []
    for variance in one["variance"]:
        x = np.linspace(-1, 1, 4001) * math.sqrt(3 * variance)
        phi = np.exp(-((x[:, None] - np.linspace(-5, 5, 10)) ** 2) / (2 * 5.0**2))
        weights = np.full(4001, 1 / 4000)
        weights[[0, -1]] /= 2
        exact.append(_row_moments(phi, weights, 15))
    np.testing.assert_allclose(one["uniform"], exact, rtol=0.02)  # 600 tasks: 0.4 % standard error
    assert np.all(np.diff(exact) > 0)


def test_fig4_tells_inverse_from_nearly_inverse():
    variance = [1.0, 2.0, 4.0, 8.0]
    inverse = [3 / v for v in variance]
    shifted = [3 / v + 1 for v in variance]
    assert zou_fig4.inverse_fit(variance, shifted) == pytest.approx(1)
    assert zou_fig4.inverse_fit(variance, [v**2 for v in variance]) < 0.7
    assert zou_fig4._spread({"variance": variance, "normal": inverse}, "normal") == pytest.approx(1)
    assert zou_fig4._spread({"variance": variance, "normal": shifted}, "normal") == pytest.approx(
        11 / 4
    )


def test_fig5_sampled_gaps_match_gradient_descent():
    """The first sample of the uniform law, by normal equations and t literal steps on every test task."""
    records, config = _run("zou-fig5"), _run("zou-fig5")["config"]
    rng = np.random.default_rng((0, LAWS.index("uniform")))
    shape = (config["tasks"], config["shots"], config["dim"])
    train, test = (5 / 3**0.5 * draw_law(rng, "uniform", shape) for _ in range(2))
    optima, fresh = 3**0.5 * rng.standard_normal((2, shape[0], shape[2]))

    def start(alpha: float) -> np.ndarray:
        moved = [p @ (np.eye(20) - 2 * alpha / 50 * p.T @ p) for p in train]
        total = sum(c.T @ c for c in moved)
        return np.linalg.solve(total, sum(c.T @ c @ a for c, a in zip(moved, optima, strict=True)))

    def after(w: np.ndarray, steps: int) -> tuple[float, float]:
        error = w - fresh
        for _ in range(steps):
            error = error - 2 * 1e-5 / 50 * np.einsum(
                "nkd,nke,ne->nd", test, test, error, optimize=True
            )
        fit = np.einsum("nkd,nd->nk", test, error)
        return float(np.sum(fit**2)), float(np.mean(np.sum(error**2, axis=1)))

    one = records["laws"]["uniform"]
    for column, steps in enumerate((0, 100)):
        loss, distance = np.subtract(after(start(1e-4), steps), after(start(0.0), steps))
        assert one["loss"]["sampled"][column] == pytest.approx(loss, rel=1e-5)
        assert one["distance"]["sampled"][column] == pytest.approx(distance, rel=1e-5)


def test_fig5_expected_gap_and_verdicts(rng):
    """The covariance of the minimisers against sampled ones, at a rate large enough to see the difference."""
    phi = rng.standard_normal((12, 9, 3)) * [1.0, 1.5, 0.5]
    sums = gram_power_sums(jnp.asarray(phi))
    gain = covariance_from_powers(sums, 2 * 0.15 / 9) - covariance_from_powers(sums, 0.0)
    grams = phi.transpose(0, 2, 1) @ phi
    moved = grams @ (np.eye(3) - 2 * 0.15 / 9 * grams) @ (np.eye(3) - 2 * 0.15 / 9 * grams)
    optima = rng.standard_normal((200_000, 12, 3))
    maml, erm = (
        np.einsum("ij,njk,rnk->ri", np.linalg.inv(m.sum(0)), m, optima, optimize=True)
        for m in (moved, grams)
    )
    differences = np.sum(maml**2, 1) - np.sum(erm**2, 1)
    error = differences.std() / len(differences) ** 0.5
    assert abs(np.trace(gain) - differences.mean()) < 5 * error  # fails once in 1.7 million seeds
    claims = experiments.load("zou-fig5").claims(_run("zou-fig5"))
    laws = _run("zou-fig5")["laws"].values()
    assert (claims[0].verdict == "holds") == all(
        max(one["distance"]["expected"]) < 0 for one in laws
    )
    assert claims[2].verdict == "holds"
    assert (
        claims[3].verdict == "does not hold"
    )  # no law has a positive gap first and a negative one later


def test_fig6_coefficients_and_powers():
    """Coefficients by enumeration, the powers by their degree."""
    records = _run("zou-fig6")
    counted = np.zeros(295)
    for j, m, s in itertools.product(range(50), repeat=3):
        counted[3 * j + m + 2 * s] += 1
    assert records["coefficients"]["g2"] == counted.tolist()
    for row in records["limits"]:  # leading powers of p2 and p3: s^(4(d-1)) and s^(6(d-1))
        tail = log_slope(row["variance"][-2:], row["alpha_lim"][-2:])
        assert tail == pytest.approx(-(row["dim"] - 1), abs=0.02)


def test_third_moment_of_a_gaussian_is_that_of_wishart():
    wishart = 7 * ((7**2 + 3 * 7 + 4) * 5 + 3 * 8 * 5**2 + 5**3)
    (gaussian,) = (
        one
        for one in _run("zou-moments")["moments"]
        if one["case"].endswith("d = 5, K = 7, N(0, 1)")
    )
    assert gaussian["corrected"] == pytest.approx(wishart)
    assert gaussian["sampled"] == pytest.approx(wishart, rel=0.02)


def _best_by_lstsq(phi: np.ndarray, optima: np.ndarray, high: float) -> float:
    """The rate of least training loss with the best w, from stacked least squares alone."""

    def loss(alpha: float) -> float:
        moved = np.concatenate([p - 2 * alpha / len(p) * p @ (p.T @ p) for p in phi])
        labels = np.einsum("nkd,nd->nk", moved.reshape(phi.shape), optima).ravel()
        return float(np.sum((moved @ np.linalg.lstsq(moved, labels, rcond=None)[0] - labels) ** 2))

    low, width, middle = 0.0, high, 0.0
    for _ in range(6):  # each time the range around the lowest of 41 values
        grid = np.linspace(low, low + width, 41)
        middle = float(grid[np.argmin([loss(alpha) for alpha in grid])])
        low, width = max(0.0, middle - width / 20), width / 10
    return middle


def test_fig8_error_of_one_sample():
    config = zou_fig8.Config(
        doublings=4, trials=1, population=256, shift_doublings=(3, 4), shift_trials=2
    )
    records = zou_fig8._of_design(config, "random", np.random.default_rng(3))
    rng = np.random.default_rng(3)
    rng.uniform(-5.0, 5.0, (256, 15, 10))  # the population
    phi, optima = rng.uniform(-5.0, 5.0, (16, 15, 10)), 3**0.5 * rng.standard_normal((16, 10))
    for column, tasks in enumerate((2, 4, 8, 16)):
        best = _best_by_lstsq(phi[:tasks], optima[:tasks], 4 * records["alpha_lim"])
        error = abs(best - records["alpha_lim"])
        assert records["errors"]["mean"][column] == pytest.approx(error, abs=2e-7)


def test_fig9_best_rate_and_covariance():
    """Case (a) by least squares from the same draws; the covariance-aware rate by weighted traces."""
    config = zou_fig9.Config(tasks=200, trials=1, points=5)
    one, rng = zou_fig9._of_case(config, "a", np.random.default_rng(1)), np.random.default_rng(1)
    x = rng.uniform(-5.0, 5.0, (200, 15))
    phi = np.exp(-((x[..., None] - np.linspace(-5, 5, 10)) ** 2) / 2)
    optima = 3 * rng.standard_normal((200, 10))
    assert one["best"][0] == pytest.approx(_best_by_lstsq(phi, optima, 3.0), abs=1e-5)
    unequal = zou_fig9._of_case(config, "unequal", np.random.default_rng(1))  # the same features
    gram = phi.transpose(0, 2, 1) @ phi
    square, cube = (np.linalg.matrix_power(gram, power).mean(0) for power in (2, 3))
    variances = 0.2 ** np.arange(10)
    aware = 15 * np.diagonal(square) @ variances / (2 * np.diagonal(cube) @ variances)
    assert unequal["covariance_aware"][0] == pytest.approx(aware)


def test_fig9_verdicts_follow_the_errors():
    records = _run("zou-fig9")
    claims = experiments.load("zou-fig9").claims(records)
    for case, claim in zip("abcd", claims, strict=False):
        one = records["cases"][case]
        errors = np.abs(np.divide(one["alpha_lim"], one["best"]) - 1)
        expected = "holds" if errors.max() < 0.05 else "holds with a condition"
        assert claim.verdict == (expected if np.median(errors) < 0.05 else "does not hold")
    assert [claim.verdict for claim in claims[4:]] == ["holds with a condition", "holds"]


def test_table2_bayes_and_label_aware():
    """The zero-shot MSE by averaging over a grid of tasks; the label-aware rate as a joint minimum."""
    x, b = np.meshgrid(np.linspace(-5, 5, 2001), (np.arange(400) + 0.5) * math.pi / 400)
    sine = np.sin(x + b)  # a and b are independent: E a = pi / 2, E a^2 = pi^2 / 3
    variance = math.pi**2 / 3 * (sine**2).mean(0) - (math.pi / 2 * sine.mean(0)) ** 2
    bayes = np.trapezoid(variance, dx=1 / 2000)
    assert _run("zou-table2")["bayes"] == pytest.approx(bayes, abs=1e-4)
    assert bayes == pytest.approx(1.1721, abs=1e-4)
    rng = np.random.default_rng(0)
    phi, phi_query = rng.standard_normal((30, 6, 3)), rng.standard_normal((30, 5, 3))
    optima = rng.standard_normal((30, 3))  # tasks that differ, so that adapting pays
    y, y_query = (np.einsum("nkd,nd->nk", part, optima) for part in (phi, phi_query))
    y = y + 0.1 * rng.standard_normal(y.shape)

    def loss(vector: np.ndarray) -> float:
        gradient = np.einsum("nkd,nk->nd", phi, phi @ vector[1:] - y)
        moved = vector[1:] - 2 * vector[0] / 6 * gradient
        return float(np.mean((np.einsum("nqd,nd->nq", phi_query, moved) - y_query) ** 2))

    curve = theory.risk_curve_from_labels(phi, y, phi_query=phi_query, labels_query=y_query)
    joint = scipy.optimize.minimize(loss, np.array([0.05, 1.0, 0.0, 0.0]), tol=1e-12)
    assert 0.05 < joint.x[0] < 0.45
    assert curve.best_rate(0.5) == pytest.approx(joint.x[0], abs=1e-5)


def test_fig11_headline_numbers():
    records = _run("bernacchia-fig11")
    assert records["estimates"]["split_train"] == pytest.approx(5 / 36)
    # With an exact start, distance 0: 2 rate v (1 - rate 4.1) = 2 rate 3 s^2, v = s^2.
    assert records["estimates"]["noise_aware_test"] == pytest.approx(1 / 7.1, rel=0.03)
    sampled = records["sampled"]
    assert abs(sampled["loss"] - sampled["formula"]) < 4 * sampled["error"]
    rates = records["rates"]
    tied = rates["training_rate"][int(np.argmin(rates["same_rate"]))]
    fixed = rates["training_rate"][int(np.argmin(rates["fixed_test_rate"]))]
    assert fixed < 0 < tied


def test_fig12_judges_by_plain_gradient_steps():
    """An untrained network, one literal step on every test task."""
    config = bernacchia_fig12.Config(
        rates=(-0.01, 0.0, 0.02),
        fixed=0.0,
        hidden=5,
        inner_steps=1,
        iterations=0,
        fold_tasks=3,
        folds=4,
    )
    test_key = jax.random.key(2)
    model = mlp((1,), 1, (5,))
    params = model.init(jax.random.key(3))
    test = bernacchia_fig12._compile_test(bernacchia_fig12._learner(config), config)
    folds = test(jax.tree.map(lambda leaf: leaf[None], params), np.array(config.rates), test_key)[0]
    episodes = batch_of_episodes(Quadratic(), test_key, 12)
    losses = np.zeros((3, 12))
    for task in range(12):
        support, query = jax.tree.map(lambda leaf: leaf[task], (episodes.support, episodes.query))  # noqa: B023
        gradient = jax.grad(lambda w: ((model.apply(w, support.x) - support.y) ** 2).mean())(params)  # noqa: B023
        for row, rate in enumerate(config.rates):
            moved = jax.tree.map(lambda w, g: w - rate * g, params, gradient)  # noqa: B023
            losses[row, task] = ((model.apply(moved, query.x) - query.y) ** 2).mean()
    expected = losses.reshape(3, 4, 3).mean(2)
    np.testing.assert_allclose(folds, expected, rtol=1e-6)


def _table(best_train: int, best_test: int, noise: float) -> dict[str, Any]:
    """Fold losses of a made-up table with its least loss at a given cell."""
    rates, rng = [-0.01, 0.0, 0.01, 0.02], np.random.default_rng(0)
    rows, columns = np.meshgrid(range(4), range(4), indexing="ij")
    loss = 1.0 + (rows - best_train) ** 2 + (columns - best_test) ** 2
    folds = loss[..., None] + noise * rng.standard_normal((4, 4, 10))
    return {
        "config": {"fixed": 0.01},
        "rates": rates,
        "loss": loss.tolist(),
        "folds": folds.tolist(),
    }


@pytest.mark.parametrize(
    ("best", "noise", "expected"),
    [
        ((3, 3), 0.01, ["holds", "holds", "holds", "holds"]),
        ((0, 0), 0.01, ["does not hold", "does not hold", "does not hold", "holds"]),
        ((0, 3), 0.01, ["not tested", "holds", "does not hold", "does not hold"]),
        ((3, 3), 1000.0, ["not tested"] * 3),
    ],
)
def test_fig12_verdicts_on_made_up_tables(best, noise, expected):
    claims = bernacchia_fig12.EXPERIMENT.claims(_table(best[0], best[1], noise))
    assert [claim.verdict for claim in claims][: len(expected)] == expected
