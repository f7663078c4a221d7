"""What experiments share: evidence, errors of repeats, small networks, and the problem of the convergence theory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep import theory
from metastep.experiments.core import (
    from_to,
    lowest_point,
    standard_error,
    verdict_of_differences,
)
from metastep.experiments.logcosh import draw_problem, task_gradient_norms
from metastep.experiments.networks import network_learner, train, train_at_rates
from metastep.rates import FixedRate
from metastep.tasks import Sinusoid
from metastep.train import initial_state


def test_evidence_shows_the_smallest_and_the_largest():
    assert from_to([2.0, 0.12345, 1.0]) == "0.123 to 2"
    assert from_to((x for x in (0.5, 0.25)), ".0%") == "25% to 50%"


@pytest.mark.parametrize("best", [0.37, 0.02, 0.98])  # inside, and beside either end
def test_lowest_point_of_a_parabola_is_its_vertex(best):
    x = np.linspace(0, 1, 11)
    place, height = lowest_point(x.tolist(), (3 * (x - best) ** 2 + 2).tolist())
    assert place == pytest.approx(best)
    assert height == pytest.approx(2)


def test_standard_error_is_over_the_first_axis():
    repeats = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    np.testing.assert_allclose(standard_error(repeats), [2 / 3**0.5, 0.0])


@pytest.mark.parametrize(
    ("differences", "fewest", "verdict"),
    [
        ([1.0, 1.1, 0.9], 2, "holds"),
        ([-1.0, -1.1, -0.9], 2, "does not hold"),
        ([1.0, -1.0, 0.5], 2, "not tested"),  # within their scatter
        ([1.0, 1.1], 3, "not tested"),  # too few
        ([1.0], 2, "not tested"),
    ],
)
def test_paired_differences_are_judged_beyond_two_standard_errors(differences, fewest, verdict):
    assert verdict_of_differences(differences, fewest) == verdict


def test_trainings_side_by_side_are_those_of_one_rate_each():
    learner, family = network_learner((4,), 3, meta_lr=1e-2), Sinusoid(shots=5, queries=5)
    start_key, task_key = jax.random.split(jax.random.key(1))
    alphas, told = (0.01, 0.05), []
    states = train_at_rates(
        learner, family, initial_state(learner, start_key), jnp.asarray(alphas), task_key, 30
    )
    for index, alpha in enumerate(alphas):
        alone = train(
            dataclasses.replace(learner, rate=FixedRate(alpha)), family, start_key, task_key, 30,
            lambda done, total: told.append((done, total)),
        )  # fmt: skip
        for one, other in zip(
            jax.tree.leaves(alone), jax.tree.leaves(states.meta.params), strict=True
        ):
            np.testing.assert_allclose(one, other[index], rtol=1e-9)
    assert told[-1] == (30, 30)


@dataclasses.dataclass
class Sizes:
    tasks: int = 5
    points: int = 7
    dim: int = 2


def test_problem_knows_its_gradient_and_fills_in_its_constants():
    problem, w, small = draw_problem(Sizes(), 3, 1 / 6), np.array([0.7, -1.2]), 1e-6
    x, scales = np.asarray(problem.tasks.x), np.asarray(problem.tasks.y)[..., 0]
    assert problem.alpha == pytest.approx(1 / (6 * scales.max()))

    def slopes(at):
        return (scales[..., None] * np.tanh(at - x)).mean(1)  # (tasks, dim)

    def meta_loss(at):
        adapted = at - problem.alpha * slopes(at)
        return (scales[..., None] * np.log(np.cosh(adapted[:, None] - x))).sum(2).mean()

    steps = small * np.eye(2)
    numeric = [(meta_loss(w + step) - meta_loss(w - step)) / (2 * small) for step in steps]
    np.testing.assert_allclose(problem.gradient(jnp.asarray(w)), numeric, rtol=1e-7)
    assert problem.gradient_norm(jnp.asarray(w)) == pytest.approx(np.linalg.norm(numeric))
    norms = task_gradient_norms(jnp.asarray(w), problem.tasks)
    np.testing.assert_allclose(norms, np.linalg.norm(slopes(w), axis=1), rtol=1e-12)
    known = problem.constants
    expected = theory.sampling_gap_bound(
        alpha=problem.alpha, smoothness=known.smoothness, sigma_tilde=known.sigma_tilde,
        sigma_hessian=known.sigma_hessian, support_size=4.0,
    )  # fmt: skip
    assert problem.known(theory.sampling_gap_bound)(support_size=4.0) == expected
