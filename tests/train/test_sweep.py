"""A sweep is the same as training each cell on its own, and a cell that diverges leaves the others alone."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._errors import InputError
from metastep.rates import FixedRate
from metastep.train import (
    TaskConfig,
    TrainConfig,
    advance,
    build_learner,
    initial_state,
    load_tasks,
    sweep,
    sweep_over_processes,
)
from metastep.train.loop import Pace

CONFIG = TrainConfig(
    tasks="sinusoid", hidden=(8,), shots=4, tasks_per_step=3, steps=1, optimizer="adam",
    rate="fixed", schedule="linear",
)  # fmt: skip
TASKS = load_tasks(TaskConfig(tasks="sinusoid", shots=4))


def learner():
    return build_learner(CONFIG, TASKS.description, 0.01, 1e-3)


@pytest.mark.parametrize("width", [None, 1, 3])
def test_every_cell_is_a_training_of_its_own(width):
    result = sweep(
        learner(), TASKS.splits, [0.003, 0.05], [1e-3, 1e-2], [0, 7], milestones=[5, 12],
        test_tasks=4, cells_at_once=width,
    )  # fmt: skip
    assert result.test_loss.shape == result.train_loss.shape == (2, 2, 2, 2)
    alone = dataclasses.replace(learner(), rate=FixedRate(0.05))
    key = jax.random.split(jax.random.key(7), 3)
    state = initial_state(alone, key[0], 12)
    state = dataclasses.replace(state, meta_lr=jnp.asarray(1e-2))
    state = advance(alone, TASKS.splits.train, key[1], state, jnp.asarray(12))
    episodes = jax.vmap(TASKS.splits.test.sample)(jax.random.split(key[2], 4))
    losses = jax.vmap(lambda e: alone.query_loss(state.meta.params, e, jnp.asarray(0.05)))(episodes)
    np.testing.assert_allclose(result.test_loss[1, 1, 1, 1], losses.mean(), rtol=1e-9)
    np.testing.assert_allclose(result.alpha[1, 1], 0.05)


def test_a_cell_that_diverges_is_infinite_and_alone():
    calm = sweep(learner(), TASKS.splits, [0.01], [1e-3], milestones=[6], test_tasks=4)
    both = sweep(learner(), TASKS.splits, [0.01, 1e20], [1e-3], milestones=[6], test_tasks=4)
    assert both.diverged_at[:, 0, 0].tolist() == [0, 1]
    assert np.isinf(both.test_loss[0, 1, 0, 0])
    np.testing.assert_allclose(both.test_loss[0, 0], calm.test_loss[0, 0], rtol=1e-12)


def test_a_rate_of_its_own_mind_is_left_to_itself():
    config = dataclasses.replace(CONFIG, rate="learned")
    own = build_learner(config, TASKS.description, 0.01, 1e-2)
    result = sweep(own, TASKS.splits, None, [1e-2], milestones=[10], test_tasks=4)
    assert np.isnan(result.alphas[0])
    assert result.alpha[0, 0, 0, 0] != pytest.approx(0.01, rel=1e-6)


def test_without_held_out_tasks_only_training_is_judged(monkeypatch):
    # Any use of it would fail.
    monkeypatch.setattr(sys.modules[sweep.__module__], "compile_judge", None)
    result = sweep(learner(), TASKS.splits, [0.01], [1e-3], milestones=[6], test_tasks=0)
    assert np.isfinite(result.train_loss).all()
    assert np.isinf(result.test_loss).all()


class Killed(Exception):
    """In place of a signal."""


def test_a_killed_sweep_goes_on_and_ends_with_the_same_numbers(tmp_path, monkeypatch):
    # Before a milestone's window opens, in it, at the milestone, after it, and at the end; saved after each step.
    monkeypatch.setattr(sys.modules[sweep.__module__], "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(sys.modules[Pace.__module__], "_DISPATCH_SECONDS", 1e-9)
    kills, seen = [1, 6, 8, 9, 11, 15], []

    def run(keep, progress=lambda done, total: None):
        return sweep(
            learner(), TASKS.splits, [0.003, 1e20], [1e-3], [0, 7], milestones=[4, 9, 15],
            test_tasks=4, window=3, keep=keep, progress=progress,
        )  # fmt: skip

    def kill(done, total):
        seen.append(done)
        if kills and done == kills[0]:
            raise Killed

    straight = run(None)
    while kills:
        with pytest.raises(Killed):
            run(tmp_path / "kept", kill)
        kills.pop(0)
    resumed = run(tmp_path / "kept", kill)
    assert seen == list(range(1, 16))
    for field in dataclasses.fields(straight):
        if field.name != "seconds":
            ours, theirs = getattr(resumed, field.name), getattr(straight, field.name)
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)


def test_a_kept_sweep_of_rates_of_their_own_mind_is_known_again(tmp_path):
    def run():
        return sweep(
            learner(), TASKS.splits, None, [1e-3], milestones=[2], test_tasks=0, keep=tmp_path
        )

    np.testing.assert_array_equal(run().train_loss, run().train_loss)


def test_another_sweep_is_not_gone_on_with(tmp_path):
    def run(alphas):
        sweep(learner(), TASKS.splits, alphas, [1e-3], milestones=[2], test_tasks=0, keep=tmp_path)

    run([0.01])
    with pytest.raises(InputError, match="keeps an unfinished sweep of other rates"):
        run([0.02])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([-1.0], [1e-3], [0], [5]), "alphas"),
        (([0.1], [0.0], [0], [5]), "meta_lrs"),
        (([0.1], [1e-3], [0], [5, 5]), "milestones must increase, but are"),
        (([0.1], [], [0], [5]), "needs at least one adaptation rate, one meta rate and one seed"),
    ],
)
def test_impossible_sweeps_are_refused(arguments, message):
    alphas, meta_lrs, seeds, milestones = arguments
    with pytest.raises(InputError, match=message):
        sweep(learner(), TASKS.splits, alphas, meta_lrs, seeds, milestones=milestones)


@pytest.mark.parametrize("longest", ["alphas", "meta_lrs", "seeds"])
def test_processes_find_what_one_does(tmp_path, longest):
    axes = {"alphas": [0.02], "meta_lrs": [1e-3], "seeds": [3]}
    axes[longest] = {"alphas": [0.003, 0.05], "meta_lrs": [1e-3, 1e-2], "seeds": [0, 7]}[longest]
    options = {"milestones": [3, 6], "test_tasks": 4, "cells_at_once": 1}
    seen = []
    found = sweep_over_processes(
        learner(), TASKS.splits, **axes, **options, processes=2, keep=tmp_path,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 2), (2, 2)]
    alone = sweep(learner(), TASKS.splits, **axes, **options)
    for field in dataclasses.fields(alone):
        if field.name != "seconds":
            ours, theirs = getattr(found, field.name), getattr(alone, field.name)
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)


def test_mistakes_in_another_process_are_told_as_in_this_one():
    with pytest.raises(InputError, match="meta_lrs"):
        sweep_over_processes(
            learner(), TASKS.splits, [0.1, 0.2], [0.0], milestones=[2], processes=2
        )
    with pytest.raises(InputError, match="processes is 0"):
        sweep_over_processes(learner(), TASKS.splits, [0.1], [0.1], milestones=[2], processes=0)
