"""Every meta-gradient against numbers: central differences, the closed form on quadratics, and its invariants."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep._types import Batch, Episode, MetaParams, PerStep
from metastep.metagrad import (
    ALGORITHMS,
    Exact,
    FirstOrder,
    HessianFree,
    Reptile,
    TaskGradient,
    mean_over_tasks,
)
from metastep.models import Objective, conv4, mlp
from metastep.tasks import FewShot, Sinusoid, batch_of_episodes


def scalar_rate(alpha):
    return lambda meta: jnp.asarray(alpha)


def regression_problem(activation=jnp.tanh):
    model = mlp((1,), 1, hidden=(5, 4), activation=activation)
    family = Sinusoid(shots=6, queries=4)
    return model, Objective.of(model.apply, "regression"), family


def convolution_problem():
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    family = FewShot(images, np.full(3, 4), ways=3, shots=1, queries=2)
    model = conv4(family.input_shape, 3, filters=3)
    return model, Objective.of(model.apply, "classification"), family


PROBLEMS = {"mlp": (regression_problem, 0.05), "conv4": (convolution_problem, 0.3)}


def directional_difference(function, meta, direction, step=1e-6):
    def at(size):
        return function(jax.tree.map(lambda a, b: np.asarray(a) + size * b, meta, direction))

    return float((at(step) - at(-step)) / (2 * step))


def random_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), tree)


def inner_product(a, b):
    return float(sum(np.vdot(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)))


@cache
def drawn(problem):
    """The model, its objective, the rate, and parameters and a task drawn once: each drawing is a program."""
    make, alpha = PROBLEMS[problem]
    model, objective, family = make()
    params = jax.jit(model.init)(jax.random.key(1))
    episode = jax.jit(lambda key: family.sample(key))(jax.random.key(2))
    return model, objective, alpha, MetaParams(params), episode


def setting(problem, name="maml", steps=2):
    model, objective, alpha, meta, episode = drawn(problem)
    return objective, ALGORITHMS[name].adapter(model, steps), alpha, meta, episode


def run(rule, objective, adapter, rate, meta, episode):
    """The rule, compiled: as users meet it, and much faster than operation by operation."""
    return jax.jit(lambda meta, episode: rule(objective, adapter, rate, meta, episode))(
        meta, episode
    )


def adapted_query_loss(objective, adapter, alpha, episode):
    def loss(meta):
        gradient = jax.value_and_grad(objective.on(episode.support))
        return objective(adapter(gradient, meta.params, alpha)[0], episode.query)

    return loss


@pytest.mark.parametrize("name", ["maml", "hfmaml", "anil"])
@pytest.mark.parametrize(("problem", "steps"), [("mlp", 1), ("mlp", 3), ("mlp", 7), ("conv4", 1)])
def test_equals_central_differences(problem, name, steps):
    # The numeric derivative runs the adapter alone, so it knows nothing of the rule under test. Seven
    # steps go through a loop, the others are unrolled. Three random directions would all have to miss
    # an error.
    objective, adapter, alpha, meta, episode = setting(problem, name, steps)
    rule = ALGORITHMS[name].meta_gradient()
    _, gradient = run(rule, objective, adapter, scalar_rate(alpha), meta, episode)
    loss = jax.jit(adapted_query_loss(objective, adapter, alpha, episode))
    for seed in range(3):
        direction = random_like(meta, seed)
        expected = directional_difference(loss, meta, direction)
        assert inner_product(gradient, direction) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def quadratic_task(rng, dim=4, shots=6, queries=5, curvature=0):
    """Linear regression in float64, whose meta-gradient is a product of matrices."""

    def draw(n):
        x, y = rng.normal(size=(n, dim)), rng.normal(size=(n, 1))
        return Batch(jnp.asarray(x), jnp.asarray(y))

    return Episode(draw(shots), draw(queries), draw(curvature) if curvature else None)


def closed_form(weights, episode, alpha, steps, rule):
    """prod (I - alpha H) g_o with H = (2/K) X'X: the chain rule written out in NumPy."""
    hessian = lambda batch: 2 * np.asarray(batch.x).T @ np.asarray(batch.x) / len(batch.x)  # noqa: E731
    gradient = lambda w, batch: (  # noqa: E731
        2 * np.asarray(batch.x).T @ (np.asarray(batch.x) @ w - np.asarray(batch.y)) / len(batch.x)
    )
    w = np.asarray(weights)
    for _ in range(steps):
        w = w - alpha * gradient(w, episode.support)
    outer = gradient(w, episode.query)
    if rule == "first-order":
        return outer
    curvature = episode.support if episode.curvature is None else episode.curvature
    jacobian = np.eye(len(w)) - alpha * hessian(curvature)
    return np.linalg.matrix_power(jacobian, steps) @ outer


