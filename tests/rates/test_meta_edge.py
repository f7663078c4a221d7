"""The edge of the meta rate: dense meta-Hessians, closed forms, and optimisers that diverge just above it."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import optax.tree_utils as otu
import pytest

from metastep import Batch, Episode, theory
from metastep._errors import InputError
from metastep.adapt import GradientAdapter
from metastep.models import Objective, mlp
from metastep.rates import (
    OPTIMIZERS,
    largest_stable_rate,
    make_optimizer,
    meta_curvature,
    meta_edge,
    second_moments,
)
from metastep.tasks import Sinusoid, batch_of_episodes

KEY = jax.random.key(0)
DIM, TASKS = 4, 5


def quadratics(rng, tasks=TASKS, centre=3.0):
    """Tasks f_i = (1/2) (w - c)' A_i (w - c) with one minimum for all, carried in the arrays of an episode."""
    roots = rng.normal(size=(tasks, DIM, DIM))
    hessians = np.swapaxes(roots, 1, 2) @ roots / DIM
    centres = np.full((tasks, DIM), centre)
    batch = Batch(jnp.asarray(hessians), jnp.asarray(centres))
    return hessians, Episode(batch, batch)


def quadratic(w, batch):
    return 0.5 * (w - batch.y) @ batch.x @ (w - batch.y)


def adapted_loss(alpha, w, episode):
    """The query loss after one step, with alpha a leaf when this is made a `Partial`."""
    moved = w - alpha * jax.grad(quadratic)(w, episode.support)
    return quadratic(moved, episode.query)


def test_the_sharpness_of_quadratics_is_that_of_the_theory(rng):
    hessians, episodes = quadratics(rng)
    for alpha in (0.0, 0.2, 3.0):
        loss = jax.tree_util.Partial(adapted_loss, jnp.asarray(alpha))
        edge = meta_edge(loss, jnp.zeros(DIM), episodes, "sgd", KEY)
        expected = float(theory.max_meta_rate(hessians, alpha, "exact"))
        assert edge.beta_max == pytest.approx(expected, rel=1e-9)
        values = np.linalg.eigvalsh(theory.meta_hessian(hessians, alpha))
        assert [edge.lowest, edge.sharpness] == pytest.approx([values[0], values[-1]], rel=1e-9)
        assert edge.residual < 1e-6
        assert edge.num_tasks == TASKS
        assert edge.warnings == []


def maml(steps):
    model = mlp((1,), 1, hidden=(4,))
    objective = Objective.of(model.apply, "regression")
    loop = GradientAdapter(steps)

    def meta_loss(alpha, params, episode):
        gradient = jax.value_and_grad(objective.on(episode.support))
        return objective(loop(gradient, params, alpha)[0], episode.query)

    return model, jax.tree_util.Partial(meta_loss, jnp.asarray(0.05))


@pytest.mark.parametrize(
    ("optimizer", "tasks_at_once"), [("sgd", None), ("adam", 4), ("rmsprop", 1)]
)
def test_the_sharpness_of_maml_is_that_of_its_dense_meta_hessian(optimizer, tasks_at_once):
    model, loss = maml(steps=2)
    params = model.init(jax.random.key(1))
    episodes = batch_of_episodes(Sinusoid(shots=3, queries=3), jax.random.key(2), 6)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    mean = lambda w: jnp.mean(jax.vmap(lambda e: loss(unravel(w), e))(episodes))  # noqa: E731
    hessian = np.asarray(jax.jit(jax.hessian(mean))(flat))
    nu = np.linspace(0.5, 3, len(flat)) ** 2
    scales = {
        "sgd": np.ones(len(flat)),
        "adam": np.sqrt(nu) + 1e-8,
        "rmsprop": np.sqrt(nu + 1e-8),
    }[optimizer]
    values = np.sort(np.linalg.eigvals(hessian / scales[:, None]).real)
    edge = meta_edge(
        loss,
        params,
        episodes,
        optimizer,
        KEY,
        nu=unravel(jnp.asarray(nu)),
        tasks_at_once=tasks_at_once,
    )
    assert [edge.lowest, edge.sharpness] == pytest.approx([values[0], values[-1]], rel=1e-8)
    factor = {"sgd": 2, "adam": 38, "rmsprop": 2}[optimizer]
    assert edge.beta_max == pytest.approx(factor / values[-1], rel=1e-8)


@pytest.mark.parametrize("name", ["adam", "adamw", "momentum", "rmsprop", "sgd"])
def test_each_optimiser_converges_just_below_its_edge_and_diverges_just_above(name, rng):
    # Before every step the running second moment is put back, as long after the start, so that the update
    # divides by the same preconditioner each time: what the threshold is about. The minimum is at 0 and the
    # start so near that what grows stays linear.
    _, episodes = quadratics(rng, centre=0.0)
    loss = jax.tree_util.Partial(adapted_loss, jnp.asarray(0.1))
    nu = jnp.asarray(rng.uniform(0.2, 2, DIM))
    start = jnp.full(DIM, 1e-150)
    edge = meta_edge(loss, start, episodes, name, KEY, nu=nu)
    decay = 0.9 if name == "rmsprop" else 0.999
    gradient = jax.grad(lambda w: jnp.mean(jax.vmap(lambda e: loss(w, e))(episodes)))

    def frozen(state):
        inner = state.inner_state[0]
        if name == "rmsprop":
            inner = inner._replace(nu=nu / decay)
        elif name in ("adam", "adamw"):
            inner = inner._replace(nu=nu / decay, count=jnp.full((), 10**6, jnp.int32))
        return state._replace(inner_state=(inner, *state.inner_state[1:]))

    def step(_, carried):
        w, state = carried[0], frozen(carried[1])
        with jax.numpy_dtype_promotion("standard"):
            updates, state = make_optimizer(name, 1.0).update(gradient(w), state, w)
            return optax.apply_updates(w, updates), state

    @jax.jit
    def growth(beta):
        state = otu.tree_set(make_optimizer(name, 1.0).init(start), learning_rate=beta)
        state = step(0, (start, frozen(state)))[1]  # one step for the dtypes
        end, _ = jax.lax.fori_loop(0, 400, step, (start, state))
        return jnp.linalg.norm(end) / jnp.linalg.norm(start)

    assert growth(jnp.asarray(0.98 * edge.beta_max)) < 1e-3
    assert growth(jnp.asarray(1.02 * edge.beta_max)) > 1e3


