"""Gram-space solutions against pseudo-inverses in parameter space, and what they refuse to return."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from metastep import theory
from metastep._errors import InputError
from metastep.theory import SolveStatus

GENERATOR = np.random.default_rng(3)
PSI = GENERATOR.normal(size=(4, 6, 50)) + 0.2
FLAT = PSI.reshape(24, 50)
GRAM = FLAT @ FLAT.T
LABELS = GENERATOR.normal(size=(4, 6))


def relu_gram(points):
    """Tangent kernel of a wide one-dimensional ReLU network: condition number beyond 1e15."""
    generator = np.random.default_rng(0)
    w, b, v = generator.normal(size=(3, 2000))
    active = np.maximum(np.outer(points, w) + b, 0)
    gate = (np.outer(points, w) + b > 0) * v
    return (active @ active.T + 1 + gate @ gate.T * (np.outer(points, points) + 1)) / 2000


def test_tied_solution_is_the_pseudo_inverse_for_every_alpha():
    expected = np.linalg.pinv(FLAT) @ LABELS.ravel()
    result = theory.minimum_norm_coefficients(GRAM, LABELS, 0.3)
    np.testing.assert_allclose(FLAT.T @ result.coefficients, expected, rtol=1e-9, atol=1e-12)
    assert result.status == SolveStatus.exact
    assert result.ridge == 0
    np.testing.assert_allclose(result.condition_number, np.linalg.cond(GRAM), rtol=1e-6)
    # The claim behind it: adapted features have the same least-norm solution at any alpha.
    for alpha in (0.0, 0.01, 0.3):
        stacked = np.concatenate(oracles.adapted(PSI, alpha))
        moved = [
            c @ np.linalg.pinv(p) @ y
            for c, p, y in zip(oracles.adapted(PSI, alpha), PSI, LABELS, strict=True)
        ]
        np.testing.assert_allclose(
            np.linalg.pinv(stacked) @ np.concatenate(moved), expected, rtol=1e-7, atol=1e-10
        )


@pytest.mark.parametrize("num_query", [1, 2, 4])
def test_split_solution_is_the_pseudo_inverse(num_query):
    result = theory.minimum_norm_coefficients(GRAM, LABELS, 0.02, num_query=num_query)
    expected = oracles.split_minimum_norm(PSI, LABELS, 0.02, num_query)
    np.testing.assert_allclose(FLAT.T @ result.coefficients, expected, rtol=1e-9, atol=1e-12)


def test_outputs_are_solved_side_by_side():
    labels = np.stack([LABELS, 2 * LABELS], axis=-1)
    result = theory.minimum_norm_coefficients(GRAM, labels, 0.02, num_query=2)
    single = theory.minimum_norm_coefficients(GRAM, LABELS, 0.02, num_query=2)
    assert result.coefficients.shape == (24, 2)
    np.testing.assert_allclose(result.coefficients[:, 1], 2 * single.coefficients, rtol=1e-9)


def test_ridge_is_relative_to_the_mean_diagonal():
    result = theory.minimum_norm_coefficients(GRAM, LABELS, ridge=0.1)
    ridge = 0.1 * np.trace(GRAM) / 24
    expected = np.linalg.solve(GRAM + ridge * np.eye(24), LABELS.ravel())
    np.testing.assert_allclose(result.coefficients, expected, rtol=1e-9)
    np.testing.assert_allclose(result.ridge, ridge, rtol=1e-12)
    assert result.status == SolveStatus.regularised


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("num_query", [0, 5])
def test_ill_conditioned_kernels_are_regularised_visibly(dtype, num_query):
    points = np.linspace(-5, 5, 240)
    gram = relu_gram(points).astype(dtype)
    labels = np.sin(points).reshape(40, 6).astype(dtype)
    result = theory.minimum_norm_coefficients(gram, labels, 0.01, num_query=num_query)
    assert result.status == SolveStatus.regularised
    assert result.coefficients.dtype == dtype
    assert result.ridge > 0
    if num_query == 0:
        fit = gram @ np.asarray(result.coefficients)
        assert np.mean((fit - np.sin(points)) ** 2) < 1e-2
    forced = theory.minimum_norm_coefficients(gram, labels, 0.01, num_query=num_query, ridge=0)
    assert forced.status == SolveStatus.ill_conditioned
    assert np.isnan(forced.coefficients).all()
    assert "NaN" in SolveStatus[forced.status]


def test_jit_and_gradient():
    def total(gram):
        return jnp.sum(
            theory.minimum_norm_coefficients(gram, LABELS, 0.02, num_query=2).coefficients ** 2
        )

    direction = GENERATOR.normal(size=(24, 24))
    direction = direction + direction.T
    small = 1e-5
    numeric = (total(GRAM + small * direction) - total(GRAM - small * direction)) / 2 / small
    exact = np.sum(jax.jit(jax.grad(total))(jnp.asarray(GRAM)) * direction)
    np.testing.assert_allclose(exact, numeric, rtol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_parabola_is_the_loss_of_a_parameter_step(tied):
    w, alphas = GENERATOR.normal(size=50) / 7, np.array([[0.0, 0.01], [-0.02, 0.3]])
    support, query = PSI[:, :4], PSI[:, :4] if tied else PSI[:, 4:]
    y, y_query = LABELS[:, :4], LABELS[:, :4] if tied else LABELS[:, 4:]
    cross = np.einsum("nqd,nkd->nqk", query, support)
    on_query = None if tied else query @ w - y_query
    losses = theory.gram_loss_parabola(cross, support @ w - y, on_query).at(alphas)
    assert losses.shape == (4, 2, 2)
    for task in range(4):
        for row, column in np.ndindex(2, 2):
            moved = oracles.step(w, support[task], y[task], alphas[row, column])
            loss = np.mean((query[task] @ moved - y_query[task]) ** 2)
            np.testing.assert_allclose(losses[task, row, column], loss, rtol=1e-9)


def test_mean_parabola_is_least_at_the_label_aware_rate():
    cross = np.einsum("nqd,nkd->nqk", PSI[:, 4:], PSI[:, :4])
    parabola = theory.gram_loss_parabola(cross, LABELS[:, :4], LABELS[:, 4:])
    best = theory.gram_label_aware_rate(cross, LABELS[:, :4], LABELS[:, 4:])
    np.testing.assert_allclose(
        best, -np.sum(parabola.linear) / (2 * np.sum(parabola.square)), rtol=1e-9
    )
    single = theory.gram_loss_parabola(
        cross.astype(np.float32), *np.split(LABELS.astype(np.float32), [4], 1)
    )
    assert single.square.dtype == jnp.float32


def test_function_space_step_is_the_parameter_step():
    u, t = PSI[:, :4], PSI[:, 4:]
    w = GENERATOR.normal(size=50)
    residual = u @ w - LABELS[:, :4]
    cross = np.einsum("nqd,nkd->nqk", t, u)
    moved = theory.function_space_step(t @ w, cross, residual, 0.03)
    adapted = [oracles.step(w, x, y, 0.03) for x, y in zip(u, LABELS[:, :4], strict=True)]
    np.testing.assert_allclose(moved, np.einsum("nqd,nd->nq", t, adapted), rtol=1e-9)
    vector = theory.function_space_step((t @ w)[..., None], cross, residual[..., None], 0.03)
    np.testing.assert_allclose(vector[..., 0], moved, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.minimum_norm_coefficients(GRAM, LABELS[0]), "labels has shape"),
        (lambda: theory.minimum_norm_coefficients(GRAM[:5, :5], LABELS), "gram .* 24 x 24"),
        (lambda: theory.minimum_norm_coefficients(GRAM + FLAT[:, :24], LABELS), "not symmetric"),
        (lambda: theory.minimum_norm_coefficients(-GRAM, LABELS), "gram has a negative eigenvalue"),
        (lambda: theory.minimum_norm_coefficients(0 * GRAM, LABELS), "gram is zero everywhere"),
        (lambda: theory.minimum_norm_coefficients(GRAM, LABELS, ridge=-1.0), "ridge is -1"),
        (
            lambda: theory.minimum_norm_coefficients(GRAM, LABELS, num_query=6),
            "num_query is 6 of 6 examples per task; leave some to adapt on",
        ),
        (
            lambda: theory.function_space_step(
                np.ones((2, 3)), np.ones((2, 3, 4)), np.ones((2, 3)), 1.0
            ),
            "residual has shape",
        ),
        (
            lambda: theory.function_space_step(
                np.ones((2, 3)), np.ones((2, 3, 4)), np.ones((2, 4, 1)), 1.0
            ),
            "their outputs must agree",
        ),
        (
            lambda: theory.gram_loss_parabola(np.ones((2, 3, 4)), np.ones((2, 3))),
            r"residual has shape \(2, 3\); it must have shape \(2, 4\)",
        ),
        (
            lambda: theory.gram_loss_parabola(np.ones((2, 3, 4)), np.ones((2, 4))),
            r"residual_query has shape \(2, 4\); it must have shape \(2, 3\)",
        ),
        (
            lambda: theory.gram_label_aware_rate(np.ones((2, 3, 4)), np.ones((2, 4))),
            r"residual_query has shape \(2, 4\); with cross of shape \(2, 3, 4\) it must be \(2, 3\)",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
