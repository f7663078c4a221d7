"""Rates against explicit matrix powers, against brute-force minimisation, and in float32 extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metastep import theory
from metastep._errors import InputError


def draw(tasks, shots, dim, seed=0):
    generator = np.random.default_rng(seed)
    phi = generator.normal(size=(tasks, shots, dim)) * np.linspace(0.5, 1.5, dim) + 0.3
    root = generator.normal(size=(dim, dim))
    return phi, generator.normal(size=(tasks, shots + 1, dim)) - 0.2, root @ root.T


@given(st.sampled_from([(1, 1, 1), (4, 5, 2), (3, 2, 6), (2, 3, 3)]), st.integers(0, 1000))
def test_limit_rate_is_the_ratio_of_mean_traces(shape, seed):
    phi, query, cov = draw(*shape, seed)
    options = {"task_cov": cov, "noise_var": 0.7, "task_var": 1.3}
    oracle_options = {"cov": cov, "noise": 0.7, "task_var": 1.3}
    np.testing.assert_allclose(theory.limit_rate(phi), oracles.limit_rate(phi), rtol=1e-9)
    np.testing.assert_allclose(
        theory.limit_rate(phi, query), oracles.split_rate(phi, query), rtol=1e-9
    )
    np.testing.assert_allclose(
        theory.limit_rate(phi, **options), oracles.limit_rate(phi, **oracle_options), rtol=1e-9
    )
    np.testing.assert_allclose(
        theory.limit_rate(phi, query, **options),
        oracles.split_rate(phi, query, **oracle_options),
        rtol=1e-9,
    )


def test_same_query_as_support_is_the_tied_rate():
    phi, _, cov = draw(4, 3, 5)
    np.testing.assert_allclose(theory.limit_rate(phi, phi), theory.limit_rate(phi), rtol=1e-12)
    np.testing.assert_allclose(
        theory.limit_rate(phi, phi, task_cov=cov), theory.limit_rate(phi, task_cov=cov), rtol=1e-12
    )


@pytest.mark.parametrize("shape", [(4, 5, 2), (4, 2, 6)])
def test_a_whole_weight_counts_as_copies_of_the_task(shape):
    phi, query, cov = draw(*shape)
    weights = np.array([2, 0, 1, 3])
    copied, copied_query = (np.repeat(part, weights, axis=0) for part in (phi, query))
    plain, noisy = (
        {"weights": weights},
        {"weights": 0.3 * weights, "task_cov": cov, "noise_var": 0.7},
    )
    for found, expected in (
        (theory.limit_rate(phi, **plain), oracles.limit_rate(copied)),
        (theory.limit_rate(phi, **noisy), oracles.limit_rate(copied, cov, 0.7)),
        (
            theory.limit_rate(phi, query, **noisy),
            oracles.split_rate(copied, copied_query, cov, 0.7),
        ),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("split", [False, True])
def test_noise_aware_rate_minimises_the_simulated_risk(split):
    # The loss after one step is quadratic in alpha: three values give its minimum. Common random
    # numbers; 60,000 labels leave a relative error of about 1 %, the bound is five times that.
    phi, query, _ = draw(3, 4, 2)
    generator = np.random.default_rng(1)
    cov, noise = np.array([[2.0, 0.5], [0.5, 0.4]]), 0.8
    losses = np.zeros(3)
    for _ in range(20_000):
        optima = generator.multivariate_normal(np.zeros(2), cov, size=3)
        y = np.einsum("nkd,nd->nk", phi, optima) + noise**0.5 * generator.normal(size=(3, 4))
        yq = np.einsum("nkd,nd->nk", query, optima) + noise**0.5 * generator.normal(size=(3, 5))
        moved = -2 / 4 * np.einsum("nkd,nk->nd", phi, -y)  # w = 0, step with alpha = 1
        target, features = (yq, query) if split else (y, phi)
        change = np.einsum("nqd,nd->nq", features, moved)
        losses += [np.sum((a * change - target) ** 2) for a in (-1.0, 0.0, 1.0)]
    best = (losses[0] - losses[2]) / (2 * (losses[0] - 2 * losses[1] + losses[2]))
    rate = theory.limit_rate(phi, query if split else None, task_cov=cov, noise_var=noise)
    np.testing.assert_allclose(rate, best, rtol=0.05)


@pytest.mark.parametrize("split", [False, True])
def test_label_aware_rate_is_the_minimum_of_the_loss(split):
    phi, query, _ = draw(5, 4, 3)
    generator = np.random.default_rng(2)
    w, y, yq = (
        generator.normal(size=3),
        generator.normal(size=(5, 4)),
        generator.normal(size=(5, 5)),
    )
    residual, residual_query = phi @ w - y, query @ w - yq
    arguments = (phi, residual, query, residual_query) if split else (phi, residual)
    data = (w, phi, y)
    other = (query, yq) if split else (None, None)
    loss = [oracles.loss_after_step(*data, a, *other) for a in (-1, 0, 1)]
    best = (loss[0] - loss[2]) / (2 * (loss[0] - 2 * loss[1] + loss[2]))
    np.testing.assert_allclose(theory.label_aware_rate(*arguments), best, rtol=1e-9)
    one_output = [x[..., None] if x.ndim == 2 else x for x in arguments]
    np.testing.assert_allclose(theory.label_aware_rate(*one_output), best, rtol=1e-9)
    gram = np.einsum("nqd,nkd->nqk", query if split else phi, phi)
    rate = theory.gram_label_aware_rate(gram, residual, residual_query if split else None)
    np.testing.assert_allclose(rate, best, rtol=1e-9)


def test_label_aware_rate_of_several_outputs_sums_over_them():
    phi, _, _ = draw(4, 3, 5)
    r = np.random.default_rng(3).normal(size=(4, 3, 2))
    k = np.einsum("nkd,nld->nkl", phi, phi)
    kr = np.einsum("nkl,nlo->nko", k, r)
    expected = 3 / 2 * np.sum(r * kr) / np.sum(kr**2)
    np.testing.assert_allclose(theory.label_aware_rate(phi, r), expected, rtol=1e-9)


def test_predicted_gain_is_what_the_limit_risk_loses():
    phi, query, _ = draw(6, 4, 3)
    for other in (None, query):
        rate = theory.limit_rate(phi, other)
        best, before = (theory.limit_risk(phi, a, phi_query=other) for a in (rate, 0.0))
        np.testing.assert_allclose(theory.predicted_gain(phi, other), 1 - best / before, rtol=1e-9)
    same = np.broadcast_to(np.eye(3), (4, 3, 3))
    np.testing.assert_allclose(theory.predicted_gain(same), 1.0, rtol=1e-12)


def test_gram_and_hutchinson_rates_agree_with_features():
    phi, query, _ = draw(6, 4, 9)
    kernel, cross = np.einsum("nkd,nld->nkl", phi, phi), np.einsum("nqd,nkd->nqk", query, phi)
    np.testing.assert_allclose(theory.gram_limit_rate(kernel), theory.limit_rate(phi), rtol=1e-9)
    np.testing.assert_allclose(
        theory.gram_limit_rate(kernel, cross), theory.limit_rate(phi, query), rtol=1e-9
    )
    single = theory.gram_limit_rate(kernel[0], shots=2)  # two outputs per example
    np.testing.assert_allclose(2 * single, theory.limit_rate(phi[:1]), rtol=1e-9)
    # All sign vectors together give the traces of k^2 and k^3 without error.
    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T
    probes = np.broadcast_to(signs[:, None], (16, 6, 4))
    rate = theory.hutchinson_limit_rate(lambda z: jnp.einsum("nkl,nl->nk", kernel, z), probes)
    np.testing.assert_allclose(rate, theory.limit_rate(phi), rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-9, 1e12])
def test_float32_does_not_overflow_or_vanish(scale):
    phi, query, _ = draw(6, 4, 3)
    large = (phi * scale).astype(np.float32)
    other = (query * scale).astype(np.float32)
    for rate, expected in [
        (theory.limit_rate(large), theory.limit_rate(phi)),
        (theory.limit_rate(large, other), theory.limit_rate(phi, query)),
        (theory.batch_rate(large), theory.batch_rate(phi)),
        (theory.second_moment_rate(large), theory.second_moment_rate(phi)),
    ]:
        np.testing.assert_allclose(float(rate) * scale**2, expected, rtol=1e-4)


def test_a_new_noise_level_does_not_retrace():
    phi, _, _ = draw(4, 3, 2)
    count = []

    @jax.jit
    def rate(noise):
        count.append(0)
        return theory.limit_rate(phi, noise_var=noise)

    assert rate(0.1) != rate(0.2)
    assert len(count) == 1


PHI = np.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.limit_rate(PHI[0]), "phi has shape"),
        (lambda: theory.limit_rate(0 * PHI), "phi is zero everywhere"),
        (lambda: theory.limit_rate(PHI, PHI[:1]), "phi_query has shape"),
        (lambda: theory.limit_rate(PHI, 0 * PHI), "phi_query is zero everywhere"),
        (lambda: theory.limit_rate(PHI, task_cov=np.eye(3)), "task_cov .* 4 x 4"),
        (lambda: theory.limit_rate(PHI, weights=np.ones(1)), "weights has shape"),
        (lambda: theory.limit_rate(PHI, weights=np.zeros(2)), "weights are all 0"),
        (lambda: theory.limit_rate(PHI, noise_var=-1.0), "noise_var is -1"),
        (lambda: theory.limit_rate(PHI, task_var=-1.0), "task_var is -1"),
        (lambda: theory.limit_rate(PHI, task_var=0), "task_var and noise_var are both 0"),
        (lambda: theory.label_aware_rate(PHI, np.ones((2, 2))), "residual has shape"),
        (lambda: theory.label_aware_rate(PHI, np.zeros((2, 3))), "residual is zero everywhere"),
        (
            lambda: theory.label_aware_rate(PHI, np.ones((2, 3)), PHI),
            "residual_query is None; give phi_query and residual_query together",
        ),
        (
            lambda: theory.label_aware_rate(PHI, np.ones((2, 3, 1)), PHI, np.ones((2, 3, 2))),
            "residual_query has 2 outputs; residual has 1",
        ),
        (lambda: theory.predicted_gain(PHI, PHI[:, :, :1]), "phi_query has shape"),
        (lambda: theory.gram_limit_rate(np.ones((2, 2, 3))), "gram has shape"),
        (lambda: theory.gram_limit_rate(np.ones((1, 1, 2, 2))), r"gram .* must be \(tasks, n, n\)"),
        (lambda: theory.gram_limit_rate(np.eye(2), np.ones((1, 3))), "cross has shape"),
        (lambda: theory.gram_limit_rate(np.eye(2), shots=0), "shots is 0"),
        (lambda: theory.hutchinson_limit_rate(lambda z: z, np.ones((2, 3))), "probes has shape"),
        (
            lambda: theory.hutchinson_limit_rate(lambda z: z[:1], np.ones((2, 3, 4))),
            r"apply_gram turned shape \(3, 4\) into \(1, 4\)",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()
