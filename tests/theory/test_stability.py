"""Thresholds against the recursion itself, run just below and just above them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles_b as oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastep._errors import InputError
from metastep.theory import stability

EIGENVALUES = np.array([0.3, 0.9, 1.7, 2.0])
FORMS = ["exact", "simplified", "taylor"]


def random_hessians(rng, tasks=3, dim=4):
    factors = rng.standard_normal((tasks, dim, dim + 2))
    return factors @ factors.swapaxes(1, 2) / dim


def rotated(rng, eigenvalues):
    basis = np.linalg.qr(rng.standard_normal((len(eigenvalues),) * 2))[0]
    return basis * eigenvalues @ basis.T


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.11, 0.24])
def test_meta_rate_is_where_the_simulated_recursion_turns(rng, form, alpha):
    hessian = rotated(rng, EIGENVALUES)
    beta = float(stability.max_meta_rate(EIGENVALUES, alpha, form))
    assert oracle.meta_recursion_shrinks([hessian], alpha, beta * (1 - 1e-3), form)
    assert not oracle.meta_recursion_shrinks([hessian], alpha, beta * (1 + 1e-3), form)


@pytest.mark.parametrize("form", FORMS)
def test_meta_rate_of_several_tasks_is_where_their_recursion_turns(rng, form):
    hessians = random_hessians(rng)
    alpha = 0.05
    beta = float(stability.max_meta_rate(hessians, alpha, form))
    assert oracle.meta_recursion_shrinks(hessians, alpha, beta * (1 - 1e-3), form)
    assert not oracle.meta_recursion_shrinks(hessians, alpha, beta * (1 + 1e-3), form)


@pytest.mark.parametrize(("form", "order"), [("simplified", 1), ("taylor", 2)])
def test_beyond_alpha_c_no_meta_rate_converges(rng, form, order):
    hessian = rotated(rng, EIGENVALUES)
    critical = float(stability.max_adaptation_rate(EIGENVALUES, form))
    assert critical == pytest.approx(1 / (order * 2.0), rel=1e-12)
    # A negative eigenvalue of the meta-Hessian grows for every positive beta, a positive one
    # shrinks.
    below = oracle.meta_update_matrix([hessian], critical * (1 - 1e-6), form)
    above = oracle.meta_update_matrix([hessian], critical * (1 + 1e-6), form)
    assert np.linalg.eigvalsh(below).min() > 0 > np.linalg.eigvalsh(above).min()
    assert not oracle.meta_recursion_shrinks([hessian], critical * 1.01, 0.1, form)
    assert stability.max_meta_rate(EIGENVALUES, critical, form) > 0
    assert stability.max_meta_rate(EIGENVALUES, critical * (1 + 1e-6), form) == 0


@pytest.mark.parametrize("form", ["simplified", "taylor"])
def test_alpha_c_of_several_tasks_is_where_the_mean_meta_hessian_turns(rng, form):
    hessians = random_hessians(rng)
    critical = float(stability.max_adaptation_rate(hessians, form))
    below = oracle.meta_update_matrix(hessians, critical * (1 - 1e-7), form)
    above = oracle.meta_update_matrix(hessians, critical * (1 + 1e-7), form)
    assert np.linalg.eigvalsh(below).min() > 0 > np.linalg.eigvalsh(above).min()
    assert stability.max_meta_rate(hessians, critical * 1.01, form) == 0


def test_several_tasks_with_a_common_flat_direction_keep_a_finite_alpha_c(rng):
    hessians = np.zeros((2, 4, 4))
    hessians[:, :3, :3] = random_hessians(rng, tasks=2, dim=3)
    expected = stability.max_adaptation_rate(hessians[:, :3, :3])
    np.testing.assert_allclose(stability.max_adaptation_rate(hessians), expected, rtol=1e-9)


def test_exact_threshold_holds_for_maml_with_its_inner_step_written_out(rng):
    hessian = rotated(rng, EIGENVALUES)
    for alpha in (-0.2, 0.3, 0.475, 0.9):  # 0.5 is alpha_c of the simplified loss
        beta = float(stability.max_meta_rate(hessian, alpha))
        assert oracle.exact_maml_on_quadratic_shrinks(hessian, alpha, beta * (1 - 1e-2))
        assert not oracle.exact_maml_on_quadratic_shrinks(hessian, alpha, beta * (1 + 1e-2))


def test_exact_maml_has_no_largest_adaptation_rate():
    assert stability.max_adaptation_rate(EIGENVALUES, "exact") == jnp.inf


def test_recorded_numbers_at_95_percent_of_alpha_c():
    spectrum = np.array([0.1, 0.4, 1.0])
    x = np.array([0.095, 0.38, 0.95])
    simplified = 2 / np.max(spectrum * (1 - x))
    exact = 2 / np.max(spectrum * (1 - x) ** 2)
    np.testing.assert_allclose(
        stability.max_meta_rate(spectrum, 0.95, "simplified"), simplified, rtol=1e-12
    )
    np.testing.assert_allclose(stability.max_meta_rate(spectrum, 0.95), exact, rtol=1e-12)


def test_meta_rate_diverges_at_alpha_c_only_for_equal_eigenvalues():
    assert stability.max_meta_rate([2.0, 2.0], 0.5, "simplified") == jnp.inf
    assert stability.max_meta_rate([0.0, 2.0], 0.5, "simplified") == jnp.inf
    assert jnp.isfinite(stability.max_meta_rate([1.9, 2.0], 0.5, "simplified"))


@given(st.lists(st.floats(0.01, 50.0), min_size=2, max_size=6))
def test_simplified_rate_grows_with_alpha_by_at_least_four(values):
    spectrum = np.array(values)
    critical = float(stability.max_adaptation_rate(spectrum))
    rates = [
        float(stability.max_meta_rate(spectrum, t * critical, "simplified"))
        for t in np.linspace(0, 0.999, 12)
    ]
    assert np.all(np.diff(rates) >= -1e-9 * np.array(rates[:-1]))
    x = spectrum / spectrum.max()
    if np.max(x * (1 - x)) > 1e-6:
        at_critical = float(stability.max_meta_rate(spectrum, critical, "simplified"))
        ratio = at_critical / rates[0]
        assert ratio == pytest.approx(1 / np.max(x * (1 - x)), rel=1e-6)
        assert ratio >= 4 - 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_eigenvalues_one_hessian_and_repeated_tasks_agree(rng, form):
    hessian = rotated(rng, EIGENVALUES)
    stacked = np.stack([hessian, hessian])
    for given_form in (hessian, stacked, stacked[:, ::-1, ::-1]):
        np.testing.assert_allclose(
            stability.max_meta_rate(given_form, 0.2, form),
            stability.max_meta_rate(EIGENVALUES, 0.2, form),
            rtol=1e-9,
        )
        np.testing.assert_allclose(
            stability.max_adaptation_rate(given_form, form),
            stability.max_adaptation_rate(EIGENVALUES, form),
            rtol=1e-9,
        )


@pytest.mark.parametrize("form", FORMS)
def test_rates_scale_as_one_over_the_hessian(rng, form):
    hessians = random_hessians(rng)
    np.testing.assert_allclose(
        stability.max_meta_rate(hessians * 3, 0.02 / 3, form) * 3,
        stability.max_meta_rate(hessians, 0.02, form),
        rtol=1e-9,
    )


@pytest.mark.parametrize("form", FORMS)
def test_meta_hessian_matches_the_oracle_and_its_largest_eigenvalue_the_rate(rng, form):
    hessians = random_hessians(rng)
    ours = stability.meta_hessian(hessians, 0.03, form)
    np.testing.assert_allclose(
        ours, oracle.meta_update_matrix(hessians, 0.03, form), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(
        stability.max_meta_rate(hessians, 0.03, form), 2 / np.linalg.eigvalsh(ours)[-1], rtol=1e-9
    )


def test_meta_hessian_is_the_hessian_of_the_maml_loss(rng):
    hessians = jnp.asarray(random_hessians(rng))

    def maml_loss(v):
        adapted = v - 0.07 * hessians @ v
        return jnp.mean(jnp.einsum("ti,tij,tj->t", adapted, hessians, adapted)) / 2

    np.testing.assert_allclose(
        stability.meta_hessian(hessians, 0.07), jax.hessian(maml_loss)(jnp.zeros(4)), rtol=1e-9
    )


@pytest.mark.parametrize(("form", "order"), [("taylor", 2), ("simplified", 1)])
def test_penalised_loss_against_numbers(form, order):
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}

    def loss(p):
        return jnp.sum(p["a"] ** 2) + p["b"] ** 3

    # gradient: 2a = (2, -4), 3 b^2 = 0.75; squared norm 20.5625
    expected = 5.125 - order * 0.1 / 2 * 20.5625
    np.testing.assert_allclose(
        stability.negative_gradient_penalty(loss, params, 0.1, form), expected, rtol=1e-12
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("alpha", [0.0, 0.11, -0.2])
def test_hessian_of_the_one_step_loss_is_the_meta_hessian(rng, form, alpha):
    hessian = rotated(rng, EIGENVALUES)

    def loss(w):
        return 0.5 * w @ jnp.asarray(hessian) @ w

    found = jax.hessian(lambda w: stability.one_step_loss(loss, w, alpha, form))(jnp.zeros(4))
    expected = stability.meta_hessian(hessian, alpha, form)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_one_step_loss_of_a_pytree_is_the_loss_after_the_step():
    params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(0.5)}

    def loss(p):
        return jnp.sum(p["a"] ** 3) + p["b"] ** 2 * p["a"][0]

    # Gradients by hand: 3 a^2 + (b^2, 0), and 2 a_0 b.
    moved = {"a": np.array([1.0, -2.0]) - 0.1 * np.array([3.25, 12.0]), "b": 0.5 - 0.1 * 1.0}
    np.testing.assert_allclose(stability.one_step_loss(loss, params, 0.1), loss(moved), rtol=1e-12)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    assert stability.one_step_loss(loss, single, 0.1).dtype == jnp.float32


def test_taylor_penalty_is_the_maml_loss_to_first_order_and_the_printed_one_is_not():
    def loss(w):
        return jnp.log(jnp.cosh(w)).sum() + 0.3 * w.sum()

    params = jnp.array([0.4, -1.1])

    def gap(alpha, form):
        adapted = loss(params - alpha * jax.grad(loss)(params))
        return abs(float(adapted - stability.negative_gradient_penalty(loss, params, alpha, form)))

    assert gap(1e-3, "taylor") / gap(1e-2, "taylor") == pytest.approx(1e-2, rel=0.05)
    assert gap(1e-3, "simplified") / gap(1e-2, "simplified") == pytest.approx(1e-1, rel=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_jit_vmap_and_gradients(rng, form):
    hessians = jnp.asarray(random_hessians(rng))
    rate = jax.jit(stability.max_meta_rate, static_argnames="form")
    np.testing.assert_allclose(
        rate(hessians, 0.03, form=form), stability.max_meta_rate(hessians, 0.03, form), rtol=1e-9
    )
    alphas = jnp.linspace(0.0, 0.03, 4)
    batched = jax.vmap(lambda a: stability.max_meta_rate(EIGENVALUES, a, form))(alphas)
    one_by_one = [stability.max_meta_rate(EIGENVALUES, a, form) for a in alphas]
    np.testing.assert_allclose(batched, one_by_one, rtol=1e-12)
    for function in (
        lambda a: stability.max_meta_rate(hessians, a, form),
        lambda s: stability.max_meta_rate(hessians * (1 + s), 0.03, form),
    ):
        numeric = (function(0.02 + 1e-6) - function(0.02 - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(function)(0.02), numeric, rtol=1e-6)


def test_gradient_of_alpha_c_against_numbers(rng):
    hessians = jnp.asarray(random_hessians(rng))
    direction = jnp.asarray(random_hessians(rng))

    def critical(s):
        return stability.max_adaptation_rate(hessians + s * direction)

    numeric = (critical(1e-6) - critical(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(critical)(0.0), numeric, rtol=1e-5)


def test_float32_stays_float32():
    spectrum = np.asarray(EIGENVALUES, np.float32)
    for value in (
        stability.max_adaptation_rate(spectrum),
        stability.max_meta_rate(spectrum, 0.2),
        stability.max_meta_rate(np.diag(spectrum), 0.2, "simplified"),
        stability.meta_hessian(np.diag(spectrum), 0.2),
        stability.negative_gradient_penalty(lambda w: (w**2).sum(), jnp.asarray(spectrum), 0.1),
    ):
        assert value.dtype == jnp.float32
    np.testing.assert_allclose(
        stability.max_meta_rate(spectrum, 0.2), stability.max_meta_rate(EIGENVALUES, 0.2), rtol=1e-5
    )


@pytest.mark.parametrize("scale", [1e-25, 1e25])
@pytest.mark.parametrize("form", FORMS)
def test_extreme_scales_stay_within_float32(rng, scale, form):
    hessians = random_hessians(rng)
    small = (hessians * scale).astype(np.float32)
    np.testing.assert_allclose(
        stability.max_meta_rate(small, 0.02 / scale, form) * np.float32(scale),
        stability.max_meta_rate(hessians, 0.02, form),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        stability.max_adaptation_rate(small, form) * np.float32(scale),
        stability.max_adaptation_rate(hessians, form),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.1), r"eigenvalues has shape \(\); give eigenvalues \(dim,\)"),
        ((np.zeros((0, 2, 2)), 0.1), r"eigenvalues has shape \(0, 2, 2\).*none of them empty"),
        ((np.zeros(0), 0.1), r"eigenvalues has shape \(0,\)"),
        ((np.ones((2, 3)), 0.1), r"eigenvalues has shape \(2, 3\)"),
        (([1.0, np.nan], 0.1), r"eigenvalues holds 1 NaN or infinite"),
        (([1.0, -2.0], 0.1), r"eigenvalues is an array with the entry -2; it must not be negative"),
        ((np.array([[1.0, 0.5], [0.0, 1.0]]), 0.1), r"eigenvalues is not symmetric"),
        ((np.diag([1.0, -1.0]), 0.1), r"eigenvalues has the negative eigenvalue -1"),
        (([1.0], [0.1]), r"alpha has shape \(1,\); it must be a single number"),
        (([1.0], np.inf), r"alpha holds 1 NaN or infinite"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        stability.max_meta_rate(*arguments)


def test_unknown_form_lists_the_forms():
    with pytest.raises(InputError, match="form is 'printed'; choose one of: exact, simplified"):
        stability.max_adaptation_rate([1.0], "printed")
    with pytest.raises(InputError, match="form is 'exact'; choose one of: simplified, taylor"):
        stability.negative_gradient_penalty(jnp.sum, jnp.ones(2), 0.1, "exact")
    with pytest.raises(InputError, match=r"hessians has shape \(2,\)"):
        stability.meta_hessian([1.0, 2.0], 0.1)
    with pytest.raises(InputError, match="form is 'poster'"):
        stability.one_step_loss(jnp.sum, jnp.ones(2), 0.1, "poster")
    with pytest.raises(InputError, match="alpha holds 1 NaN"):
        stability.one_step_loss(jnp.sum, jnp.ones(2), jnp.nan)
