"""Label-aware and label-free rates against explicit matrices: features, Jacobians, Hessians of the loss."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from metastep import Batch, Episode, theory
from metastep.adapt import GradientAdapter
from metastep.models import Objective, linear, mlp
from metastep.rates import label_aware_terms, label_free_terms

TASKS, SHOTS, QUERIES, DIM, OUTPUTS = 5, 4, 6, 3, 2


def linear_problem(rng, scale=1.0):
    """Linear regression with several outputs: features, labels, weights as NumPy arrays."""
    phi, phi_query = rng.normal(size=(TASKS, SHOTS, DIM)), rng.normal(size=(TASKS, QUERIES, DIM))
    y, y_query = (
        rng.normal(size=(TASKS, SHOTS, OUTPUTS)),
        rng.normal(size=(TASKS, QUERIES, OUTPUTS)),
    )
    return scale * phi, scale * phi_query, y, y_query, rng.normal(size=(DIM, OUTPUTS)) / scale


def over_tasks(function, weights, phi, phi_query, y, y_query):
    """Terms of every task, mapped over the leading axis."""
    model = linear((DIM,), OUTPUTS)
    objective = Objective.of(model.apply, "regression")
    params = {"head": {"weight": jnp.asarray(weights)}}
    episodes = Episode(
        Batch(jnp.asarray(phi), jnp.asarray(y)), Batch(jnp.asarray(phi_query), jnp.asarray(y_query))
    )
    mapped = jax.jit(jax.vmap(lambda episode: function(objective, params, episode)))
    return jax.tree.map(np.asarray, mapped(episodes))


def test_label_aware_terms_are_the_query_loss_along_the_inner_gradient(rng):
    phi, phi_query, y, y_query, weights = linear_problem(rng)
    terms = over_tasks(label_aware_terms, weights, phi, phi_query, y, y_query)
    for alpha in (0.0, 0.1, -0.3, 2.0):
        for i in range(TASKS):
            gradient = 2 / SHOTS * phi[i].T @ (phi[i] @ weights - y[i])
            residual = phi_query[i] @ (weights - alpha * gradient) - y_query[i]
            expected = np.sum(residual**2) / QUERIES
            quadratic = terms.loss[i] - alpha * terms.slope[i] + alpha**2 * terms.curvature[i] / 2
            assert quadratic == pytest.approx(expected, rel=1e-10)


def test_label_aware_rate_is_that_of_the_theory(rng):
    # (k1/2) sum r_t.(k_tu r_u) / sum ||k_tu r_u||^2 with k_tu = Phi_t Phi_u'.
    phi, phi_query, y, y_query, weights = linear_problem(rng)
    terms = over_tasks(label_aware_terms, weights, phi, phi_query, y, y_query)
    found = terms.slope.sum() / terms.curvature.sum()
    top = bottom = 0.0
    for i in range(TASKS):
        residual, residual_query = phi[i] @ weights - y[i], phi_query[i] @ weights - y_query[i]
        moved = phi_query[i] @ phi[i].T @ residual
        top, bottom = top + np.sum(residual_query * moved), bottom + np.sum(moved**2)
    assert found == pytest.approx(SHOTS / 2 * top / bottom, rel=1e-12)
    residuals = phi @ weights - y, phi_query @ weights - y_query
    expected = theory.label_aware_rate(phi, residuals[0], phi_query, residuals[1])
    assert found == pytest.approx(float(expected), rel=1e-12)


def free_rate(objective_terms):
    return objective_terms.second.sum() / objective_terms.third.sum()


def label_free(objective, params, episode, key=None, restrict=lambda gradient: gradient):
    key = jax.random.key(0) if key is None else key  # unused where the traces are exact
    return label_free_terms(objective, params, episode, key, restrict)


def test_label_free_rate_of_a_linear_model_is_h6(rng):
    phi, phi_query, y, y_query, weights = linear_problem(rng)
    terms = over_tasks(label_free, weights, phi, phi_query, y, y_query)
    expected = theory.limit_rate(phi, phi_query)
    assert free_rate(terms) == pytest.approx(float(expected), rel=1e-12)
    gain = terms.second.sum() ** 2 / (terms.first.sum() * terms.third.sum())
    assert gain == pytest.approx(float(theory.predicted_gain(phi, phi_query)), rel=1e-12)
    # It does not see labels or weights.
    other = over_tasks(label_free, 0 * weights, phi, phi_query, y + 1, 7 * y_query)
    assert free_rate(other) == pytest.approx(free_rate(terms), rel=1e-13)


@pytest.mark.parametrize("scale", [0.1, 8.0])
def test_features_times_c_give_rates_over_c_squared(rng, scale):
    # Residuals stay the same, as the weights shrink by what the features grow.
    small = linear_problem(np.random.default_rng(4))
    large = linear_problem(np.random.default_rng(4), scale)
    for function in (label_aware_terms, label_free):
        rates = []
        for phi, phi_query, y, y_query, weights in (small, large):
            terms = over_tasks(function, weights, phi, phi_query, y, y_query)
            top, bottom = (
                (terms.slope, terms.curvature)
                if function is label_aware_terms
                else (terms.second, terms.third)
            )
            rates.append(top.sum() / bottom.sum())
        assert rates[1] == pytest.approx(rates[0] / scale**2, rel=1e-10)


def network(rng, kind, shots=5, queries=4, batch_dependent=False):
    """A small network, one task and the matrices of its linearisation."""
    model = mlp((2,), 3, hidden=(4,), activation=jnp.tanh)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)

    def apply(params, x):
        outputs = model.apply(params, x)
        # As batch normalisation does: every output depends on every example.
        return outputs - jnp.mean(outputs**2, axis=0) if batch_dependent else outputs

    def batch(size):
        x = jnp.asarray(rng.normal(size=(size, 2)))
        if kind == "classification":
            return Batch(x, jnp.asarray(rng.integers(0, 3, size)))
        return Batch(x, jnp.asarray(rng.normal(size=(size, 3))))

    episode = Episode(batch(shots), batch(queries))
    return Objective.of(apply, kind), params, episode, model


def linearised(objective, params, batch, kind):
    """Jacobian (n*c, P), output gradient (n*c,) and output Hessian (n*c, n*c), by formulas in NumPy."""
    flat, rebuild = jax.flatten_util.ravel_pytree(params)
    apply = lambda flat: objective.apply(rebuild(flat), batch.x)  # noqa: E731
    jacobian = np.asarray(jax.jit(jax.jacobian(apply))(flat)).reshape(-1, flat.size)
    outputs, y = np.asarray(apply(flat)), np.asarray(batch.y)
    n = len(outputs)
    if kind == "regression":
        return jacobian, 2 / n * (outputs - y).ravel(), 2 / n * np.eye(outputs.size)
    shares = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    gradient = (shares - np.eye(3)[y]) / n
    hessian = scipy.linalg.block_diag(*[(np.diag(p) - np.outer(p, p)) / n for p in shares])
    return jacobian, gradient.ravel(), hessian


KINDS = ["regression", "classification"]


@pytest.mark.parametrize("batch_dependent", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_label_aware_terms_of_a_network(rng, kind, batch_dependent):
    objective, params, episode, _ = network(rng, kind, batch_dependent=batch_dependent)
    terms = jax.jit(lambda p, e: label_aware_terms(objective, p, e))(params, episode)
    jacobian, gradient, _ = linearised(objective, params, episode.support, kind)
    query_jacobian, query_gradient, hessian = linearised(objective, params, episode.query, kind)
    direction = jacobian.T @ gradient
    change = query_jacobian @ direction
    assert float(terms.loss) == pytest.approx(float(objective(params, episode.query)), rel=1e-12)
    assert float(terms.slope) == pytest.approx(query_gradient @ change, rel=1e-9)
    assert float(terms.curvature) == pytest.approx(change @ hessian @ change, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_curvature_is_that_of_the_linearised_loss(rng, kind):
    # Second differences of the loss at outputs moved along a straight line: no Hessian is written down.
    objective, params, episode, _ = network(rng, kind)
    terms = jax.jit(lambda p, e: label_aware_terms(objective, p, e))(params, episode)
    direction = jax.jit(jax.grad(objective.on(episode.support)))(params)
    step = 1e-5
    shifted = [jax.tree.map(lambda w, g, s=s: w - s * g, params, direction) for s in (-step, step)]
    behind, ahead = (objective.apply(p, episode.query.x) for p in shifted)
    change = (ahead - behind) / (2 * step)
    outputs = objective.apply(params, episode.query.x)
    loss = lambda a: float(objective.output_loss(outputs + a * change, episode.query.y))  # noqa: E731
    assert (loss(-1e-4) - loss(1e-4)) / 2e-4 == pytest.approx(float(terms.slope), rel=1e-5)
    second = (loss(1e-2) - 2 * loss(0) + loss(-1e-2)) / 1e-4
    assert second == pytest.approx(float(terms.curvature), rel=2e-3)


def explicit_traces(support, query, keep):
    """tr T, tr UT, tr UTU with U = J' H J restricted to the columns that adapt."""
    (jacobian, _, hessian), (query_jacobian, _, query_hessian) = support, query
    jacobian, query_jacobian = jacobian[:, keep], query_jacobian[:, keep]
    u = jacobian.T @ hessian @ jacobian
    t = query_jacobian.T @ query_hessian @ query_jacobian
    return np.trace(t), np.trace(u @ t), np.trace(u @ t @ u)


