"""Curvature by Lanczos against dense matrices, and the edge of the inner loop against inner loops."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from metastep import Batch, Episode
from metastep._errors import InputError
from metastep.adapt import GradientAdapter
from metastep.models import Objective, mlp
from metastep.rates import extreme_eigenvalues, stability_edge, task_curvature
from metastep.rates.curvature import random_like
from metastep.tasks import AbstractTaskFamily, MixedLinear, Sinusoid

MODEL = mlp((2,), 3, hidden=(5,))


def matrix_product(matrix):
    return lambda v: jnp.asarray(matrix, v.dtype) @ v


def episode_of(kind, rng, shots=6):
    x = jnp.asarray(rng.normal(size=(shots, 2)))
    y = rng.integers(0, 3, shots) if kind == "classification" else rng.normal(size=(shots, 3))
    return Episode(Batch(x, jnp.asarray(y)), Batch(x, jnp.asarray(y)))


def dense(objective, params, batch):
    """Hessian and Gauss-Newton matrix of the loss, written out, and the gradient."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    def matrices(flat):
        loss = lambda w: objective(unravel(w), batch)  # noqa: E731
        outputs = objective.apply(unravel(flat), batch.x)
        jacobian = jax.jacobian(lambda w: objective.apply(unravel(w), batch.x).ravel())(flat)
        bent = jax.hessian(lambda o: objective.output_loss(o.reshape(outputs.shape), batch.y))
        gauss_newton = jacobian.T @ bent(outputs.ravel()) @ jacobian
        return jax.hessian(loss)(flat), gauss_newton, jax.grad(loss)(flat)

    return map(np.asarray, matrices(flat))


@pytest.mark.parametrize(("kind", "head_only"), [("regression", False), ("classification", True)])
def test_a_task_has_the_curvature_of_its_dense_matrices(kind, head_only, rng):
    objective = Objective.of(MODEL.apply, kind)
    params = MODEL.init(jax.random.key(3))
    restrict = GradientAdapter(1, MODEL.is_head if head_only else None).restrict
    episode = episode_of(kind, rng)
    found = jax.jit(lambda p: task_curvature(objective, p, episode, jax.random.key(0), restrict))(
        params
    )
    hessian, gauss_newton, gradient = dense(objective, params, episode.support)
    ones = jax.tree.map(jnp.ones_like, params)
    kept = np.asarray(jax.flatten_util.ravel_pytree(restrict(ones))[0], bool)
    assert kept.all() != head_only  # the mask does something
    gradient = gradient[kept]
    for matrix, ends, along in (
        (gauss_newton, found.ggn, found.ggn_along),
        (hessian, found.hessian, found.hessian_along),
    ):
        block = matrix[np.ix_(kept, kept)]
        values = np.linalg.eigvalsh(block)
        assert float(ends.largest) == pytest.approx(values[-1], rel=1e-9)
        assert float(ends.smallest) == pytest.approx(values[0], rel=1e-7, abs=1e-9)
        assert float(ends.residual) < 1e-6
        assert float(along) == pytest.approx(
            gradient @ block @ gradient / (gradient @ gradient), rel=1e-9
        )


@pytest.mark.parametrize(
    "spectrum",
    [
        np.zeros(6),  # no curvature at all
        np.full(6, 2.5),  # one product uses the space up
        np.array([3.0, 3.0, 0.0, 0.0, 0.0, -1.0]),
        np.array([-4.0]),
        np.linspace(-7, 3, 50),  # the smallest is the one of largest size
        np.r_[np.zeros(490), np.geomspace(1, 1e6, 10)],  # few examples, many parameters
    ],
)
def test_the_ends_of_any_spectrum_are_found(spectrum, rng):
    rotation = np.linalg.qr(rng.normal(size=(len(spectrum), len(spectrum))))[0]
    matrix = rotation * spectrum @ rotation.T
    start = jnp.asarray(rng.normal(size=len(spectrum)))
    ends = extreme_eigenvalues(matrix_product(matrix), start, iterations=50)
    size = np.abs(spectrum).max()
    assert float(ends.largest) == pytest.approx(spectrum.max(), abs=1e-9 * size)
    assert float(ends.smallest) == pytest.approx(spectrum.min(), abs=1e-9 * size)
    assert float(ends.norm) == pytest.approx(size)
    assert float(ends.residual) < 1e-9


