"""No task owns a meta-step: the usual length, lone failures, and runs that go on in spite of them."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._errors import InputError
from metastep._records import read_jsonl
from metastep._types import Batch, Episode
from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact, TaskOutcome
from metastep.models import Model, Objective
from metastep.rates import FixedRate, make_optimizer
from metastep.report.folder import read_run
from metastep.report.html import render_report
from metastep.tasks import AbstractTaskFamily
from metastep.train import (
    Learner,
    RunFolder,
    TrainConfig,
    advance,
    bounds,
    initial_state,
    train,
)
from metastep.train.bounds import longest, usual_length, without_lone_failures
from metastep.train.config import check_config, fill_defaults
from metastep.train.state import HEALTHY, INNER_LOOP

DESCRIPTION = {"kind": "regression", "images": False, "table": False}


def array(*values):
    return jnp.asarray(values, float)


@pytest.mark.parametrize(
    ("before", "lengths", "expected"),
    [
        (np.inf, (1.0, 2.0, 30.0), 2.0),  # the first meta-step
        (2.0, (8.0, 8.0, 8.0), 2.0**0.9 * 8.0**0.1),
        (2.0, (8.0, np.inf, 8.0), 2.0**0.9 * 8.0**0.1),  # a task that blew up is a long one
        (2.0, (np.inf, np.inf, 1.0), 2.0),  # too many did: nothing to learn from
        (2.0, (0.0, 0.0, 1.0), 2.0),  # no gradient: no bound of 0 that nothing would ever pass
        (np.inf, (0.0, 0.0, 0.0), np.inf),
    ],
)
def test_usual_length(before, lengths, expected):
    found = usual_length(array(before)[0], array(*lengths), jnp.asarray(2))
    assert float(found) == pytest.approx(expected)


def test_the_usual_length_falls_no_faster_than_the_root_of_the_meta_steps():
    usual = array(np.inf)[0]
    for number, now in enumerate([4.0, *[1e-12] * 99]):
        usual = usual_length(usual, array(now, now, now), jnp.asarray(number))
    assert float(usual) == pytest.approx(4.0 / 10)
    # Slower than that, it follows: 100 meta-steps on, the running mean of logarithms has forgotten.
    for number in range(100, 200):
        usual = usual_length(usual, array(0.35, 0.35, 0.35), jnp.asarray(number))
    assert float(usual) == pytest.approx(0.35, rel=1e-4)


def test_the_bound_grows_with_the_fourth_root_of_the_meta_steps():
    usual = array(0.5)[0]
    found = [float(longest(3.0, usual, jnp.asarray(n))) for n in (0, 15, 80)]
    assert found == pytest.approx([1.5, 3.0, 4.5])
    assert np.isinf(longest(3.0, array(np.inf)[0], jnp.asarray(0)))
    assert longest(None, usual, jnp.asarray(0)) is None


def test_a_task_may_have_blown_up_before_it_adapted():
    before = np.ones(20)
    before[3] = 1e9
    given = dataclasses.replace(outcomes(np.ones(20), np.ones(20)), loss_before=array(*before))
    found, count = without_lone_failures(given, array(1e6)[0])
    assert int(count) == 1
    np.testing.assert_array_equal(found.loss_before, 1)


def outcomes(losses, lengths) -> TaskOutcome:
    return TaskOutcome(array(*losses), array(*losses) + 1, array(*losses) / 2, array(*lengths))


@pytest.mark.parametrize("bad", [(np.inf, np.inf), (np.nan, np.inf), (1e9, 5.0), (3.0, np.inf)])
def test_a_lone_failure_counts_as_the_mean_of_the_others(bad):
    losses, lengths = np.arange(20.0), np.ones(20)
    losses[7], lengths[7] = bad
    found, count = without_lone_failures(outcomes(losses, lengths), array(1e6)[0])
    others = np.delete(np.arange(20.0), 7)
    assert int(count) == 1
    assert float(found.loss[7]) == pytest.approx(others.mean())
    assert float(jnp.mean(found.loss)) == pytest.approx(others.mean())
    assert float(found.metric[7]) == pytest.approx(others.mean() / 2)
    assert float(found.loss_before[7]) == pytest.approx(others.mean() + 1)
    np.testing.assert_array_equal(np.delete(found.loss, 7), others)


@pytest.mark.parametrize(("tasks", "failed"), [(20, 3), (9, 1), (20, 0), (5, 5)])
def test_more_than_a_tenth_is_no_lone_failure(tasks, failed):
    losses, lengths = np.arange(float(tasks)), np.ones(tasks)
    losses[:failed], lengths[:failed] = np.inf, np.inf
    found, count = without_lone_failures(outcomes(losses, lengths), array(1e6)[0])
    assert int(count) == 0
    np.testing.assert_array_equal(found.loss, losses)


def test_losses_without_a_gradient_are_the_guards_to_see():
    lengths = np.where(np.arange(20) < 5, np.inf, 1.0)
    found, count = without_lone_failures(outcomes(np.ones(20), lengths), array(1e6)[0])
    assert int(count) == 0
    np.testing.assert_array_equal(found.loss, np.where(np.arange(20) < 5, np.inf, 1.0))


class Lottery(AbstractTaskFamily):
    """Scalar quadratics, of which every eightieth or so is a thousand times as steep."""

    steep: float = eqx.field(static=True, default=1e3)
    kind = "regression"
    input_shape = (1,)
    output_size = 1

    def sample(self, key):
        drawn, targets = jax.random.split(key)
        scale = jnp.where(jax.random.uniform(drawn) < 1 / 80, self.steep, 1.0)
        x = jnp.full((4, 1), jnp.sqrt(scale))
        batch = Batch(x, x * jax.random.normal(targets, (4, 1)))
        return Episode(batch, batch)


def learner_of(clip, steps=12) -> Learner:
    model = Model(init=lambda key: jnp.ones((1, 1)), apply=lambda w, x: x @ w)
    return Learner(
        model=model,
        objective=Objective.of(model.apply, "regression"),
        adapter=GradientAdapter(steps),
        meta_gradient=Exact(),
        rate=FixedRate(0.25),
        optimizer=make_optimizer("sgd", 0.1),
        tasks_per_step=20,
        clip_tasks=clip,
    )


def run(learner: Learner, family, steps: int):
    state = initial_state(learner, jax.random.key(0), steps)
    return jax.jit(lambda s: advance(learner, family, jax.random.key(1), s, jnp.asarray(steps)))(
        state
    )


def test_a_task_over_the_edge_is_left_out_and_the_rates_stay():
    # At alpha = 0.25 and curvature 2 the error halves at each step; at 2,000 it grows 499-fold, twelve times over.
    state = run(learner_of(3.0), Lottery(), 100)
    assert int(state.failure) == HEALTHY
    assert int(state.incidents.count) == 0
    assert 10 <= int(state.window.left_out) <= 50  # 25 expected, of 2,000 tasks
    assert float(state.window.loss) / 100 < 1  # of the others
    without = run(learner_of(None), Lottery(), 100)
    assert int(without.incidents.count) > 5


def test_tasks_of_another_world_do_not_stop_a_run():
    # Finite, but too far off for any parameters: 1e8 times the loss of the others, adapted or not.
    state = run(learner_of(3.0, steps=1), Lottery(steep=1e8), 60)
    assert int(state.failure) == HEALTHY
    assert int(state.incidents.count) == 0
    assert int(state.window.left_out) > 5
    assert float(state.window.loss_before) / 60 < 5
    without = run(learner_of(None, steps=1), Lottery(steep=1e8), 60)
    assert int(without.failure) != HEALTHY or int(without.incidents.count) > 5


def test_a_model_without_gradients_stops_the_run():
    # Finite losses, but the derivative of a root at 0 is not: no parameter would ever move.
    def apply(w, x):
        return x @ w + jnp.sqrt(jnp.sum(jnp.square(w - w)))

    objective = Objective.of(apply, "regression")
    learner = dataclasses.replace(learner_of(3.0, steps=0), objective=objective, back_offs=3)
    state = run(learner, Lottery(steep=1.0), 20)
    assert int(state.failure) != HEALTHY
    assert int(state.incidents.count) == 3


def test_rates_too_high_for_all_are_still_the_guards():
    learner = dataclasses.replace(learner_of(3.0), rate=FixedRate(400.0), back_offs=0)
    state = run(learner, Lottery(steep=1.0), 5)
    assert int(state.failure) == INNER_LOOP
    assert int(state.iteration) == 0


def test_one_long_gradient_does_not_own_the_meta_step():
    # No inner steps, so all losses are finite. A meta-step in four has a task whose gradient is a thousand times that
    # of the others, and so fifty times their sum: the mean length is about 12 times what it is without such tasks.
    still = {"adapter": GradientAdapter(0), "optimizer": make_optimizer("sgd", 0.0)}
    cut, whole = (
        run(dataclasses.replace(learner_of(clip), **still), Lottery(), 100) for clip in (3.0, None)
    )
    assert int(cut.window.left_out) == 0
    assert float(whole.window.gradient_norm / cut.window.gradient_norm) > 5
    assert 1 < float(cut.usual_length) < 4  # 2 |1 - y|: 2 for the median task


class Solved(AbstractTaskFamily):
    """One parameter is right for eleven tasks of twelve once it is 0; the twelfth wants the other at 30."""

    kind = "regression"
    input_shape = (2,)
    output_size = 1

    def sample(self, key):
        unsolved = jax.random.uniform(key) < 1 / 12
        x = jnp.where(unsolved, jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]]))
        batch = Batch(x, jnp.where(unsolved, 30.0, 0.0)[None, None])
        return Episode(batch, batch)


@pytest.mark.parametrize(("fall", "moves"), [(bounds._FALL, True), (np.inf, False)])
def test_the_few_tasks_that_are_not_solved_yet_are_what_is_left_to_learn(fall, moves, monkeypatch):
    # The gradients of solved tasks shrink by a fifth at each meta-step. Measured by them alone (fall at infinity),
    # the others move their parameter as long as the running median remembers, and no more.
    monkeypatch.setattr(bounds, "_FALL", fall)
    model = Model(
        init=lambda key: jnp.ones((2, 1)) * jnp.array([[1.0], [0.0]]), apply=lambda w, x: x @ w
    )
    learner = dataclasses.replace(
        learner_of(3.0, steps=0), model=model, objective=Objective.of(model.apply, "regression")
    )
    params = run(learner, Solved(), 400).meta.params
    assert abs(float(params[0, 0])) < 1e-3
    assert (float(params[1, 0]) > 4) == moves
    assert float(params[1, 0]) < 2 or moves


def test_what_auto_stands_for():
    filled = fill_defaults(TrainConfig(tasks="sinusoid"), DESCRIPTION, "mlp")
    assert (filled.optimizer, filled.clip_tasks) == ("relative-adam", 3.0)
    given = fill_defaults(TrainConfig(tasks="sinusoid", meta_lr=0.01), DESCRIPTION, "mlp")
    assert (given.optimizer, given.clip_tasks) == ("adam", "off")
    kept = fill_defaults(TrainConfig(tasks="sinusoid", clip_tasks="off"), DESCRIPTION, "mlp")
    assert kept.clip_tasks == "off"
    adam = TrainConfig(tasks="sinusoid", meta_lr=0.01, clip_tasks=2.5)
    assert fill_defaults(adam, DESCRIPTION, "mlp").clip_tasks == 2.5


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "never"])
def test_a_bound_that_makes_no_sense_is_refused(value):
    with pytest.raises(InputError, match="--clip-tasks"):
        check_config(TrainConfig(tasks="sinusoid", clip_tasks=value))


def test_metrics_and_report_say_how_many_were_left_out(tmp_path):
    config = TrainConfig(
        tasks=Lottery(), model=learner_of(None).model, steps=12, alpha=0.25, clip_tasks=3.0,
        tasks_per_step=20, iterations=40, log_every=20, eval_every=40, eval_tasks=4,
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    train(config, folder)
    rows = [row for row in read_jsonl(folder.path / "metrics.jsonl") if "loss" in row]
    left_out = sum(row.get("left_out", 0) for row in rows)
    assert left_out > 0
    text = render_report(read_run(folder.path))
    assert f"{left_out} task(s) blew up by themselves" in text