@pytest.mark.parametrize("steps", [1, 2, 6])
@pytest.mark.parametrize("curvature", [0, 7])
@pytest.mark.parametrize(
    ("name", "rule", "tolerance"),
    [("maml", "exact", 1e-10), ("fomaml", "first-order", 1e-10), ("hfmaml", "exact", 1e-7)],
)
def test_closed_form_on_quadratics(rng, steps, curvature, name, rule, tolerance):
    # D_h differs from D_in when curvature > 0, so a Hessian on the wrong sample would show.
    episode = quadratic_task(rng, curvature=curvature)
    objective = Objective.of(lambda params, x: x @ params, "regression")
    weights = jnp.asarray(rng.normal(size=(4, 1)))
    algorithm = ALGORITHMS[name]
    adapter = algorithm.adapter(type("M", (), {"is_head": None})(), steps)
    task, gradient = run(
        algorithm.meta_gradient(),
        objective,
        adapter,
        scalar_rate(0.1),
        MetaParams(weights),
        episode,
    )
    expected = closed_form(weights, episode, 0.1, steps, rule)
    np.testing.assert_allclose(gradient.params, expected, rtol=tolerance, atol=tolerance)
    first_loss = np.mean(np.square(episode.support.x @ weights - episode.support.y))
    assert float(task.loss_before) == pytest.approx(float(first_loss), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_reptile_is_the_sum_of_joint_gradients(rng, steps):
    # Written out: the inner gradients on support and query together, added up along the path.
    episode = quadratic_task(rng)
    objective = Objective.of(lambda params, x: x @ params, "regression")
    weights = rng.normal(size=(4, 1))
    x = np.concatenate([episode.support.x, episode.query.x])
    y = np.concatenate([episode.support.y, episode.query.y])
    total, w = np.zeros_like(weights), weights
    for _ in range(steps):
        gradient = 2 * x.T @ (x @ w - y) / len(x)
        total, w = total + gradient, w - 0.1 * gradient
    for alpha in (jnp.asarray(0.1), PerStep(jnp.full(steps, 0.1))):
        adapter = ALGORITHMS["reptile"].adapter(None, steps)
        _, found = run(
            Reptile(),
            objective,
            adapter,
            lambda _, a=alpha: a,
            MetaParams(jnp.asarray(weights)),
            episode,
        )
        np.testing.assert_allclose(found.params, total, rtol=1e-10)


def test_reptile_at_small_rates_is_exact_in_single_precision(rng):
    # One step is one gradient whatever the rate is; parameters of 100 have a spacing of 8e-6.
    episode = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), quadratic_task(rng))
    objective = Objective.of(lambda params, x: x @ params, "regression")
    weights = jnp.full((4, 1), 100, jnp.float32)
    adapter = ALGORITHMS["reptile"].adapter(None, 1)
    found = [
        run(Reptile(), objective, adapter, scalar_rate(alpha), MetaParams(weights), episode)[1]
        for alpha in (np.float32(1e-2), np.float32(1e-8))
    ]
    np.testing.assert_allclose(found[1].params, found[0].params, rtol=1e-5)