def test_thresholds_are_those_of_the_literature():
    expected = {
        "sgd": 0.5,
        "hypergradient": 0.5,
        "momentum": 0.95,
        "rmsprop": 0.5,
        "adam": 9.5,
        "normalised-adam": 9.5,
        "relative-adam": 9.5,
        "adamw": 38 / (4 + 1e-4 * 19),
    }
    assert set(OPTIMIZERS) <= set(expected)
    assert {name: largest_stable_rate(name, 4.0) for name in expected} == pytest.approx(expected)
    assert all(largest_stable_rate(name, -1.0) == float("inf") for name in expected)


def test_second_moments_are_those_of_minibatches_of_tasks(rng):
    _, episodes = quadratics(rng, tasks=400)
    loss = jax.tree_util.Partial(adapted_loss, jnp.asarray(0.1))
    w = jnp.ones(DIM)
    found = {size: np.asarray(second_moments(loss, w, episodes, size)) for size in (5, 400)}
    gradients = np.asarray(jax.vmap(lambda e: jax.grad(loss)(w, e))(episodes))
    batches = gradients[rng.integers(0, 400, (20_000, 5))].mean(axis=1)
    # Fresh tasks: the variance of the mean of all 400 is taken off, 5/400 of what is tested to 5 %.
    np.testing.assert_allclose(found[5], np.mean(batches**2, axis=0), rtol=0.05)
    np.testing.assert_allclose(found[400], gradients.mean(axis=0) ** 2, rtol=1e-10)
    groups = np.asarray(second_moments(loss, w, episodes, 5, 16))
    np.testing.assert_allclose(groups, found[5], rtol=1e-10)


def test_second_moments_that_are_not_given_are_estimated(rng):
    _, episodes = quadratics(rng)
    loss = jax.tree_util.Partial(adapted_loss, jnp.asarray(0.1))
    for size in (None, 2):
        nu = second_moments(loss, jnp.zeros(DIM), episodes, size or TASKS)
        given = meta_edge(loss, jnp.zeros(DIM), episodes, "adam", KEY, nu=nu)
        assert meta_edge(loss, jnp.zeros(DIM), episodes, "adam", KEY, tasks_per_step=size) == given
        relative = meta_edge(
            loss, jnp.zeros(DIM), episodes, "relative-adam", KEY, tasks_per_step=size
        )
        assert relative.sharpness == pytest.approx(0.1 * given.sharpness)  # the size of a vector


def test_new_parameters_and_a_new_alpha_do_not_compile_again(rng):
    _, episodes = quadratics(rng)
    traces = 0

    def counted(alpha, w, episode):
        nonlocal traces
        traces += 1
        return adapted_loss(alpha, w, episode)

    for alpha, start in ((0.1, 0.0), (0.2, 3.0)):
        loss = jax.tree_util.Partial(counted, jnp.asarray(alpha))
        edge = meta_edge(loss, jnp.array([start, 1, 2, 3]), episodes, "sgd", KEY)
        if alpha == 0.1:
            before, first = traces, edge
    assert traces == before
    assert edge.sharpness != first.sharpness


def test_the_sharpness_can_be_compiled_into_another_program(rng):
    _, episodes = quadratics(rng)
    loss = functools.partial(adapted_loss, 0.1)
    ends = jax.jit(lambda w: meta_curvature(loss, w, episodes, KEY))(jnp.zeros(DIM))
    edge = meta_edge(loss, jnp.zeros(DIM), episodes, "sgd", KEY)
    assert float(ends.largest) == pytest.approx(edge.sharpness, rel=1e-12)


def test_an_edge_that_did_not_settle_is_pointed_out(rng):
    _, episodes = quadratics(rng)
    loss = jax.tree_util.Partial(adapted_loss, jnp.asarray(0.1))
    edge = meta_edge(loss, jnp.zeros(DIM), episodes, "sgd", KEY, iterations=1)
    assert edge.warnings == [
        f"Lanczos left {edge.residual:.1%} of the sharpness open after 1 steps: the largest stable meta rate may "
        f"be lower; raise iterations"
    ]


def test_what_cannot_be_measured_is_refused(rng):
    _, episodes = quadratics(rng)
    loss = jax.tree_util.Partial(adapted_loss, jnp.asarray(jnp.inf))
    with pytest.raises(InputError) as caught:
        meta_edge(loss, jnp.zeros(DIM), episodes, "sgd", KEY)
    assert str(caught.value) == (
        "the curvature of the meta-objective is not finite at these parameters: lower alpha, or check the data "
        "for huge values"
    )
    with pytest.raises(
        InputError, match="optimizer is 'lion'; choose one of: adam, adamw, hypergradient"
    ):
        meta_edge(loss, jnp.zeros(DIM), episodes, "lion", KEY)
