"""A task's meta-gradient is cut to a length: against numpy, side by side or not, and whatever is not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastep._types import MetaParams
from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact, TaskGradient, TaskOutcome, mean_over_tasks
from metastep.metagrad.bounded import bounded_sum
from metastep.models import Objective, mlp
from metastep.tasks import Sinusoid, batch_of_episodes


def outcome(*losses: float) -> TaskOutcome:
    return TaskOutcome(jnp.asarray(losses), jnp.full(len(losses), 2.0), None)


def flat(meta: MetaParams) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(meta)])


@given(
    st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.floats(-1e3, 1e3), min_size=width, max_size=width), min_size=1, max_size=6
        )
    ),
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 1e4),
)
def test_directions_are_kept_and_lengths_are_at_most_the_bound(entries, rate, longest):
    num_tasks = len(entries)
    gradients = MetaParams({"w": jnp.asarray(entries)}, jnp.full(num_tasks, rate))
    before = np.column_stack([entries, np.full(num_tasks, rate)])
    lengths = np.linalg.norm(before, axis=1)
    after, total = bounded_sum(outcome(*[1.0] * num_tasks), gradients, jnp.asarray(longest))
    factors = np.minimum(1.0, longest / np.maximum(lengths, 1e-300))
    scale = np.abs(before).max(initial=0) + 1e-300
    np.testing.assert_allclose(flat(total), factors @ before, rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_allclose(after.length, lengths, rtol=1e-12, atol=1e-150)
    np.testing.assert_array_equal(after.loss, 1.0)


@pytest.mark.parametrize(
    ("loss", "entry"), [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, np.inf), (1.0, 1e200)]
)
def test_what_is_not_finite_contributes_nothing(loss, entry):
    gradients = MetaParams(
        {"w": jnp.asarray([[3.0, 4.0], [entry, 1.0], [0.0, 1.0]])}, jnp.asarray([0.0, 0.5, 0.0])
    )
    after, total = bounded_sum(outcome(1.0, loss, 1.0), gradients, jnp.asarray(2.5))
    np.testing.assert_allclose(after.length, [5, np.inf, 1])
    np.testing.assert_allclose(flat(total), [1.5, 3, 0])


@pytest.mark.parametrize("tasks_at_once", [None, 3, 1])
def test_the_mean_is_that_of_cut_gradients(tasks_at_once):
    model = mlp((1,), 1, hidden=(5, 4), activation=jnp.tanh)
    objective, family = Objective.of(model.apply, "regression"), Sinusoid(shots=6, queries=4)
    params = model.init(jax.random.key(2))
    meta = MetaParams(params, jnp.asarray(np.log(0.1)))
    free = TaskGradient(
        Exact(), objective, GradientAdapter(2), lambda meta: jnp.exp(meta.rates), meta
    )
    episodes = batch_of_episodes(family, jax.random.key(7), 6)
    apart = [free(jax.tree.map(lambda leaf, i=i: leaf[i], episodes))[1] for i in range(6)]
    vectors = np.stack([flat(gradient) for gradient in apart])
    lengths = np.linalg.norm(vectors, axis=1)
    longest = float(np.median(lengths))  # half of them are cut
    expected = np.mean(vectors * np.minimum(1, longest / lengths)[:, None], axis=0)
    cut = dataclasses.replace(free, longest=jnp.asarray(longest))
    outcomes, found = jax.jit(lambda e: mean_over_tasks(cut, e, tasks_at_once))(episodes)
    np.testing.assert_allclose(flat(found), expected, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(outcomes.length, lengths, rtol=1e-9)
    whole = dataclasses.replace(free, longest=jnp.asarray(jnp.inf))
    _, unbounded = mean_over_tasks(whole, episodes, tasks_at_once)
    np.testing.assert_allclose(flat(unbounded), vectors.mean(axis=0), rtol=1e-9, atol=1e-13)
