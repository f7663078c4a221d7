"""Rehearsals: the climb over rates, and that the rate chosen is the one whose short training went best."""

import math

import numpy as np
import pytest

from metastep.train import TrainConfig, choose_rates, load_tasks
from metastep.train.config import fill_defaults
from metastep.train.rehearse import best, climb, rehearsal_length, rehearse


def valley(centre: float):
    """A loss of the rate with its minimum at `centre`, and infinite above a hundred times that."""
    return lambda rate: math.inf if rate > 100 * centre else 1 + math.log(rate / centre) ** 2


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
    losses = climb(valley(centre), 1.0)
    np.testing.assert_allclose(list(losses), tried)
    assert best(losses) == pytest.approx(chosen)


def test_a_rate_that_diverges_loses_to_any_that_does_not():
    assert best({1.0: math.inf, 3.0: math.inf, 1 / 3: 7.0}) == 1 / 3


def test_noise_of_less_than_a_per_cent_moves_nothing():
    assert best({1.0: 1.0, 3.0: 0.995, 1 / 3: 1.2}) == 1.0


def config(**changes) -> TrainConfig:
    options = {
        "tasks": "sinusoid", "hidden": (8,), "shots": 4, "tasks_per_step": 3, "iterations": 200,
    }  # fmt: skip
    made = TrainConfig(**(options | changes))
    return fill_defaults(made, load_tasks(made).description, "mlp")


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 20),
        ({"iterations": 10_000}, 100),
        ({"iterations": 60_000}, 200),
        ({"iterations": 199}, 0),
        ({"alpha": 0.1}, 0),
        ({"rehearse": False}, 0),
        ({"rate": "label-free"}, 0),
        ({"algorithm": "erm"}, 0),
    ],
)
def test_only_runs_that_ask_for_a_rate_and_last_are_rehearsed(changes, steps):
    assert rehearsal_length(config(**changes)) == steps


def test_a_rate_far_too_high_is_found_out_and_the_rehearsals_can_be_repeated():
    options = config()
    tasks = load_tasks(options)
    rows = rehearse(options, tasks, 30.0, 3e-2)
    assert [row["alpha"] for row in rows] == pytest.approx([30, 10, 10 / 3, 10 / 9])
    assert rows == rehearse(options, tasks, 30.0, 3e-2)
    assert (
        rows[-1]["loss"] < rows[0]["loss"]
    )  # 30 explodes: the curvature of a sinusoid's loss is far above 1


def test_the_record_says_what_was_tried_and_takes_the_best():
    options = config()
    record = choose_rates(options, load_tasks(options))
    losses = {row["alpha"]: row["loss"] for row in record["rehearsals"]}
    assert record["alpha_chosen"] == best(losses)
    assert next(iter(losses)) == pytest.approx(record["alpha"])
    assert "short trainings (20 meta-steps each)" in record["alpha_reason"]