def test_rates_of_reptile_follow_the_query_loss_along_a_path_that_stays(rng):
    # Written out: w' = w - alpha sum_k g_k with the support gradients of the path; alpha d/dalpha, entry by entry.
    episode = quadratic_task(rng)
    objective = Objective.of(lambda params, x: x @ params, "regression")
    weights = rng.normal(size=(4, 1))
    logarithms = np.log(rng.uniform(0.02, 0.1, size=(4, 1)))
    alpha, path, w = np.exp(logarithms), np.zeros_like(weights), weights
    support, query = (
        (np.asarray(batch.x), np.asarray(batch.y)) for batch in (episode.support, episode.query)
    )
    for _ in range(3):
        gradient = 2 * support[0].T @ (support[0] @ w - support[1]) / len(support[0])
        path, w = path + gradient, w - alpha * gradient
    outer = 2 * query[0].T @ (query[0] @ w - query[1]) / len(query[0])
    task, found = run(
        Reptile(),
        objective,
        ALGORITHMS["reptile"].adapter(None, 3),
        lambda meta: jnp.exp(meta.rates),
        MetaParams(jnp.asarray(weights), jnp.asarray(logarithms)),
        episode,
    )
    np.testing.assert_allclose(found.rates, -alpha * path * outer, rtol=1e-10)
    assert float(task.loss) == pytest.approx(np.mean((query[0] @ w - query[1]) ** 2), rel=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_at_alpha_zero_all_rules_are_the_plain_query_gradient(problem):
    objective, _, _, meta, episode = setting(problem)
    plain = jax.jit(jax.grad(objective.on(episode.query)))(meta.params)
    for name in ("maml", "fomaml", "hfmaml", "anil", "erm"):
        objective, adapter, _, meta, episode = setting(problem, name)
        rule = ALGORITHMS[name].meta_gradient()
        _, gradient = run(rule, objective, adapter, scalar_rate(0.0), meta, episode)
        for found, expected in zip(*map(jax.tree.leaves, (gradient.params, plain)), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_first_order_differs_from_exact_and_ignores_the_body_of_anil():
    # Power: if stop_gradient were lost, or the ANIL mask did nothing, these would be equal.
    objective, adapter, alpha, meta, episode = setting("mlp")
    exact = run(Exact(), objective, adapter, scalar_rate(alpha), meta, episode)[1]
    first = run(FirstOrder(), objective, adapter, scalar_rate(alpha), meta, episode)[1]
    head_adapter = setting("mlp", "anil")[1]
    anil = run(Exact(), objective, head_adapter, scalar_rate(alpha), meta, episode)[1]
    for other in (first, anil):
        difference = jax.tree.map(lambda a, b: a - b, exact, other)
        assert inner_product(difference, difference) > 1e-6 * inner_product(exact, exact)


def test_learned_rates_get_the_gradient_of_the_query_loss():
    # d loss / d log alpha, one rate per leaf, against central differences.
    objective, adapter, alpha, meta, episode = setting("mlp", steps=2)
    rates = jax.tree.map(lambda leaf: jnp.full_like(leaf, np.log(alpha)), meta.params)
    meta = MetaParams(meta.params, rates)
    rule = lambda meta: jax.tree.map(jnp.exp, meta.rates)  # noqa: E731

    def loss(meta):
        gradient = jax.value_and_grad(objective.on(episode.support))
        return objective(adapter(gradient, meta.params, rule(meta))[0], episode.query)

    _, gradient = run(Exact(), objective, adapter, rule, meta, episode)
    direction = random_like(meta, 3)
    expected = directional_difference(jax.jit(loss), meta, direction)
    assert inner_product(gradient, direction) == pytest.approx(expected, rel=1e-6)


def test_first_order_still_learns_rates():
    # With one step, the derivative with respect to alpha does not involve the Hessian at all.
    objective, adapter, alpha, meta, episode = setting("mlp", steps=1)
    meta = MetaParams(meta.params, jnp.asarray(np.log(alpha)))
    rule = lambda meta: jnp.exp(meta.rates)  # noqa: E731
    exact = run(Exact(), objective, adapter, rule, meta, episode)[1].rates
    first = run(FirstOrder(), objective, adapter, rule, meta, episode)[1].rates
    assert float(exact) != 0
    assert float(first) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("tasks_at_once", [1, 2, 6])
def test_mapping_equals_a_loop_in_any_order(name, tasks_at_once):
    objective, adapter, alpha, meta, _ = setting("mlp", name)
    rule = ALGORITHMS[name].meta_gradient()
    episodes = batch_of_episodes(regression_problem()[2], jax.random.key(7), 6)
    one = lambda episode: rule(objective, adapter, scalar_rate(alpha), meta, episode)  # noqa: E731
    compiled = jax.jit(one)
    singles = [compiled(jax.tree.map(lambda leaf, i=i: leaf[i], episodes)) for i in range(6)]
    expected = jax.tree.map(lambda *leaves: sum(leaves) / 6, *[g for _, g in singles])
    shuffled = jax.tree.map(lambda leaf: leaf[jnp.array([3, 1, 5, 0, 4, 2])], episodes)
    outcomes, found = jax.jit(lambda e: mean_over_tasks(one, e, tasks_at_once))(shuffled)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    losses = [float(outcome.loss) for outcome, _ in singles]
    np.testing.assert_allclose(np.sort(outcomes.loss), np.sort(losses), rtol=1e-9)


@pytest.mark.parametrize("name", ["maml", "fomaml", "hfmaml", "anil"])
@pytest.mark.parametrize("tasks_at_once", [None, 3])
def test_the_gradient_of_a_sum_is_the_sum_of_gradients(name, tasks_at_once):
    # One rate per parameter, so that the shared way back through the rates is in it. The Hessian-free difference
    # depends on the length of each task's own gradient, which a mean taken too early would change.
    objective, adapter, alpha, meta, _ = setting("mlp", name)
    rule = ALGORITHMS[name].meta_gradient()
    meta = MetaParams(
        meta.params, jax.tree.map(lambda leaf: jnp.full_like(leaf, alpha), meta.params)
    )
    bound = TaskGradient(rule, objective, adapter, lambda meta: meta.rates, meta)
    episodes = batch_of_episodes(regression_problem()[2], jax.random.key(7), 6)
    apart = jax.jit(lambda e: mean_over_tasks(bound.__call__, e, tasks_at_once))(episodes)
    together = jax.jit(lambda e: mean_over_tasks(bound, e, tasks_at_once))(episodes)
    for a, b in zip(*map(jax.tree.leaves, (together, apart)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_batch_norm_is_right_side_by_side():
    # Where others go wrong: second derivatives of batch normalisation mapped over tasks whose parameters differ.
    # `benchmarks/speed_rows/batch_norm_trap.py` shows a library whose derivative is off by half a percent here.
    objective, adapter, alpha, meta, _ = setting("conv4", steps=2)
    episodes = batch_of_episodes(convolution_problem()[2], jax.random.key(3), 3)
    bound = lambda meta: TaskGradient(Exact(), objective, adapter, scalar_rate(alpha), meta)  # noqa: E731

    @jax.jit
    def mean_loss(meta):
        one = adapted_query_loss
        return jnp.mean(jax.lax.map(lambda e: one(objective, adapter, alpha, e)(meta), episodes))

    gradient = jax.jit(lambda meta: mean_over_tasks(bound(meta), episodes)[1])(meta)
    direction = random_like(meta, 5)
    expected = directional_difference(mean_loss, meta, direction)
    assert inner_product(gradient, direction) == pytest.approx(expected, rel=1e-6)


def test_features_computed_once_give_the_gradient_of_anil():
    model, objective, family = convolution_problem()
    parts = Objective.of(model.apply, family.kind, features=model.features, head=model.head)
    _, adapter, alpha, meta, episode = setting("conv4", "anil", steps=3)
    outcome, found = run(Exact(), parts, adapter, scalar_rate(alpha), meta, episode)
    expected_outcome, expected = run(Exact(), objective, adapter, scalar_rate(alpha), meta, episode)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13)
    assert float(jnp.abs(found.params["block1"]["kernel"]).max()) > 1e-6
    assert float(outcome.loss) == pytest.approx(float(expected_outcome.loss), rel=1e-12)


def test_a_group_size_that_does_not_divide_is_refused():
    objective, adapter, alpha, meta, _ = setting("mlp")
    episodes = batch_of_episodes(regression_problem()[2], jax.random.key(7), 6)
    one = lambda e: Exact()(objective, adapter, scalar_rate(alpha), meta, e)  # noqa: E731
    with pytest.raises(ValueError, match="tasks_at_once is 4, which does not divide the 6 tasks"):
        mean_over_tasks(one, episodes, 4)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_new_rate_does_not_retrace(name):
    objective, adapter, _, meta, episode = setting("mlp", name)
    rule, traces = ALGORITHMS[name].meta_gradient(), []

    @jax.jit
    def step(alpha, meta):
        traces.append(None)
        return rule(objective, adapter, lambda _: alpha, meta, episode)

    results = [step(jnp.asarray(alpha), meta)[0].loss for alpha in (0.01, 0.1, 0.5)]
    assert len(traces) == 1
    if name != "erm":
        assert len({float(loss) for loss in results}) == 3


def test_hessian_free_guards():
    # rho = 0 sets no cap, a zero outer gradient has a zero product, and a tight cap only adds rounding on
    # quadratics, whose difference quotient is exact for every displacement.
    objective = Objective.of(lambda params, x: x @ params, "regression")
    rng = np.random.default_rng(5)
    episode = quadratic_task(rng)
    weights = jnp.zeros((4, 1))
    solved = Episode(*(Batch(b.x, jnp.zeros_like(b.y)) for b in (episode.support, episode.query)))
    adapter = ALGORITHMS["hfmaml"].adapter(None, 2)
    for rho in (0.0, 1.0):
        _, gradient = run(
            HessianFree(rho), objective, adapter, scalar_rate(0.1), MetaParams(weights), solved
        )
        np.testing.assert_array_equal(gradient.params, np.zeros((4, 1)))
    weights = jnp.asarray(rng.normal(size=(4, 1)))
    expected = closed_form(weights, episode, 0.1, 2, "exact")
    for rho in (0.0, 1.0, 1e3):
        _, gradient = run(
            HessianFree(rho), objective, adapter, scalar_rate(0.1), MetaParams(weights), episode
        )
        np.testing.assert_allclose(gradient.params, expected, rtol=1e-6)


def test_the_printed_difference_moves_the_parameters_by_its_own_distance():
    # (I - alpha H) g_o with H g_o by a central difference 1 / (6 rho alpha) ahead and behind, in plain NumPy.
    objective = Objective(lambda params, x: params - x, lambda out, y: jnp.mean(jnp.cosh(out) * y))
    rng, alpha, rho = np.random.default_rng(6), 0.1, 2.0
    episode = Episode(*(Batch(rng.normal(size=(5, 3)), np.ones((5, 1))) for _ in range(2)))
    w = rng.normal(size=3)

    def slope(at, batch):
        return np.sinh(at - batch.x).mean(axis=0) / 3

    outer = slope(w - alpha * slope(w, episode.support), episode.query)
    ahead = outer / np.linalg.norm(outer) / (6 * rho * alpha)
    change = slope(w + ahead, episode.support) - slope(w - ahead, episode.support)
    expected = outer - alpha * change * 6 * rho * alpha * np.linalg.norm(outer) / 2
    for as_printed in (True, False):
        rule = HessianFree(rho, as_printed)
        adapter = ALGORITHMS["hfmaml"].adapter(None, 1)
        _, gradient = run(rule, objective, adapter, scalar_rate(alpha), MetaParams(w), episode)
        assert np.allclose(gradient.params, expected, rtol=1e-9) == as_printed


def test_float32_stays_float32():
    # A float64 constant anywhere in the chain would promote, or raise under strict promotion.
    objective, adapter, _, meta, episode = setting("mlp")
    to32 = lambda tree: jax.tree.map(  # noqa: E731
        lambda leaf: leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        tree,
    )
    for name in ALGORITHMS:
        rule = ALGORITHMS[name].meta_gradient()
        rate = scalar_rate(jnp.float32(0.01))
        _, gradient = run(rule, objective, adapter, rate, to32(meta), to32(episode))
        assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