def test_float32_stays_float32_and_is_right_to_its_precision(rng):
    matrix = rng.normal(size=(60, 60))
    matrix = (matrix @ matrix.T).astype(np.float32)
    ends = extreme_eigenvalues(matrix_product(matrix), jnp.ones(60, jnp.float32), iterations=60)
    assert ends.largest.dtype == jnp.float32
    assert float(ends.largest) == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-5)


def test_too_few_products_leave_a_residual_that_holds(rng):
    # Some eigenvalue lies within the residual of the Ritz value; the Ritz value never lies above the top.
    spectrum = np.linspace(0, 1, 200)
    for iterations in (1, 4, 20):
        start = jnp.asarray(rng.normal(size=200))
        ends = extreme_eigenvalues(lambda v: jnp.asarray(spectrum) * v, start, iterations)
        assert float(ends.largest) <= 1 + 1e-12
        nearest = np.abs(spectrum - float(ends.largest)).min()
        assert nearest <= float(ends.largest_residual) + 1e-12
        assert (float(ends.residual) > 0.01) == (iterations <= 4)


def test_a_spectrum_within_a_subspace_is_that_of_the_subspace():
    matrix = np.diag([1.0, 2.0, 50.0])
    start = jnp.array([1.0, -1.0, 0.0])
    ends = extreme_eigenvalues(matrix_product(matrix), start)
    assert float(ends.largest) == pytest.approx(2)
    assert float(ends.smallest) == pytest.approx(1)


FAMILY = MixedLinear(np.array([1.0, -0.5, 2.0]), shots=5, queries=5, spread=1.0, noise=0.1)


def linear_objective():
    return Objective(
        lambda w, x: x @ w[:, None], Objective.of(MODEL.apply, "regression").output_loss
    )


def test_the_edge_is_where_the_inner_loop_of_the_sharpest_task_starts_to_diverge():
    # Mean loss without 1/2: Hessian (2/K) Phi' Phi, and gradient descent converges up to 2 / lambda_max.
    objective, key = linear_objective(), jax.random.key(5)
    edge = stability_edge(objective, jnp.zeros(3), FAMILY, key, num_tasks=20)
    keys = jax.random.split(jax.random.split(key)[0], 20)
    episodes = jax.vmap(FAMILY.sample)(keys)
    phi = np.asarray(episodes.support.x)
    sharpness = np.linalg.eigvalsh(2 / 5 * np.swapaxes(phi, 1, 2) @ phi)[:, -1]
    assert edge.alpha_c == pytest.approx(2 / sharpness.max(), rel=1e-9)
    assert edge.simplified_alpha_c == pytest.approx(1 / sharpness.max(), rel=1e-9)
    assert edge.ggn.median_alpha_c == pytest.approx(2 / np.median(sharpness), rel=1e-9)
    expected = np.quantile(sharpness, [0, 0.1, 0.5, 0.9, 1])
    np.testing.assert_allclose(edge.ggn.largest, expected, rtol=1e-9)
    np.testing.assert_allclose(edge.hessian.largest, expected, rtol=1e-9)  # a linear model
    assert max(edge.ggn.along) <= max(edge.ggn.largest) * (1 + 1e-12)
    assert edge.alpha_c <= edge.ggn.along_alpha_c
    assert edge.num_tasks == 20
    assert edge.warnings == []

    sharpest = jax.tree.map(lambda leaf: leaf[int(np.argmax(sharpness))], episodes)

    def spread_after(alpha, steps=400):
        # Two starts, so that what remains is their distance and not the distance to a minimum.
        loop = GradientAdapter(steps)
        gradient = jax.value_and_grad(objective.on(sharpest.support))
        ends = [
            loop(gradient, jnp.asarray(w), alpha)[0] for w in (np.ones(3), np.array([1.0, 0, 2]))
        ]
        return float(jnp.linalg.norm(ends[0] - ends[1]))

    assert spread_after(0.98 * edge.alpha_c) < spread_after(0.0)
    assert spread_after(1.02 * edge.alpha_c) > 100 * spread_after(0.0)


