"""Convergence theory against NumPy, central differences and runs of the algorithms themselves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles_b as oracle
import pytest

from metastep._errors import InputError
from metastep.theory import convergence, fixed_points, hessian_free, objective, smoothness

ALGORITHMS = ["maml", "fomaml", "hfmaml"]
CONSTANTS = {
    "alpha": 0.03,
    "smoothness": 2.5,
    "hessian_lipschitz": 0.7,
    "sigma": 1.3,
    "sigma_tilde": 2.1,
    "num_tasks": 25,
    "support_size": 10,
    "query_size": 7,
}
LOCAL = {name: CONSTANTS[name] for name in ("alpha", "smoothness", "hessian_lipschitz")}
NORMS = np.array([0.2, 1.7, 3.1])


# f(w; x, y) = mean log cosh(x w - y): L = max |x|^2 mean and rho are known, and it is not
# quadratic.
def log_cosh_loss(params, data):
    x, y = data
    return jnp.mean(jnp.log(jnp.cosh(x @ params["w"] + params["b"] - y)))


def numpy_loss(weights, data):
    x, y = data
    return np.mean(np.log(np.cosh(x @ weights[:-1] + weights[-1] - y)))


def numpy_gradient(weights, data):
    x, y = data
    slope = np.tanh(x @ weights[:-1] + weights[-1] - y)
    return np.concatenate([x.T @ slope, [slope.sum()]]) / len(y)


@pytest.fixture
def tasks(rng):
    return rng.standard_normal((4, 6, 2)), 2 * rng.standard_normal((4, 6))


@pytest.fixture
def weights(rng):
    return rng.standard_normal(3)


def as_params(weights):
    return {"b": jnp.asarray(weights[2]), "w": jnp.asarray(weights[:2])}


def flat(params):
    return np.concatenate([np.asarray(params["w"]), [float(params["b"])]])


def test_objective_and_its_gradient_against_numpy(tasks, weights):
    split = list(zip(*tasks, strict=True))

    def reference(w):
        return oracle.meta_objective(numpy_loss, numpy_gradient, split, w, 0.4)

    ours = objective.meta_objective(log_cosh_loss, as_params(weights), tasks, 0.4)
    np.testing.assert_allclose(ours, reference(weights), rtol=1e-12)
    gradient = objective.meta_gradient(log_cosh_loss, as_params(weights), tasks, 0.4)
    np.testing.assert_allclose(
        flat(gradient), oracle.central_difference(reference, weights), rtol=1e-7, atol=1e-9
    )


def test_gradient_is_equation_5(tasks, weights):
    params = as_params(weights)

    def one_task(x, y):
        gradient = jax.grad(log_cosh_loss)
        step = jax.tree.map(lambda w, g: w - 0.4 * g, params, gradient(params, (x, y)))
        outer = gradient(step, (x, y))
        _, product = jax.jvp(lambda p: gradient(p, (x, y)), (params,), (outer,))
        return jax.tree.map(lambda g, h: g - 0.4 * h, outer, product)

    expected = jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(one_task)(*map(jnp.asarray, tasks)))
    ours = objective.meta_gradient(log_cosh_loss, params, tasks, 0.4)
    np.testing.assert_allclose(flat(ours), flat(expected), rtol=1e-10)


def test_sampled_objective_averages_over_the_batches_of_each_task(tasks, weights, rng):
    draws = rng.integers(0, 6, (4, 5, 2))  # tasks, draws, examples per draw
    supports = tuple(np.stack([leaf[i][draws[i]] for i in range(4)]) for leaf in tasks)

    def reference(w):
        values = [
            numpy_loss(
                w - 0.4 * numpy_gradient(w, (supports[0][i, j], supports[1][i, j])),
                (tasks[0][i], tasks[1][i]),
            )
            for i in range(4)
            for j in range(5)
        ]
        return np.mean(values)

    arguments = (log_cosh_loss, as_params(weights), tasks, supports, 0.4)
    np.testing.assert_allclose(
        objective.sampled_meta_objective(*arguments), reference(weights), rtol=1e-12
    )
    np.testing.assert_allclose(
        flat(objective.sampled_meta_gradient(*arguments)),
        oracle.central_difference(reference, weights),
        rtol=1e-7,
        atol=1e-9,
    )


def test_sampled_objective_with_whole_tasks_is_the_objective(tasks, weights):
    whole = tuple(leaf[:, None] for leaf in tasks)
    np.testing.assert_allclose(
        objective.sampled_meta_objective(log_cosh_loss, as_params(weights), tasks, whole, 0.3),
        objective.meta_objective(log_cosh_loss, as_params(weights), tasks, 0.3),
        rtol=1e-14,
    )


def test_objective_ignores_the_order_of_tasks_and_at_alpha_0_is_the_mean_loss(tasks, weights):
    params = as_params(weights)
    flipped = tuple(leaf[::-1] for leaf in tasks)
    np.testing.assert_allclose(
        objective.meta_objective(log_cosh_loss, params, flipped, 0.3),
        objective.meta_objective(log_cosh_loss, params, tasks, 0.3),
        rtol=1e-13,
    )
    plain = np.mean([numpy_loss(weights, task) for task in zip(*tasks, strict=True)])
    np.testing.assert_allclose(
        objective.meta_objective(log_cosh_loss, params, tasks, 0.0), plain, rtol=1e-13
    )


def test_objective_under_jit_and_in_float32(tasks, weights):
    params = as_params(weights)
    compiled = jax.jit(lambda p, a: objective.meta_objective(log_cosh_loss, p, tasks, a))
    np.testing.assert_allclose(
        compiled(params, 0.3),
        objective.meta_objective(log_cosh_loss, params, tasks, 0.3),
        rtol=1e-13,
    )
    small = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    small_tasks = tuple(leaf.astype(np.float32) for leaf in tasks)
    value = objective.meta_objective(log_cosh_loss, small, small_tasks, 0.3)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, compiled(params, 0.3), rtol=1e-5)


def test_tasks_that_do_not_fit_are_named(tasks, weights):
    params = as_params(weights)
    with pytest.raises(InputError, match=r"tasks has arrays with leading axes \[\(3,\), \(4,\)\]"):
        objective.meta_objective(log_cosh_loss, params, (tasks[0], tasks[1][:3]), 0.1)
    with pytest.raises(InputError, match=r"tasks has leading axes \(0,\); give at least one task"):
        objective.meta_objective(log_cosh_loss, params, (tasks[0][:0], tasks[1][:0]), 0.1)
    supports = tuple(leaf[:3, None] for leaf in tasks)
    with pytest.raises(InputError, match="supports has 3 tasks and tasks has 4"):
        objective.sampled_meta_gradient(log_cosh_loss, params, tasks, supports, 0.1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_formulas_against_numpy(algorithm):
    np.testing.assert_allclose(
        smoothness.meta_smoothness(NORMS, **LOCAL),
        oracle.smoothness(NORMS, 0.03, 2.5, 0.7),
        rtol=1e-14,
    )
    np.testing.assert_allclose(
        smoothness.meta_step_size(algorithm, NORMS, **LOCAL),
        oracle.step_size(algorithm, NORMS, 0.03, 2.5, 0.7),
        rtol=1e-14,
    )
    np.testing.assert_allclose(
        convergence.error_floor(algorithm, **CONSTANTS),
        oracle.error_floor(algorithm, CONSTANTS),
        rtol=1e-13,
    )
    # A rough Hessian: the second branch of the maximum.
    rough = CONSTANTS | {"hessian_lipschitz": 300.0, "sigma_tilde": 30.0}
    np.testing.assert_allclose(
        convergence.error_floor(algorithm, **rough),
        oracle.error_floor(algorithm, rough),
        rtol=1e-13,
    )
    for epsilon in (1e-3, 3.0):
        np.testing.assert_allclose(
            convergence.iteration_bound(algorithm, epsilon=epsilon, initial_gap=4.0, **CONSTANTS),
            oracle.iteration_bound(algorithm, CONSTANTS, epsilon, 4.0, 1600),
            rtol=1e-13,
        )


def test_batch_sizes_by_hand():
    constants = {
        "alpha": 0.1,
        "smoothness": 1.0,
        "hessian_lipschitz": 30.0,
        "sigma": 2.0,
        "sigma_tilde": 1.5,
        "sigma_hessian": 20.0,
    }
    # B' = (30 * 0.1 * 2)^2 / 2 = 18; D_beta = (2 * 30 * 0.1 * 1.5)^2 = 81
    # D_h: maml 2 * 0.01 * 400 = 8; hfmaml 36 * (0.01 * 30 * 1.5)^2 = 7.29
    sizes = {
        name: tuple(
            round(float(size)) for size in smoothness.batch_size_conditions(name, **constants)
        )
        for name in ALGORITHMS
    }
    assert sizes["maml"][0] == 20
    assert sizes["maml"][1] in (18, 19)  # 18 up to rounding
    assert sizes["maml"][2] in (81, 82)
    assert sizes["maml"][3] in (8, 9)
    assert sizes["fomaml"][3] == 0
    assert sizes["hfmaml"][3] == 8


def test_batch_sizes_without_noise_are_one_and_dimensionless():
    still = smoothness.batch_size_conditions("maml", sigma=0.0, sigma_tilde=0.0, **LOCAL)
    assert [float(size) for size in still] == [20, 1, 1, 1]
    # The same problem in other units of length (w -> 1000 w): L / 1e6, rho / 1e9, sigma / 1e3.
    one = {"alpha": 0.1, "smoothness": 1.0, "hessian_lipschitz": 40.0, "sigma": 3.0}
    noise = {"sigma_tilde": 5.0, "sigma_hessian": 50.0}
    scaled = {"alpha": 1e5, "smoothness": 1e-6, "hessian_lipschitz": 40e-9, "sigma": 3e-3}
    scaled_noise = {"sigma_tilde": 5e-3, "sigma_hessian": 50e-6}
    for algorithm in ALGORITHMS:
        np.testing.assert_allclose(
            smoothness.batch_size_conditions(algorithm, **one, **noise),
            smoothness.batch_size_conditions(algorithm, **scaled, **scaled_noise),
            atol=1,  # a size that is whole may round up either way
        )


def test_smoothness_bounds_the_change_of_the_meta_gradient(rng):
    """On random pairs of points; log cosh has second derivative <= 1 and third <= 0.77."""
    x, y = rng.standard_normal((3, 5, 2)), rng.standard_normal((3, 5))
    rows = np.concatenate([x, np.ones((3, 5, 1))], axis=-1)
    norms = np.linalg.norm(rows, axis=-1)
    constants = {
        "smoothness": (norms**2).mean(1).max(),
        "hessian_lipschitz": 4 / (3 * math.sqrt(3)) * (norms**3).mean(1).max(),
    }
    alpha = 1 / constants["smoothness"]
    gradient = jax.jit(lambda p: objective.meta_gradient(log_cosh_loss, p, (x, y), alpha))
    for _ in range(50):
        w, u = rng.standard_normal((2, 3)) * rng.uniform(0.01, 3)
        bounds = [
            smoothness.meta_smoothness(
                [np.linalg.norm(numpy_gradient(v, (x[i], y[i]))) for i in range(3)],
                alpha=alpha,
                **constants,
            )
            for v in (w, u)
        ]
        change = np.linalg.norm(flat(gradient(as_params(w))) - flat(gradient(as_params(u))))
        assert change <= float(min(bounds)) * np.linalg.norm(w - u)


def test_sampling_bounds_hold_for_a_quadratic_with_noisy_examples(rng):
    """f(w; t) = (a_t / 2) w^2 - c_t w, one task; expectations over batches of D by Monte Carlo."""
    a, c = rng.uniform(0.5, 1.5, 400), rng.standard_normal(400)
    alpha, w, size = 0.8 / a.mean(), 1.7, 3
    draws = rng.integers(0, 400, (20_000, size))
    slope, curvature = (a[draws] * w - c[draws]).mean(1), a[draws].mean(1)
    adapted = w - alpha * slope
    exact_step = w - alpha * (a.mean() * w - c.mean())
    bias = abs(a.mean() * (adapted.mean() - exact_step))
    noise = {"sigma_tilde": (a * w - c).std(), "support_size": size}
    assert bias <= convergence.adaptation_bias_bound(alpha=alpha, smoothness=a.mean(), **noise)
    sampled = np.mean((1 - alpha * curvature) * (a.mean() * adapted - c.mean()))
    exact = (1 - alpha * a.mean()) * (a.mean() * exact_step - c.mean())
    bound = convergence.sampling_gap_bound(
        alpha=alpha, smoothness=a.mean(), sigma_hessian=a.std(), **noise
    )
    assert 0 < abs(sampled - exact) <= bound
    expected = 2 * alpha * a.mean() * noise["sigma_tilde"] / math.sqrt(3)
    expected += alpha**2 * a.mean() * a.std() * noise["sigma_tilde"] / 3
    np.testing.assert_allclose(bound, expected, rtol=1e-12)


def test_floors_shrink_with_batches_except_first_order():
    big = CONSTANTS | {"num_tasks": 10**9, "support_size": 10**9, "query_size": 10**9}
    assert convergence.error_floor("maml", **big) < 1e-3
    assert convergence.error_floor("hfmaml", **big) < 1e-3
    bias = math.sqrt(14 * (1 + 0.7 * 0.03 * 1.3 / 2.5) * 20) * 1.3 * 0.03 * 2.5
    assert float(convergence.error_floor("fomaml", **big)) == pytest.approx(bias, rel=1e-3)


def test_iterations_without_noise_are_the_first_branch_and_differentiable():
    still = CONSTANTS | {"sigma": 0.0, "sigma_tilde": 0.0}

    def bound(epsilon):
        return convergence.iteration_bound("maml", epsilon=epsilon, initial_gap=1.0, **still)

    expected = 1600 * (2.5 + 0.7 * 0.03 * 0.1) / 0.1**2
    np.testing.assert_allclose(bound(0.1), expected, rtol=1e-13)
    assert jnp.isfinite(jax.grad(bound)(0.1))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fixed_points_are_where_the_algorithm_comes_to_rest(rng, algorithm):
    factors = rng.standard_normal((3, 3, 4))
    hessians = factors @ factors.swapaxes(1, 2) / 3
    minimisers = rng.standard_normal((3, 3))
    alpha = 0.5 / max(np.linalg.norm(h, 2) for h in hessians)
    ours = fixed_points.quadratic_fixed_point(algorithm, hessians, minimisers, alpha)
    reference = oracle.quadratic_fixed_point_by_running(algorithm, hessians, minimisers, alpha)
    np.testing.assert_allclose(ours, reference, rtol=1e-8)
    rest = fixed_points.quadratic_meta_gradient(algorithm, ours, hessians, minimisers, alpha)
    np.testing.assert_allclose(rest, 0, atol=1e-13)


def test_first_order_bias_is_of_order_alpha(rng):
    factors = rng.standard_normal((3, 3, 4))
    hessians, minimisers = factors @ factors.swapaxes(1, 2), rng.standard_normal((3, 3))

    def floor(alpha):
        rest = fixed_points.quadratic_fixed_point("fomaml", hessians, minimisers, alpha)
        return jnp.linalg.norm(
            fixed_points.quadratic_meta_gradient("maml", rest, hessians, minimisers, alpha)
        )

    assert float(floor(1e-4) / floor(1e-3)) == pytest.approx(0.1, rel=0.05)


def test_quadratic_meta_gradient_is_the_gradient_of_the_objective(rng):
    factors = rng.standard_normal((3, 3, 4))
    hessians, minimisers = factors @ factors.swapaxes(1, 2), rng.standard_normal((3, 3))
    params = jnp.asarray(rng.standard_normal(3))

    def quadratic(w, task):
        return (w - task[1]) @ task[0] @ (w - task[1]) / 2

    np.testing.assert_allclose(
        fixed_points.quadratic_meta_gradient("maml", params, hessians, minimisers, 0.1),
        objective.meta_gradient(quadratic, params, (hessians, minimisers), 0.1),
        rtol=1e-10,
    )


def test_hessian_free_rule_its_default_and_its_cap():
    rule = hessian_free.hessian_free_delta
    np.testing.assert_allclose(
        rule([2.0, 4.0], alpha=0.1, hessian_lipschitz=3.0), [1 / 3.6, 1 / 7.2], rtol=1e-14
    )
    for norm, alpha, rho in ((0.0, 0.1, 3.0), (2.0, 0.0, 3.0), (2.0, 0.1, 0.0)):
        assert rule(norm, alpha=alpha, hessian_lipschitz=rho) == 1e-3
        assert rule(norm, alpha=alpha, hessian_lipschitz=rho, default=0.5) == 0.5
    step = hessian_free.hessian_free_step
    balanced = np.finfo(np.float64).eps ** (1 / 3)
    np.testing.assert_allclose(step(2.0, alpha=0.1, hessian_lipschitz=3.0), balanced / 2)
    np.testing.assert_allclose(step(2.0, alpha=0.1, hessian_lipschitz=1e8), 1 / 1.2e8)
    np.testing.assert_allclose(step(0.0, alpha=0.1, hessian_lipschitz=3.0), balanced)
    assert jnp.isfinite(jax.grad(lambda n: rule(n, alpha=0.1, hessian_lipschitz=3.0))(0.0))


def test_hessian_vector_error_bound_holds_and_is_nearly_attained():
    def gradient(w):
        return np.abs(w) * w / 2  # f'' = |w| has rho = 1, and its kink is the worst case

    delta, v = 0.01, 3.0
    error = abs((gradient(delta * v) - gradient(-delta * v)) / (2 * delta) - 0.0 * v)
    bound = float(hessian_free.hessian_vector_error_bound(delta, v, 1.0))
    assert bound == pytest.approx(0.01 * 9 / 2, rel=1e-14)
    assert error == pytest.approx(bound, rel=1e-12)


@pytest.mark.parametrize(("algorithm", "limit"), [("maml", 6), ("fomaml", 10), ("hfmaml", 6)])
def test_alpha_beyond_the_theorem_is_refused(algorithm, limit):
    largest = 1 / (limit * 2.5)
    at_limit = CONSTANTS | {"alpha": largest}
    beyond = CONSTANTS | {"alpha": largest * 1.001}
    assert convergence.error_floor(algorithm, **at_limit) > 0
    message = rf"the theorem for {algorithm} holds up to 1/\({limit} smoothness\) = {largest:.6g}"
    with pytest.raises(InputError, match=message):
        convergence.error_floor(algorithm, **beyond)
    with pytest.raises(InputError, match=message):
        convergence.iteration_bound(algorithm, epsilon=0.1, initial_gap=1.0, **beyond)
    local = {name: beyond[name] for name in LOCAL}
    with pytest.raises(InputError, match=message):
        smoothness.meta_step_size(algorithm, NORMS, **local)
    with pytest.raises(InputError, match=message):
        smoothness.batch_size_conditions(algorithm, sigma=1.0, sigma_tilde=1.0, **local)
    with pytest.raises(InputError, match=r"the lemma holds up to 1/\(smoothness\) = 0.4"):
        smoothness.meta_smoothness(NORMS, **(LOCAL | {"alpha": 0.41}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": -1.0}, "sigma is -1; it must not be negative"),
        ({"smoothness": 0.0}, "smoothness is 0; it must be above 0"),
        ({"num_tasks": 0}, "num_tasks is 0; it must be above 0"),
        ({"sigma_tilde": np.nan}, "sigma_tilde holds 1 NaN or infinite"),
        ({"alpha": -0.1}, "alpha is -0.1; it must not be negative"),
    ],
)
def test_bad_constants_are_named(change, message):
    with pytest.raises(InputError, match=message):
        convergence.error_floor("maml", **(CONSTANTS | change))


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="algorithm is 'sgd'; choose one of: fomaml, hfmaml, maml"):
        convergence.error_floor("sgd", **CONSTANTS)
    with pytest.raises(InputError, match=r"gradient_norms has shape \(0,\)"):
        smoothness.meta_smoothness([], **LOCAL)
    with pytest.raises(InputError, match="gradient_norms is an array with the entry -1"):
        smoothness.meta_smoothness([1.0, -1.0], **LOCAL)
    with pytest.raises(InputError, match="hessians is not symmetric"):
        fixed_points.quadratic_fixed_point("maml", [[[1.0, 2.0], [0.0, 1.0]]], [[0.0, 0.0]], 0.1)
    with pytest.raises(InputError, match=r"minimisers has shape \(2, 2\); it must have shape"):
        fixed_points.quadratic_fixed_point("maml", [np.eye(2)], np.zeros((2, 2)), 0.1)


def test_jit_vmap_and_float32():
    floor = jax.jit(lambda a: convergence.error_floor("maml", **(CONSTANTS | {"alpha": a})))
    eager = convergence.error_floor("maml", **CONSTANTS)
    np.testing.assert_allclose(floor(0.03), eager, rtol=1e-13)
    alphas = jnp.array([0.01, 0.02])
    np.testing.assert_allclose(jax.vmap(floor)(alphas), [floor(a) for a in alphas], rtol=1e-13)
    numeric = (floor(0.03 + 1e-6) - floor(0.03 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(floor)(0.03), numeric, rtol=1e-6)
    norms = NORMS.astype(np.float32)
    assert smoothness.meta_smoothness(norms, **LOCAL).dtype == jnp.float32
    assert smoothness.meta_step_size("maml", norms, **LOCAL).dtype == jnp.float32
    points = fixed_points.quadratic_fixed_point(
        "maml", np.eye(2, dtype=np.float32)[None], np.ones((1, 2), np.float32), 0.1
    )
    assert points.dtype == jnp.float32