def columns(params, mask):
    """Which entries of the flattened parameters are marked."""
    marks = jax.tree.map(lambda leaf, moves: np.full(leaf.shape, moves), params, mask)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(marks)])


@pytest.mark.parametrize("head_only", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_label_free_terms_of_a_network(rng, kind, head_only):
    objective, params, episode, model = network(rng, kind, batch_dependent=not head_only)
    adapter = GradientAdapter(1, model.is_head if head_only else None)
    mask = model.is_head(params) if head_only else jax.tree.map(lambda _: True, params)
    keep = columns(params, mask)
    assert keep.sum() == (4 * 3 + 3 if head_only else 27)
    found = jax.jit(lambda p, e: label_free(objective, p, e, restrict=adapter.restrict))(
        params, episode
    )
    matrices = [
        linearised(objective, params, batch, kind) for batch in (episode.support, episode.query)
    ]
    expected = explicit_traces(*matrices, keep)
    np.testing.assert_allclose([found.first, found.second, found.third], expected, rtol=1e-9)
    if (
        kind == "regression"
    ):  # (H.6) on the tangent kernel: k1 ||X||^2 / (2 ||X J_u||^2), X = J_t J_u'
        jacobian, query_jacobian = matrices[0][0][:, keep], matrices[1][0][:, keep]
        cross = query_jacobian @ jacobian.T
        rate = 5 * np.sum(cross**2) / (2 * np.sum((cross @ jacobian) ** 2))
        assert float(found.second / found.third) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_restricting_the_step_restricts_the_label_aware_rate(rng, kind):
    objective, params, episode, model = network(rng, kind)
    adapter = GradientAdapter(1, model.is_head)
    found = jax.jit(lambda p, e: label_aware_terms(objective, p, e, adapter.restrict))(
        params, episode
    )
    jacobian, gradient, _ = linearised(objective, params, episode.support, kind)
    query_jacobian, query_gradient, hessian = linearised(objective, params, episode.query, kind)
    keep = columns(params, model.is_head(params))
    change = query_jacobian[:, keep] @ (jacobian[:, keep].T @ gradient)
    assert float(found.slope) == pytest.approx(query_gradient @ change, rel=1e-9)
    assert float(found.curvature) == pytest.approx(change @ hessian @ change, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_random_signs_give_the_traces_on_average(rng, kind):
    # 16 examples of 3 outputs exceed what is summed exactly. 400 keys; each mean is within five of its
    # standard errors, which fails for fewer than one seed in 100,000.
    objective, params, episode, _ = network(rng, kind, shots=16, queries=15)
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), 400)
    terms = jax.jit(
        lambda p, e, keys: jax.lax.map(
            lambda key: label_free(objective, p, e, key), keys, batch_size=50
        )
    )(params, episode, keys)
    matrices = [
        linearised(objective, params, batch, kind) for batch in (episode.support, episode.query)
    ]
    expected = explicit_traces(*matrices, np.ones(27, bool))
    for values, trace in zip((terms.first, terms.second, terms.third), expected, strict=True):
        values = np.asarray(values)
        assert len(np.unique(values)) == 400  # it was the random path
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - trace) < 5 * error
        assert error < 0.05 * trace  # the test can tell


def test_single_precision_in_single_precision_out(rng):
    objective, params, episode, _ = network(rng, "classification")
    to32 = lambda tree: jax.tree.map(  # noqa: E731
        lambda leaf: leaf.astype("float32") if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        tree,
    )
    for function in (label_aware_terms, label_free):
        terms = jax.eval_shape(
            lambda p, e, f=function: f(objective, p, e), to32(params), to32(episode)
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(terms)} == {jnp.dtype("float32")}
