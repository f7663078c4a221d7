"""Finn and Raghu: the sinusoid's curves against expectations worked out by hand, and the verdicts on both papers."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reduced_runs import check_records, read_back, reduced_run, verdicts_of

from metastep import experiments
from metastep.experiments import finn_sinusoid
from metastep.experiments.core import Report

# --- Finn


def test_finn_curves_of_a_dead_network_are_those_worked_out_by_hand(monkeypatch):
    """With every parameter 0 only the output bias adapts, to c times the support mean, c = 1 - (1 - 2 alpha)^n.

    The squared error is then S - 2 c M + c^2 (M + (S - M) / K): S = E y^2, M = E (mean of a task)^2.
    """
    sizes = {"steps": 2, "test_tasks": 3000, "test_queries": 30, "iterations": 1, "shots": (5, 10)}
    config = dataclasses.replace(
        experiments.load("finn-sinusoid").quick, **sizes, pretrained_alphas=(0.3,), alpha=0.1
    )

    def dead(learner, *_: Any):
        return jax.tree.map(jnp.zeros_like, learner.model.init(jax.random.key(0)))

    monkeypatch.setattr(finn_sinusoid, "train", dead)
    with jax.enable_x64(False):
        records = finn_sinusoid.run(config, 0, Report())
    square = (5**3 - 0.1**3) / (3 * 4.9)  # E amplitude^2
    total, mean = square / 2, square / 2 * (math.sin(5) / 5) ** 2
    for shots, curves in records["curves"].items():
        for name, alpha in (("maml", 0.1), ("pretrained", 0.3)):
            share = 1 - (1 - 2 * alpha) ** np.arange(3)
            truth = total - 2 * share * mean + share**2 * (mean + (total - mean) / int(shots))
            width = np.array(curves[name]["ci95"]) / 1.96
            assert np.all(np.abs(np.array(curves[name]["mean"]) - truth) < 4.5 * width)
    oracle = records["oracle"]
    assert abs(oracle["mean"] - total) < 4.5 * oracle["ci95"] / 1.96
    records = read_back(records)
    check_records("finn-sinusoid", records)
    assert len(verdicts_of("finn-sinusoid", records)) == 7


def test_finn_errors_are_means_over_trainings_of_the_same_tasks(monkeypatch):
    sizes = {"steps": 2, "test_tasks": 50, "iterations": 1, "shots": (5,)}
    config = dataclasses.replace(
        experiments.load("finn-sinusoid").quick, **sizes, pretrained_alphas=(0.01,)
    )

    def records(*shares: float) -> dict:
        given = iter(np.repeat(shares, 3))  # three models in each training

        def trained(learner, *_: Any):
            share = next(given)
            start = learner.model.init(jax.random.key(0))
            return jax.tree.map(lambda leaf: share * leaf, start)

        monkeypatch.setattr(finn_sinusoid, "train", trained)
        each = dataclasses.replace(config, trainings=len(shares))
        return finn_sinusoid.run(each, 0, Report())

    one, other, both = records(0.5), records(1.5), records(0.5, 1.5)
    for name in ("maml", "pretrained"):
        means = [np.array(found["curves"]["5"][name]["mean"]) for found in (one, other, both)]
        np.testing.assert_allclose(means[2], (means[0] + means[1]) / 2, rtol=1e-6)
        assert not np.allclose(means[0], means[1])
    levels = [found["oracle"]["mean"] for found in (one, other, both)]
    assert levels[2] == pytest.approx((levels[0] + levels[1]) / 2, rel=1e-6)


def test_finn_verdicts_follow_the_curves():
    def verdicts(maml: list[float | None], other: list[float], oracle: float) -> list[str]:
        width = [0.1] * 3
        curves = {
            "maml": {"mean": maml, "ci95": width, "median": [1.0] * 3},
            "pretrained": {"mean": other, "ci95": width},
            "pretrained_alpha": 0.01,
        }  # fmt: skip
        records = {"curves": {"5": curves}, "oracle": {"mean": oracle, "ci95": 0.1}}
        return verdicts_of("finn-sinusoid", records)

    assert verdicts([3.0, 1.0, 0.8], [3.0, 2.5, 2.0], 0.1) == ["holds"] * 4
    assert verdicts([3.0, 2.45, 2.9], [3.0, 2.5, 2.4], 2.5) == ["does not hold"] * 4
    # A task on which MAML diverges, None in a file, ends its improvement and nothing else.
    diverged = verdicts([3.0, 1.0, None], [3.0, 2.5, 2.0], 0.1)
    assert diverged == ["holds", "does not hold", "holds", "holds"]


# --- Raghu, ANIL


@pytest.mark.slow
@pytest.mark.omniglot
def test_omniglot_miniature_runs_and_claims_nothing_it_cannot_tell(omniglot_root):
    records = reduced_run("anil-omniglot", str(omniglot_root))
    check_records("anil-omniglot", records)
    assert "not tested" in verdicts_of("anil-omniglot", records)


def test_anil_verdicts_follow_accuracy_and_time():
    def verdicts(maml: float, anil: float, seconds: tuple[float, float]) -> list[str]:
        def curve(accuracy: float) -> dict:
            return {"iteration": [9], "accuracy": [accuracy], "ci95": [0.01]}

        records = {
            "ways": 20, "iterations": 900,
            "maml": {"curve": curve(maml), "seconds_per_step": seconds[0]},
            "anil": {"curve": curve(anil), "seconds_per_step": seconds[1]},
        }  # fmt: skip
        return verdicts_of("anil-omniglot", records)

    assert verdicts(0.95, 0.94, (2.0, 1.0)) == ["holds", "holds"]
    assert verdicts(0.96, 0.94, (1.0, 2.0)) == ["does not hold", "does not hold"]
    assert verdicts(0.95, 0.8, (2.0, 1.0))[0] == "not tested"
