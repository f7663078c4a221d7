"""The edge of the meta rate while training: against dense Hessians, held where asked, and the same when resumed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax.tree_utils as otu
import pytest
from jax.flatten_util import ravel_pytree

from metastep._errors import InputError
from metastep._records import read_jsonl
from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact
from metastep.models import Objective, mlp
from metastep.rates import LearnedRate, make_optimizer
from metastep.tasks import Sinusoid, batch_of_episodes
from metastep.train import Learner, RunFolder, TrainConfig, initial_state, resume, train
from metastep.train.config import check_config
from metastep.train.sharpness import EdgeWatch, number_of_tasks

FAMILY = Sinusoid(shots=4, queries=4)


def underway(optimizer: str):
    """A learner, and a state as after three meta-steps: the optimiser has gathered second moments."""
    model = mlp((1,), 1, (3,))
    learner = Learner(
        model=model,
        objective=Objective.of(model.apply, "regression"),
        adapter=GradientAdapter(1),
        meta_gradient=Exact(),
        rate=LearnedRate(0.01, "parameter"),
        optimizer=make_optimizer(optimizer, 1e-3),
        tasks_per_step=5,
    )
    state = initial_state(learner, jax.random.key(0), 10)
    if optimizer == "sgd":
        return learner, state
    moments = jax.tree.map(
        lambda leaf: jax.random.uniform(
            jax.random.key(leaf.size), leaf.shape, leaf.dtype, 1e-6, 1e-4
        ),
        state.meta,
    )
    gathered = otu.tree_set(state.optimizer_state, nu=moments, count=jnp.asarray(3))
    return learner, dataclasses.replace(state, optimizer_state=gathered)


def dense(learner, state, key):
    """Hessian of the mean query loss in all that is learned, and the meta-gradient of each task."""
    flat, unravel = ravel_pytree(state.meta)
    episodes = jax.jit(lambda key: batch_of_episodes(FAMILY, key, number_of_tasks(learner)))(key)

    def of_task(vector, episode):
        meta = unravel(vector)
        alpha = jax.tree.map(jnp.exp, meta.rates)
        gradient = jax.grad(learner.objective.on(episode.support))(meta.params)
        adapted = jax.tree.map(lambda w, a, g: w - a * g, meta.params, alpha, gradient)
        return learner.objective(adapted, episode.query)

    @jax.jit
    def derivatives(flat):
        hessian = jax.hessian(lambda v: jnp.mean(jax.vmap(lambda e: of_task(v, e))(episodes)))
        return hessian(flat), jax.vmap(lambda e: jax.grad(of_task)(flat, e))(episodes)

    return map(np.asarray, derivatives(flat))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "normalised-adam", "relative-adam"])
def test_the_edge_is_that_of_the_preconditioned_hessian_of_everything_learned(optimizer):
    learner, state = underway(optimizer)
    key = jax.random.key(7)
    _, row = EdgeWatch(learner, FAMILY, optimizer, key, lanczos=20)(state)
    hessian, gradients = dense(learner, state, key)
    scale, factor = np.ones(len(hessian)), 2.0
    if optimizer != "sgd":
        [(_, nu)] = otu.tree_get_all_with_path(state.optimizer_state, "nu")
        second = np.asarray(ravel_pytree(nu)[0]) / (1 - 0.999**3)
        if optimizer != "adam":
            mean, square = gradients.mean(0), (gradients**2).mean(0)
            n = len(gradients)
            second = second * (mean**2 + (square - mean**2) * (1 / 5 - 1 / n) * n / (n - 1)).sum()
        scale, factor = np.sqrt(second) + 1e-8, 38.0
    if optimizer == "relative-adam":
        [(_, sizes)] = otu.tree_get_all_with_path(state.optimizer_state, "sizes")
        every = jax.tree.map(lambda size, leaf: jnp.full_like(leaf, size), sizes, state.meta)
        scale = scale / np.asarray(ravel_pytree(every)[0])
    largest = np.linalg.eigvals(hessian / scale[:, None]).real.max()
    np.testing.assert_allclose(row["sharpness"], largest, rtol=1e-4)
    np.testing.assert_allclose(row["beta_max"], factor / largest, rtol=1e-4)


def test_the_meta_rate_is_held_to_a_share_of_the_edge_and_grows_at_most_twofold():
    learner, state = underway("sgd")
    watch = EdgeWatch(learner, FAMILY, "sgd", jax.random.key(7), share=0.5)
    _, row = watch(state)
    high = dataclasses.replace(state, meta_lr=jnp.asarray(100 * row["beta_max"]))
    low = dataclasses.replace(state, meta_lr=jnp.asarray(row["beta_max"] / 100))
    assert float(watch(high)[0].meta_lr) == pytest.approx(row["beta_max"] / 2)
    assert float(watch(low)[0].meta_lr) == pytest.approx(row["beta_max"] / 50)
    unheld, _ = EdgeWatch(learner, FAMILY, "sgd", jax.random.key(7))(high)
    assert unheld is high


def test_a_curvature_that_overflows_is_noted_and_changes_nothing():
    learner, state = underway("sgd")
    far = jax.tree.map(lambda leaf: leaf * 1e200, state.meta.params)
    lost = dataclasses.replace(state, meta=dataclasses.replace(state.meta, params=far))
    after, row = EdgeWatch(learner, FAMILY, "sgd", jax.random.key(7), share=0.5)(lost)
    assert after is lost
    assert row["beta_max"] is None
    assert "not finite" in row["note"]


class StopAt:
    """Asks the run to stop, the polite way, once an iteration is reached."""

    def __init__(self, iteration):
        self.iteration = iteration

    def start(self, iteration, total):
        pass

    def progress(self, iteration, figures):
        import os
        import signal

        if iteration >= self.iteration:
            self.iteration = 10**9
            os.kill(os.getpid(), signal.SIGINT)

    def rows(self, rows):
        pass


def test_a_run_that_holds_its_rate_resumes_to_the_same_rows(tmp_path):
    config = TrainConfig(
        tasks="sinusoid", hidden=(8,), shots=4, tasks_per_step=3, iterations=40, log_every=10,
        eval_every=10, eval_tasks=4, alpha=0.01, optimizer="sgd",
    )  # fmt: skip
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    train(config, whole)
    assert train(config, parts, StopAt(15)).status == "interrupted"
    resume(parts)
    edges = [
        [row["edge"] for row in read_jsonl(folder.metrics) if "edge" in row]
        for folder in (whole, parts)
    ]
    assert len(edges[0]) == 4
    assert edges[0] == edges[1]


def test_reptile_has_no_edge_to_track():
    with pytest.raises(InputError, match="reptile has none"):
        check_config(TrainConfig(tasks="sinusoid", algorithm="reptile", track_edge=True))
