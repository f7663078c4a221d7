"""Takagi: reduced quick runs, with the headline numbers computed again without the library.

The oracles are a spectrum and plain descent in NumPy; of the library they take only the drawn tasks.
"""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from reduced_runs import SIZES, check_records, numbers_in, reduced_run, verdicts_of

from metastep import experiments
from metastep.models import mlp
from metastep.tasks import Sinusoid, batch_of_episodes


@pytest.mark.parametrize("name", ["takagi-linear", "takagi-sinusoid"])
def test_records_hold_numbers_and_can_be_drawn(name):
    records = reduced_run(name)
    assert len(list(numbers_in(records))) > 10
    check_records(name, records)


# --- Takagi, linear regression


def test_takagi_linear_limits_are_those_of_the_spectrum_and_of_plain_descent():
    records = reduced_run("takagi-linear")
    config = experiments.load("takagi-linear").quick
    phi = np.random.default_rng(0).standard_normal((config.examples, config.dim))
    phi *= np.linspace(0.6, 1.4, config.dim)
    hessian = 2 / config.examples * phi.T @ phi
    curvatures = np.linalg.eigvalsh(hessian)
    np.testing.assert_allclose(records["eigenvalues"], curvatures, rtol=1e-10)
    alphas = np.array(records["alphas"])

    exact = np.array([2 / np.max(curvatures * (1 - a * curvatures) ** 2) for a in alphas])
    np.testing.assert_allclose(records["exact"]["beta_c_measured"], exact, rtol=1e-4)
    below = alphas < 1 / curvatures[-1]
    poster = np.array([2 / np.max(curvatures * (1 - a * curvatures)) for a in alphas[below]])
    measured = np.array(records["simplified"]["beta_c_measured"])
    np.testing.assert_allclose(measured[below], poster, rtol=1e-4)
    assert not measured[~below].any()
    np.testing.assert_allclose(records["simplified"]["alpha_c_measured"], 1 / curvatures[-1], rtol=1e-4)  # fmt: skip

    # Exact MAML at 1.4 alpha_c by plain iteration: converges just below the measured limit, not above.
    index = int(np.argmin(np.abs(alphas * curvatures[-1] - 1.4)))
    step = hessian @ np.linalg.matrix_power(np.eye(config.dim) - alphas[index] * hessian, 2)
    for factor, shrinks in ((0.99, True), (1.01, False)):
        weights = np.ones(config.dim)
        for _ in range(3000):
            weights = weights - factor * records["exact"]["beta_c_measured"][index] * step @ weights
        assert (np.linalg.norm(weights) < 1) == shrinks


def test_takagi_linearverdicts_of():
    records = reduced_run("takagi-linear")
    # simplified beta_c and alpha_c match; they are not MAML's; ours is; beta_c does not diverge; both grow
    expected = ["holds", "holds", "does not hold", "holds", "does not hold", "holds", "holds"]
    assert verdicts_of("takagi-linear", records) == expected
    share = np.array(records["eigenvalues"]) / records["eigenvalues"][-1]
    found = records["simplified"]
    growth = found["beta_c_at_limit"] / found["beta_c"][0]
    assert growth == pytest.approx(1 / np.max(share * (1 - share)))


# --- Takagi, sinusoids


def _sinusoid_start():
    """The model, its flattened start and the keys that an experiment of seed 0 uses."""
    start_key, training_key, edge_key = jax.random.split(jax.random.key(0), 3)
    model = mlp((1,), 1, SIZES["takagi-sinusoid"]["hidden"], jax.nn.relu)
    flat, unravel = jax.flatten_util.ravel_pytree(model.init(start_key))
    return model, flat, unravel, training_key, edge_key


def _adapted_loss(model, unravel, episodes, alpha):
    """Mean over tasks of the squared error after one step, as a function of the flat parameters."""

    def loss(flat, x, y):
        return jnp.mean(jnp.sum((model.apply(unravel(flat), x) - y) ** 2, axis=-1))

    def of_task(flat, support, query):
        return loss(flat - alpha * jax.grad(loss)(flat, *support), *query)

    def mean(flat):
        support = (episodes.support.x, episodes.support.y)
        query = (episodes.query.x, episodes.query.y)
        return jnp.mean(jax.vmap(of_task, (None, 0, 0))(flat, support, query))

    return mean


