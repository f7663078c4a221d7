"""The (alpha, beta) plane on a problem worked out by hand: where SGD converges, and the limits predicted for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._errors import InputError
from metastep.train import ProblemConfig, TaskConfig, load_tasks, predict_limits
from metastep.train.edges import plain_learner
from metastep.train.rate_map import grid_around, log_grid, map_of_problem, rate_map

CONFIG = ProblemConfig(tasks="linear", shots=40)
TASKS = load_tasks(TaskConfig(tasks="linear", shots=40))
ALPHA = 0.1


def learner():
    return plain_learner(CONFIG, TASKS, ALPHA, 0.1, tasks_per_step=8)


def test_grids_hold_their_centre_and_ends():
    grid = grid_around(0.02, 10**0.5, 7, 4)
    assert len(grid) == 7
    assert grid[4] == 0.02
    np.testing.assert_allclose(np.diff(np.log10(grid)), 0.5)
    assert log_grid(0.01, 1.0, 3) == (0.01, 0.1, 1.0)


def test_limits_are_those_of_the_dense_matrices():
    """A linear model: squared error |X w - y|^2 / K has Hessian A = 2 X'X / K, and MAML's is
    (I - alpha A_support) A_query (I - alpha A_support), averaged over tasks."""
    start = learner().model.init(jax.random.key(0))
    key = jax.random.key(3)
    found = predict_limits(
        learner(), TASKS.splits, start, (0.0, ALPHA), key, num_tasks=6, lanczos=30
    )
    task_key, _ = jax.random.split(key)
    episodes = jax.vmap(TASKS.splits.train.sample)(jax.random.split(task_key, 6))
    support, query = (np.asarray(part.x, np.float64) for part in (episodes.support, episodes.query))
    curved = [2 * np.einsum("tki,tkj->tij", x, x) / x.shape[1] for x in (support, query)]
    for alpha, beta_c in zip((0.0, ALPHA), found["beta_c"], strict=True):
        shrink = np.eye(support.shape[-1]) - alpha * curved[0]
        hessian = np.mean(shrink @ curved[1] @ shrink, axis=0)
        assert beta_c == pytest.approx(2 / np.linalg.eigvalsh(hessian)[-1], rel=1e-6)


def test_map_diverges_above_the_predicted_edge_and_not_below():
    start = learner().model.init(jax.random.key(0))
    found = rate_map(
        learner(), TASKS.splits, start, ALPHA, 0.1, cells=(2, 5), iterations=400, edge_tasks=16
    )
    assert np.shape(found["train_loss"]) == (2, 5) == np.shape(found["diverged_at"])
    assert found["alphas"][1] == pytest.approx(ALPHA)
    edge = found["predicted"]["start"]["beta_c"][1]
    loss = np.nan_to_num(np.array(found["train_loss"][1], float), nan=np.inf)
    betas = np.array(found["betas"])
    # The meta-objective is a mean over 8 fresh tasks a step: within a factor of 2 of the edge either may happen.
    assert (loss[betas < edge / 2] < found["highest_loss"]).all()
    assert (loss[betas > 2 * edge] > 1e3 * found["highest_loss"]).all()
    assert (betas > 2 * edge).any()
    assert found["chosen"] == {"alpha": ALPHA, "beta": 0.1}


def test_map_of_a_problem_marks_the_rates_that_training_would_take():
    found = map_of_problem(CONFIG, TASKS, ALPHA, optimizer="adam", iterations=2, cells=(2, 2))
    assert found["chosen"]["beta"] == pytest.approx(0.01)
    assert found["betas"][0] < 0.01 < found["betas"][-1]
    assert found["optimizer"] == "adam"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.1), "alpha is 0"),
        ((0.1, -1.0), "meta_lr is -1"),
    ],
)
def test_rates_that_cannot_be_mapped_are_named(arguments, message):
    start = {"w": jnp.zeros(1)}
    with pytest.raises(InputError, match=message):
        rate_map(learner(), TASKS.splits, start, *arguments)
