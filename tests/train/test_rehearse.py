"""Rehearsals: the climb over rates, and that the rate chosen is the one whose short training went best."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.special

from metastep.train import TrainConfig, choose_rates, load_tasks
from metastep.train.build import build_learner
from metastep.train.config import fill_defaults
from metastep.train.problem import split_keys
from metastep.train.rehearse import (
    clearly_better,
    climb,
    rehearsal,
    rehearsal_length,
    rehearse,
    student_quantile,
)
from metastep.train.state import Window, initial_state
from metastep.train.step import compile_advance

NOISE = np.exp(np.random.default_rng(0).normal(size=6))  # of the tasks, which all rates see alike


def valley(centre: float):
    """Losses of a rate with their minimum at `centre`, and infinite above a hundred times that."""
    return lambda rate: (
        np.full(6, math.inf) if rate > 100 * centre else NOISE * (1 + math.log(rate / centre) ** 2)
    )


@pytest.mark.parametrize(
    ("centre", "tried", "chosen"),
    [
        (1.0, [1, 3, 1 / 3], 1.0),
        (9.0, [1, 3, 9, 27], 9.0),
        (1e6, [1, 3, 9, 27], 27.0),
        (1 / 9, [1, 3, 1 / 3, 1 / 9], 1 / 9),
        (1e-3, [1, 1 / 3, 1 / 9, 1 / 27], 1 / 27),
        (1e-9, [1, 1 / 3, 1 / 9, 1 / 27], 1),
    ],
)
def test_the_climb_goes_on_while_it_gets_better(centre, tried, chosen):
    found = climb(valley(centre), 1.0)
    np.testing.assert_allclose(list(found.tried), tried)
    assert found.chosen == pytest.approx(chosen)


def test_a_rate_that_diverges_loses_to_any_that_does_not():
    diverged = np.full(6, math.inf)
    assert clearly_better(NOISE, diverged)
    assert not clearly_better(diverged, NOISE)
    assert not clearly_better(diverged, diverged)


def test_less_than_a_per_cent_moves_nothing_and_more_does():
    assert not clearly_better(0.995 * NOISE, NOISE)
    assert clearly_better(0.985 * NOISE, NOISE)


def test_one_hard_task_does_not_decide():
    # The mean over meta-steps falls fourfold, but five of six meta-steps got worse.
    others = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 100.0])
    losses = np.array([1.2, 1.2, 1.2, 1.2, 1.2, 20.0])
    assert losses.mean() < others.mean() / 4
    assert not clearly_better(losses, others)


def test_noise_alone_is_mistaken_for_progress_as_often_as_stated():
    # Level 0.05, less for the margin of 1 %; 1,000 draws: more than 75 would come up once in 4,000 suites.
    rng = np.random.default_rng(1)
    wins = sum(clearly_better(*np.exp(rng.normal(size=(2, 7)))) for _ in range(1_000))
    assert wins <= 75


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 6, 32, 65])
@pytest.mark.parametrize("level", [0.5, 0.75, 0.95, 0.999])
def test_the_quantile_of_students_t_is_that_of_scipy(level, degrees):
    expected = scipy.special.stdtrit(degrees, level)
    assert student_quantile(level, degrees) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_one_meta_step_has_no_scatter_to_judge_by():
    assert math.isnan(student_quantile(0.95, 0))


def config(**changes) -> TrainConfig:
    options = {
        "tasks": "sinusoid", "hidden": (8,), "shots": 4, "tasks_per_step": 3, "iterations": 2_000,
    }  # fmt: skip
    made = TrainConfig(**(options | changes))
    return fill_defaults(made, load_tasks(made).description, "mlp")


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 20),
        ({"iterations": 10_000}, 100),
        ({"iterations": 60_000}, 200),
        ({"iterations": 2_900}, 29),  # 0.01 * 2,900 is less than 29
        ({"iterations": 1_999}, 0),
        ({"rate": "fixed"}, 20),
        ({"alpha": 0.1}, 0),
        ({"rehearse": False}, 0),
        ({"rate": "label-free"}, 0),
        ({"algorithm": "erm"}, 0),
    ],
)
def test_only_runs_that_ask_for_a_rate_and_last_are_rehearsed(changes, steps):
    assert rehearsal_length(config(**changes)) == steps


@pytest.mark.parametrize("iterations", [1, 500, 1_999, 2_000, 7_777, 60_000])
def test_all_rehearsals_together_cost_at_most_4_per_cent_of_a_run(iterations):
    assert 4 * rehearsal_length(config(iterations=iterations)) <= 0.04 * iterations


def test_a_rate_far_too_high_is_found_out_and_the_rehearsals_can_be_repeated():
    options = config()
    tasks = load_tasks(options)
    found = rehearse(options, tasks, 30.0, 3e-2)
    rows = found.rows()
    assert [row["alpha"] for row in rows] == pytest.approx([30, 10, 10 / 3, 10 / 9])
    assert rows == rehearse(options, tasks, 30.0, 3e-2).rows()
    # 30 explodes: the curvature of a sinusoid's loss is far above 1.
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert found.chosen == rows[-1]["alpha"]


def test_what_is_judged_are_the_losses_of_the_last_third_step_by_step():
    # The longest rehearsal judges 66 meta-steps, more than the rows of one dispatch; a run row by row is the oracle.
    options, steps = config(iterations=20_000), 200
    tasks, keys = load_tasks(options), split_keys(options.seed)
    losses = rehearsal(options, tasks, 0.03, 3e-2, steps)(0.03)
    learner = build_learner(options, tasks.description, 0.03, 3e-2)
    advance, state = compile_advance(learner), initial_state(learner, keys["parameters"], steps)
    expected = []
    for until in range(1, steps + 1):
        state = advance(tasks.splits.train, keys["rates"], state, until)
        expected.append(float(state.window.loss))
        state = dataclasses.replace(state, window=Window.empty())
    assert losses.tolist() == expected[-66:]


def test_the_record_says_what_was_tried_and_what_was_taken():
    options = config()
    record = choose_rates(options, load_tasks(options))
    tried = [row["alpha"] for row in record["rehearsals"]]
    assert tried[0] == pytest.approx(max(record["alpha"], record["support_alpha"]))
    assert record["alpha_chosen"] in tried
    assert "short trainings (20 meta-steps each)" in record["alpha_reason"]


def test_each_rehearsal_is_announced_as_it_ends():
    options, heard = config(), []
    found = rehearse(
        options,
        load_tasks(options),
        0.03,
        3e-2,
        lambda stage, record: heard.append((stage, record)),
    )
    assert {stage for stage, _ in heard} == {"rehearsal"}
    records = [record for _, record in heard]
    assert [{k: r[k] for k in ("alpha", "loss")} for r in records] == found.rows()
    assert [r["number"] for r in records] == list(range(1, len(records) + 1))
    assert {(r["most"], r["meta_steps"]) for r in records} == {(4, 20)}