def test_takagi_sinusoid_cell_is_plain_gradient_descent():
    records, sizes = reduced_run("takagi-sinusoid"), SIZES["takagi-sinusoid"]
    with jax.enable_x64(False):
        model, flat, unravel, key, _ = _sinusoid_start()
        alpha, beta, losses = 0.03, 0.03, []
        family = Sinusoid(shots=10, queries=10)

        @jax.jit
        def step(flat, iteration):
            episodes = batch_of_episodes(
                family, jax.random.fold_in(key, iteration), sizes["tasks_per_step"]
            )
            value, gradient = jax.value_and_grad(_adapted_loss(model, unravel, episodes, alpha))(flat)  # fmt: skip
            return flat - beta * gradient, value

        for iteration in range(sizes["iterations"]):
            flat, value = step(flat, iteration)
            losses.append(float(value))
    assert records["train_loss"][1][0] == pytest.approx(np.mean(losses[-2:]), rel=1e-4)


def test_takagi_sinusoid_predicts_beta_c_from_the_dense_hessian():
    records, sizes = reduced_run("takagi-sinusoid"), SIZES["takagi-sinusoid"]
    with jax.enable_x64(False):
        model, flat, unravel, _, edge_key = _sinusoid_start()
        task_key, _ = jax.random.split(edge_key)
        family = Sinusoid(shots=10, queries=10)
        episodes = batch_of_episodes(family, task_key, sizes["edge_tasks"])
        hessian = jax.jit(jax.hessian(_adapted_loss(model, unravel, episodes, 0.03)))(flat)
    sharpest = np.linalg.eigvalsh(np.asarray(hessian, np.float64))[-1]
    predicted = records["predicted"]["start"]["beta_c"][1]
    assert predicted == pytest.approx(2 / sharpest, rel=1e-3)


def test_takagi_map_verdicts_follow_the_losses():
    """beta_c = 1 at every alpha; trainings that work are drawn by hand."""

    def verdicts(works: list[list[int]], alpha_c: float) -> list[str]:
        loss = [[0.0 if cell else None for cell in row] for row in works]
        records = {
            "alphas": [0.01, 0.1, 1.0], "betas": [0.1, 1.0, 10.0], "train_loss": loss, "highest_loss": 1.0,
            "predicted": {"start": {"beta_c": [1.0, 1.0, 1.0], "alpha_c": alpha_c}}, "iterations": 500,
        }  # fmt: skip
        return verdicts_of("takagi-sinusoid", records)

    half = "holds with a condition"
    assert verdicts([[1, 1, 0], [1, 1, 0], [1, 1, 1]], 1.0) == ["holds", half, "holds"]
    flat = ["does not hold", "holds", "does not hold"]
    assert verdicts([[1, 1, 0], [1, 1, 0], [1, 1, 0]], 0.1) == flat
    lone = ["not tested", "does not hold", "holds"]
    assert verdicts([[1, 0, 0], [0, 0, 0], [0, 0, 0]], 0.1) == lone


def test_takagi_map_is_judged_at_the_start_and_shows_every_place():
    records = {
        "alphas": [0.1, 1.0], "betas": [0.1, 1.0], "train_loss": [[0.0, 0.0], [0.0, 0.0]], "highest_loss": 1.0,
        "predicted": {
            "start": {"beta_c": [1.0, 2.0], "alpha_c": 1.0}, "trained": {"beta_c": [0.01, 0.02], "alpha_c": 0.003},
        },
    }  # fmt: skip
    _, beta, alpha = experiments.load("takagi-sinusoid").claims(records)
    assert (beta.verdict, alpha.verdict) == ("holds", "holds")
    assert "0.5 to 1 (start), 50 to 1e+02 (trained)" in beta.evidence
    assert "α_c 1 (start), 0.003 (trained)" in alpha.evidence


@pytest.mark.slow
@pytest.mark.omniglot
def test_omniglot_miniature_runs_and_claims_nothing_it_cannot_tell(omniglot_root):
    records = reduced_run("takagi-omniglot", str(omniglot_root))
    check_records("takagi-omniglot", records)
    assert "not tested" in verdicts_of("takagi-omniglot", records)
