"""Held-out tasks on which the trained rate is too high: judged, predicted and reported at a lower one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._errors import InputError
from metastep._records import read_jsonl
from metastep.tasks import MixedLinear
from metastep.train import (
    RunFolder,
    TrainConfig,
    adapt_and_predict,
    build_learner,
    evaluate_run,
    load_run,
    load_tasks,
    sweep,
    train,
)
from metastep.train.problem import split_keys

# Linear tasks whose support sets have very different curvatures: five examples in three dimensions.
TASKS = MixedLinear(centre=jnp.ones(3), shots=5, queries=7)
OPTIONS = {
    "tasks": TASKS,
    "model": "linear",
    "tasks_per_step": 3,
    "rate": "fixed",
    "eval_tasks": 30,
}
ALPHA, STEPS = 0.45, 2
sample = jax.jit(lambda key: TASKS.sample(key))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run at a rate that is too high for many a task."""
    folder = RunFolder(tmp_path_factory.mktemp("halving") / "run")
    config = TrainConfig(**OPTIONS, steps=STEPS, iterations=5, eval_every=5, alpha=ALPHA)
    train(config, folder)
    return folder, load_run(folder, tasks=TASKS)


def flat(params) -> np.ndarray:
    """Weights and bias of the linear model, in one vector."""
    leaves = {leaf.ndim: np.asarray(leaf, float) for leaf in jax.tree.leaves(params)}
    return np.append(leaves[2].ravel(), leaves[1])


def with_bias(x):
    return np.hstack([x, np.ones((len(x), 1))])


def oracle(params, x, y, alpha, steps):
    """(params, halvings in all) after gradient descent on the mean squared error, in NumPy."""
    x, y = with_bias(np.asarray(x, float)), np.asarray(y, float).ravel()
    loss = lambda w: np.mean((x @ w - y) ** 2)  # noqa: E731
    w, total = np.array(params), 0
    for _ in range(steps):
        gradient, times = 2 / len(y) * x.T @ (x @ w - y), 0
        while loss(w - alpha / 2**times * gradient) > loss(w):
            times += 1
        w, total = w - alpha / 2**times * gradient, total + times
    return w, total


def test_every_point_of_the_curve_is_an_adaptation_of_so_many_steps(trained):
    _, run = trained
    whole, _ = evaluate_run(run, num_tasks=40, steps=3)
    assert 0 < whole.curve[1].halved < 40
    for steps in (0, 1, 2):
        alone, _ = evaluate_run(run, num_tasks=40, steps=steps)
        assert alone.after.halved == whole.curve[steps].halved
        assert alone.after.loss.mean == pytest.approx(whole.curve[steps].loss.mean, rel=1e-9)


def test_evaluation_against_numpy(trained):
    _, run = trained
    found, _ = evaluate_run(run, num_tasks=40)
    keys = jax.random.split(split_keys(run.config.seed)["test"], 40)
    losses, halved, start = [], 0, flat(run.params)
    for key in keys:
        episode = sample(key)
        adapted, times = oracle(start, episode.support.x, episode.support.y, ALPHA, STEPS)
        errors = with_bias(np.asarray(episode.query.x)) @ adapted - np.ravel(episode.query.y)
        losses.append(np.mean(errors**2))
        halved += times > 0
    assert 0 < halved < 40
    assert (found.after.halved, found.after.unadapted) == (halved, 0)
    assert found.after.loss.mean == pytest.approx(np.mean(losses), rel=1e-6)


def test_zero_halvings_judge_plain_steps(trained):
    _, run = trained
    plain, _ = evaluate_run(run, num_tasks=40, halvings=0)
    mended, _ = evaluate_run(run, num_tasks=40)
    assert plain.after.halved == 0
    assert plain.after.loss.mean > mended.after.loss.mean
    with pytest.raises(InputError, match="halvings is -2"):
        evaluate_run(run, num_tasks=40, halvings=-2)


def test_no_rate_of_any_size_makes_an_evaluation_explode(trained):
    _, run = trained
    before, _ = evaluate_run(run, num_tasks=40, steps=0)
    for alpha in (1e2, 1e30):
        found, _ = evaluate_run(run, num_tasks=40, alpha=alpha)
        assert np.isfinite(found.after.loss.mean)
    assert found.after.unadapted == found.after.halved == 40
    assert found.after.loss == before.after.loss


def test_predictions_are_those_of_the_mended_adaptation(trained):
    _, run = trained
    counts, start = [], flat(run.params)
    for key in jax.random.split(jax.random.key(5), 12):
        episode = jax.device_get(sample(key))
        told = adapt_and_predict(run, episode.support.x, episode.support.y, episode.query.x)
        adapted, times = oracle(start, episode.support.x, episode.support.y, ALPHA, STEPS)
        assert (told.halvings, told.unadapted) == (times, False)
        expected = with_bias(episode.query.x) @ adapted
        np.testing.assert_allclose(told.predictions.ravel(), expected, rtol=1e-5, atol=1e-6)
        counts.append(times)
    assert 0 < np.count_nonzero(counts) < 12
    # All of one shape: compiled once.
    assert run.answer.compiled() == 1


def test_a_task_that_no_rate_helps_is_answered_without_adaptation(trained):
    _, run = trained
    episode = jax.device_get(sample(jax.random.key(0)))
    task = (1e4 * episode.support.x, episode.support.y, episode.query.x)
    told = adapt_and_predict(run, *task)
    assert told.unadapted
    np.testing.assert_array_equal(told.predictions, told.predictions_before)
    assert set(told.arrays()) == {"predictions", "predictions_before"}
    huge = np.full_like(episode.support.x, 1e300)
    with pytest.raises(InputError, match="left the finite numbers: check the support set"):
        adapt_and_predict(run, huge, *task[1:])
    with pytest.raises(InputError, match="left the finite numbers"):
        adapt_and_predict(run, *task, steps=60, halvings=0)
    rates = jnp.asarray([0.1, 0.4, 0.1])  # as learned: one for each weight, and 0.1 for the bias
    alpha = jax.tree.map(lambda leaf: rates[: leaf.size].reshape(leaf.shape), run.params)
    many = dataclasses.replace(run, alpha=alpha)
    with pytest.raises(InputError, match=r"adapting at alpha = 0\.141 left the finite numbers"):
        adapt_and_predict(many, huge, *task[1:])


def test_validation_says_how_many_tasks_were_mended(trained):
    folder, _ = trained
    rows = [row["validation"] for row in read_jsonl(folder.metrics) if "validation" in row]
    assert 0 < rows[-1]["halved"] < 30


def test_a_sweep_judges_its_cells_the_same_way():
    config = TrainConfig(
        **OPTIONS, steps=STEPS, schedule="constant", optimizer="adam", iterations=5
    )
    task_set = load_tasks(config)
    learner = build_learner(config, task_set.description, 0.01, 1e-2)
    cells = {"alphas": [1e-3, 0.5], "meta_lrs": [1e-3], "milestones": [1]}
    mended = sweep(learner, task_set.splits, **cells, test_tasks=50)
    plain = sweep(learner, task_set.splits, **cells, test_tasks=50, halvings=0)
    assert mended.halved[0, 0, 0, 0] == 0
    assert mended.halved[0, 1, 0, 0] > 0.5
    assert (plain.halved == 0).all()
    assert mended.test_loss[0, 0, 0, 0] == pytest.approx(plain.test_loss[0, 0, 0, 0], rel=1e-9)
    assert mended.test_loss[0, 1, 0, 0] < plain.test_loss[0, 1, 0, 0]