def test_restricting_to_the_head_gives_the_edge_of_anil():
    model = mlp((1,), 1, hidden=(8,))
    objective, params = Objective.of(model.apply, "regression"), model.init(jax.random.key(0))
    family = Sinusoid(shots=5, queries=5)
    restrict = GradientAdapter(1, model.is_head).restrict
    everything, head = (
        stability_edge(objective, params, family, jax.random.key(1), num_tasks=6, **options)
        for options in ({}, {"restrict": restrict})
    )
    assert head.alpha_c > everything.alpha_c  # a block of a matrix is no sharper than the matrix
    # The model is linear in its head: Gauss-Newton and Hessian are one.
    np.testing.assert_allclose(head.ggn.largest, head.hessian.largest, rtol=1e-9)
    assert everything.ggn.largest != everything.hessian.largest


def test_tasks_side_by_side_make_no_difference_and_new_parameters_do_not_compile_again():
    traces = 0

    def apply(w, x):
        nonlocal traces
        traces += 1
        return x @ w[:, None]

    objective = Objective(apply, linear_objective().output_loss)
    first, second, other = (
        stability_edge(objective, w, FAMILY, jax.random.key(0), num_tasks=6, tasks_at_once=n)
        for w, n in ((jnp.ones(3), None), (jnp.ones(3), 4), (jnp.zeros(3), None))
    )
    assert first.alpha_c == pytest.approx(second.alpha_c, rel=1e-10)
    assert first.ggn.along != other.ggn.along
    before = traces
    stability_edge(objective, jnp.array([0.5, 2.0, 0.1]), FAMILY, jax.random.key(9), num_tasks=6)
    assert traces == before


def test_a_spectrum_that_did_not_settle_is_pointed_out():
    model = mlp((1,), 1, hidden=(20,))
    objective = Objective.of(model.apply, "regression")
    params = model.init(jax.random.key(0))
    family = Sinusoid(shots=10, queries=10)
    edge = stability_edge(objective, params, family, jax.random.key(0), num_tasks=3, iterations=1)
    assert len(edge.warnings) == 2
    assert edge.warnings[0] == (
        f"Lanczos left {edge.ggn.residual:.1%} of the largest Gauss-Newton eigenvalue open after 1 steps on some "
        f"task: the edge may be lower; raise iterations"
    )


class Flat(AbstractTaskFamily):
    """Tasks on which nothing depends on the parameters."""

    kind = "regression"
    input_shape = (3,)
    output_size = 1

    def sample(self, key):
        batch = Batch(jnp.zeros((4, 3)), jax.random.normal(key, (4, 1)))
        return Episode(batch, batch)


def test_without_curvature_every_rate_is_stable():
    edge = stability_edge(linear_objective(), jnp.ones(3), Flat(), jax.random.key(0), num_tasks=2)
    assert edge.alpha_c == edge.ggn.along_alpha_c == float("inf")
    assert edge.warnings == []


def test_what_cannot_be_measured_is_refused():
    nowhere = jnp.full(3, jnp.nan)
    with pytest.raises(InputError) as caught:
        stability_edge(
            Objective(lambda w, x: x**3 @ w[:, None] ** 2, linear_objective().output_loss),
            nowhere,
            FAMILY,
            jax.random.key(0),
            num_tasks=2,
        )
    assert str(caught.value) == (
        "the curvature of the support loss is not finite at these parameters; check the data for huge values"
    )
    with pytest.raises(
        InputError, match=r"num_tasks is 0; it must be a whole number of at least 1"
    ):
        stability_edge(linear_objective(), nowhere, FAMILY, jax.random.key(0), num_tasks=0)
    with pytest.raises(
        InputError, match=r"iterations is 0; it must be a whole number of at least 1"
    ):
        extreme_eigenvalues(lambda v: v, jnp.ones(2), 0)
    with pytest.raises(InputError) as caught:
        extreme_eigenvalues(lambda v: v, {})
    assert str(caught.value) == "start holds no number; there is no curvature to look at"


def test_random_vectors_take_the_shape_and_dtype_of_every_leaf():
    params = {"a": jnp.zeros((2, 3), jnp.float32), "b": jnp.zeros(4)}
    found = random_like(params, jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(
        lambda a: (a.shape, a.dtype), params
    )
    assert len(np.unique(np.concatenate([np.ravel(a) for a in jax.tree.leaves(found)]))) == 10
