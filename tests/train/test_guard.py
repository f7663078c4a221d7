"""The guard: a failed meta-step is undone and blamed on the right loop and task; the run goes on at half the rate."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._errors import DivergenceError
from metastep._records import read_jsonl
from metastep._types import Batch, Episode
from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact
from metastep.models import Model, Objective
from metastep.rates import FixedRate, LearnedRate, make_optimizer
from metastep.tasks import AbstractTaskFamily
from metastep.train import Learner, RunFolder, TrainConfig, advance, initial_state, train
from metastep.train.guard import incident_rows
from metastep.train.state import HEALTHY, INNER_LOOP, OUTER_LOOP


class Valley(AbstractTaskFamily):
    """Scalar quadratics 1/2 x (w - y)^2 of curvature x; every `period`-th task draws the curvature `steep`."""

    steep: float = eqx.field(static=True, default=1.0)
    kind = "regression"
    input_shape = (1,)
    output_size = 1

    def sample(self, key):
        target = jax.random.normal(key, (4, 1))
        batch = Batch(jnp.full((4, 1), jnp.sqrt(self.steep)), jnp.sqrt(self.steep) * target)
        return Episode(batch, batch)


def learner_of(rate, *, meta_lr=0.1, back_offs=10, tasks=3) -> Learner:
    model = Model(init=lambda key: jnp.ones((1, 1)), apply=lambda w, x: x @ w)
    return Learner(
        model=model,
        objective=Objective.of(model.apply, "regression"),
        adapter=GradientAdapter(1),
        meta_gradient=Exact(),
        rate=rate,
        optimizer=make_optimizer("sgd", meta_lr),
        tasks_per_step=tasks,
        back_offs=back_offs,
    )


def run(learner: Learner, family, steps: int):
    state = initial_state(learner, jax.random.key(0), steps)
    return jax.jit(lambda s: advance(learner, family, jax.random.key(1), s, jnp.asarray(steps)))(
        state
    )


@pytest.mark.parametrize("make", [FixedRate, LearnedRate, lambda a: LearnedRate(a, "parameter")])
def test_an_inner_loop_that_explodes_is_halved_until_it_holds(make):
    # Loss (w - y)^2 of curvature 2: after one step the error is |1 - 2 alpha| times what it was, its square
    # 4 alpha^2 times the loss. 1e4 times the first loss is passed above alpha = 50, so 400 -> 200 -> 100 -> 50.
    state = run(learner_of(make(400.0), meta_lr=1e-12), Valley(), 40)
    rows = incident_rows(state)
    assert [row["loop"] for row in rows] == ["inner"] * len(rows)
    np.testing.assert_allclose([row["alpha"] for row in rows], 400 * 0.5 ** np.arange(len(rows)))
    assert (
        3 <= len(rows) <= 5
    )  # losses of tasks differ, so the last halving is a matter of the draw
    assert int(state.failure) == HEALTHY
    assert int(state.iteration) == 40
    assert bool(jnp.isfinite(state.meta.params).all())


def test_the_meta_rate_is_halved_when_the_outer_loop_explodes():
    # alpha = 0.25 makes the meta-loss 1/4 (w - y)^2, curvature 1/2: SGD is stable below a meta rate of 4.
    state = run(learner_of(FixedRate(0.25), meta_lr=30.0), Valley(), 400)
    rows = incident_rows(state)
    assert {row["loop"] for row in rows} == {"outer"}
    assert float(state.meta_lr) == 30.0 * 0.5 ** len(rows)
    assert len(rows) == 3  # 30 -> 15 -> 7.5 -> 3.75
    assert int(state.failure) == HEALTHY
    assert abs(float(state.meta.params[0, 0])) < 20


@pytest.mark.parametrize(("allowed", "expected"), [(0, 0), (2, 2)])
def test_back_offs_are_bounded(allowed, expected):
    state = run(learner_of(FixedRate(1e20), back_offs=allowed), Valley(), 30)
    assert int(state.failure) == INNER_LOOP
    assert int(state.incidents.count) == expected
    assert int(state.iteration) == expected


def test_the_worst_task_is_named():
    class OneBad(Valley):
        def sample(self, key):
            episode = super().sample(key)
            # Exactly the task whose key is that of index 2 in the first meta-step.
            first = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 3)[2]
            bad = jnp.all(jax.random.key_data(key) == jax.random.key_data(first))
            scaled = jnp.where(bad, 1e30, 1.0) * episode.support.y
            return dataclasses.replace(episode, query=Batch(episode.query.x, scaled))

    state = run(learner_of(FixedRate(0.1)), OneBad(), 5)
    rows = incident_rows(state)
    assert [row["task"] for row in rows] == [2]
    assert rows[0]["iteration"] == 1


def test_a_failure_of_the_unadapted_loss_is_the_outer_loops():
    learner = learner_of(FixedRate(0.1), back_offs=0, meta_lr=1e30)
    assert int(run(learner, Valley(), 30).failure) == OUTER_LOOP


def test_a_run_reports_what_it_did_and_finishes(tmp_path):
    config = TrainConfig(
        tasks="sinusoid", hidden=(8,), shots=4, tasks_per_step=3, iterations=30, log_every=10,
        eval_every=30, eval_tasks=4, alpha=30.0,
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    result = train(config, folder)
    assert result.status == "finished"
    incidents = [row["incident"] for row in read_jsonl(folder.metrics) if "incident" in row]
    assert incidents
    assert incidents[0]["loop"] == "inner"
    assert incidents[0]["action"] == "went back to the last good state and halved alpha"
    with pytest.raises(DivergenceError, match="after 1 back-offs: the inner loop"):
        train(dataclasses.replace(config, alpha=1e30, back_offs=1), RunFolder(tmp_path / "stopped"))
