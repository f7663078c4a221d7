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
from metastep.metagrad.bounded import bounded
from metastep.models import Objective, mlp
from metastep.tasks import Sinusoid, batch_of_episodes


def outcome(loss=1.0) -> TaskOutcome:
    return TaskOutcome(jnp.asarray(loss), jnp.asarray(2.0), None)


def flat(meta: MetaParams) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(meta)])


@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5),
    st.floats(-1e3, 1e3),
    st.floats(1e-3, 1e4),
)
def test_direction_is_kept_and_length_is_at_most_the_bound(entries, rate, longest):
    gradient = MetaParams({"w": jnp.asarray(entries)}, jnp.asarray(rate))
    before = flat(gradient)
    length = np.linalg.norm(before)
    after, cut = bounded(outcome(), gradient, jnp.asarray(longest))
    expected = before * min(1.0, longest / length) if length > 0 else before
    np.testing.assert_allclose(flat(cut), expected, rtol=1e-12, atol=1e-300)
    assert float(after.length) == pytest.approx(length, rel=1e-12, abs=1e-150)
    assert float(after.loss) == 1.0


@pytest.mark.parametrize(
    ("loss", "entry"), [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, np.inf), (1.0, 1e200)]
)
def test_what_is_not_finite_contributes_nothing(loss, entry):
    gradient = MetaParams({"w": jnp.asarray([entry, 1.0])}, jnp.asarray(0.5))
    after, cut = bounded(outcome(loss), gradient, jnp.asarray(3.0))
    assert np.isinf(after.length)
    np.testing.assert_array_equal(flat(cut), 0)


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
