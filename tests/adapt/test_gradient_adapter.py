"""The inner loop against the closed form on quadratics, for every kind of rate and mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep import PerStep
from metastep._errors import InputError
from metastep.adapt import GradientAdapter

SHOTS = 7
# Up to five steps are laid out one after another, more go through a loop.
STEPS = [0, 1, 2, 5, 6, 9]


class Quadratic:
    """(1/K) ||X w - y||^2 over two leaves, body (3, 2) and head (2,), in one vector of 8."""

    def __init__(self, rng):
        self.x, self.y = rng.normal(size=(SHOTS, 8)), rng.normal(size=SHOTS)
        self.hessian = 2 / SHOTS * self.x.T @ self.x
        self.optimum = np.linalg.lstsq(self.x, self.y)[0]

    @staticmethod
    def split(vector):
        return {"body": vector[:6].reshape(3, 2), "head": vector[6:]}

    @staticmethod
    def join(params):
        return np.concatenate([np.ravel(params["body"]), np.ravel(params["head"])])

    def loss(self, params):
        joined = jnp.concatenate([params["body"].reshape(-1), params["head"]])
        return jnp.sum((jnp.asarray(self.x) @ joined - jnp.asarray(self.y)) ** 2) / SHOTS

    def loss_value(self, vector):
        return np.mean((self.x @ vector - self.y) ** 2)

    def gradient(self, vector):
        return 2 / SHOTS * self.x.T @ (self.x @ vector - self.y)


@pytest.fixture
def task(rng):
    return Quadratic(rng)


def adapt(adapter, task, start, alpha):
    """The adapter, compiled with the rate as an argument."""
    run = jax.jit(lambda params, alpha: adapter(jax.value_and_grad(task.loss), params, alpha))
    return run(jax.tree.map(jnp.asarray, task.split(start)), alpha)


@pytest.mark.parametrize("steps", STEPS)
def test_steps_on_a_quadratic_are_powers_of_a_matrix(rng, task, steps):
    # w_k - w* = (I - alpha H)^k (w_0 - w*), and the losses reported are those before each step.
    start, alpha = rng.normal(size=8), 0.1
    contraction = np.eye(8) - alpha * task.hessian
    offsets = [
        np.linalg.matrix_power(contraction, k) @ (start - task.optimum) for k in range(steps + 1)
    ]
    adapted, info = adapt(GradientAdapter(steps), task, start, alpha)
    np.testing.assert_allclose(task.join(adapted) - task.optimum, offsets[-1], atol=1e-12)
    assert info.losses.shape == (steps,)
    expected = [task.loss_value(offset + task.optimum) for offset in offsets[:-1]]
    np.testing.assert_allclose(info.losses, expected, rtol=1e-10)


@pytest.mark.parametrize("steps", [0, 3, 7])
def test_rates_may_change_from_step_to_step(rng, task, steps):
    # A product of matrices that do not commute with the order of the rates: shuffled rates would show.
    start, rates = rng.normal(size=8), np.linspace(0.02, 0.3, steps)
    offset = start - task.optimum
    for rate in rates:
        offset = offset - rate * task.hessian @ offset
    adapted, _ = adapt(GradientAdapter(steps), task, start, PerStep(jnp.asarray(rates)))
    np.testing.assert_allclose(task.join(adapted) - task.optimum, offset, atol=1e-12)


RATES = {
    "per layer": lambda rng: ({"body": 0.02, "head": 0.2}, np.repeat([0.02, 0.2], [6, 2])),
    "per parameter": lambda rng: (lambda v: (Quadratic.split(v), v))(rng.uniform(0.01, 0.1, 8)),
    "negative": lambda rng: (-0.05, -0.05),
}


@pytest.mark.parametrize("steps", [2, 6])
@pytest.mark.parametrize("kind", RATES)
@pytest.mark.parametrize("per_step", [False, True])
def test_rates_may_differ_between_parameters(rng, task, steps, kind, per_step):
    start = rng.normal(size=8)
    rate, factors = RATES[kind](rng)
    growth = np.arange(1, steps + 1) if per_step else np.ones(steps)
    vector = start
    for factor in growth:
        vector = vector - factor * factors * task.gradient(vector)
    if per_step:
        rate = PerStep(
            jax.tree.map(lambda leaf: jnp.asarray(np.multiply.outer(growth, leaf)), rate)
        )
    adapted, _ = adapt(GradientAdapter(steps), task, start, jax.tree.map(jnp.asarray, rate))
    np.testing.assert_allclose(task.join(adapted), vector, atol=1e-12)


def head_only(params):
    return {"body": False, "head": True}


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_a_mask_moves_the_head_alone(rng, task, steps):
    start, alpha = rng.normal(size=8), 0.1
    vector = start.copy()
    for _ in range(steps):
        vector[6:] -= alpha * task.gradient(vector)[6:]
    adapted, info = adapt(GradientAdapter(steps, head_only), task, start, alpha)
    np.testing.assert_array_equal(adapted["body"], task.split(start)["body"])  # to the last bit
    np.testing.assert_allclose(adapted["head"], vector[6:], atol=1e-12)
    assert info.losses.shape == (steps,)


def test_masked_parameters_survive_a_gradient_that_is_not_finite():
    # 0 * nan is nan: a mask that multiplied would spoil the body.
    adapter = GradientAdapter(2, head_only)
    gradient = lambda params: (  # noqa: E731
        jnp.zeros(()),
        {"body": jnp.full(2, jnp.nan), "head": jnp.ones(1)},
    )
    adapted, _ = adapter(gradient, {"body": jnp.ones(2), "head": jnp.ones(1)}, 0.5)
    np.testing.assert_array_equal(adapted["body"], [1, 1])
    np.testing.assert_array_equal(adapted["head"], [0])


def test_no_steps_change_nothing(rng, task):
    start = rng.normal(size=8)
    adapted, info = adapt(GradientAdapter(0), task, start, 0.1)
    np.testing.assert_array_equal(task.join(adapted), start)
    assert info.losses.shape == (0,)


def test_restrict_zeroes_what_does_not_adapt(rng):
    tree = {"body": jnp.asarray(rng.normal(size=(3, 2))), "head": jnp.asarray(rng.normal(size=2))}
    restricted = GradientAdapter(1, head_only).restrict(tree)
    assert not restricted["body"].any()
    np.testing.assert_array_equal(restricted["head"], tree["head"])
    assert GradientAdapter(1).restrict(tree) is tree


def test_a_new_rate_does_not_retrace(rng, task):
    traces = []

    @functools.partial(jax.jit)
    def run(params, alpha):
        traces.append(None)
        return GradientAdapter(2)(jax.value_and_grad(task.loss), params, alpha)[0]

    start = jax.tree.map(jnp.asarray, task.split(rng.normal(size=8)))
    results = [run(start, jnp.asarray(alpha)) for alpha in (0.0, 0.1, 0.2)]
    assert len(traces) == 1
    np.testing.assert_array_equal(results[0]["head"], start["head"])
    assert not np.array_equal(results[1]["head"], results[2]["head"])


@pytest.mark.parametrize("steps", [-1, 1.0, True, "2"])
def test_steps_are_counted(steps):
    with pytest.raises(InputError) as caught:
        GradientAdapter(steps)
    assert str(caught.value) == f"steps is {steps!r}; it must be a whole number of at least 0"


@pytest.mark.parametrize(
    ("values", "given"),
    [(np.ones(3), 3), ({"body": np.ones((2, 3, 2)), "head": np.ones(3)}, 3), (np.ones(()), "no")],
)
def test_a_schedule_must_have_one_rate_per_step(task, values, given):
    message = f"alpha has {given} rates along its first axis, but there are 2 inner steps; give one rate per step"
    with pytest.raises(InputError) as caught:
        adapt(GradientAdapter(2), task, np.ones(8), PerStep(jax.tree.map(jnp.asarray, values)))
    assert str(caught.value) == message


def test_single_precision_in_single_precision_out():
    params = {"body": jnp.ones((3, 2), "float32"), "head": jnp.ones(2, "float32")}
    gradient = jax.value_and_grad(
        lambda params: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    )
    for steps in (2, 7):
        for alpha in (0.1, jnp.float64(0.1), PerStep(jnp.full(steps, 0.1))):
            adapted, info = jax.eval_shape(
                functools.partial(GradientAdapter(steps), gradient), params, alpha
            )
            leaves = jax.tree.leaves((adapted, info))
            assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
