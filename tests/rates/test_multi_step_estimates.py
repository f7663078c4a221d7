"""Rates for several steps and for several layers against the theory, and against inner loops that use them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep import Batch, Episode, theory
from metastep._errors import InputError
from metastep._types import PerStep
from metastep.adapt import GradientAdapter
from metastep.models import Objective, mlp
from metastep.rates import label_free_terms, multi_step_rates, per_layer_rates
from metastep.rates.krylov import label_free_measure
from metastep.tasks import AbstractTaskFamily, Sinusoid

SHOTS, TASKS, STEPS = 5, 8, 3
SCALES = np.array([2.0, 1.0, 0.5, 0.25])


def apply(params, x):
    return x[:, :3] @ params["a"] + x[:, 3:] @ params["b"]


OBJECTIVE = Objective.of(apply, "regression")
PARAMS = {"a": jnp.zeros((3, 2)), "b": jnp.ones((1, 2))}
KEY = jax.random.key(3)


class Linear(AbstractTaskFamily):
    """Linear regression with features of different sizes and two outputs."""

    same: bool = False
    kind = "regression"
    input_shape = (4,)
    output_size = 2

    def sample(self, key):
        keys = jax.random.split(key, 4)
        w = 1 + jax.random.normal(keys[0], (4, 2))
        parts = []
        for k in keys[1:3]:
            x = jax.random.normal(k, (SHOTS, 4)) * jnp.asarray(SCALES)
            parts.append(Batch(x, x @ w + 0.3 * jax.random.normal(keys[3], (SHOTS, 2))))
        return Episode(parts[0], parts[0] if self.same else parts[1])


def sampled(family, num_tasks=TASKS):
    """The tasks that `multi_step_rates` and `per_layer_rates` draw."""
    return jax.vmap(family.sample)(jax.random.split(jax.random.split(KEY)[0], num_tasks))


def mean_loss(family, rate, steps):
    """What the inner loop does at these rates."""
    loop = GradientAdapter(steps)

    def of_task(episode):
        adapted, _ = loop(jax.value_and_grad(OBJECTIVE.on(episode.support)), PARAMS, rate)
        return OBJECTIVE(adapted, episode.query)

    return float(jnp.mean(jax.vmap(of_task)(sampled(family))))


def grams(family):
    x = np.asarray(sampled(family).support.x)
    return x @ np.swapaxes(x, 1, 2)


def test_without_labels_they_are_those_of_the_theory_on_a_linear_model():
    family = Linear(same=True)
    found = multi_step_rates(OBJECTIVE, PARAMS, family, KEY, STEPS, labels=False, num_tasks=TASKS)
    spectrum = np.maximum(np.linalg.eigvalsh(grams(family)), 0)
    assert found.alpha == pytest.approx(
        float(theory.multi_step_rate(spectrum, SHOTS, STEPS)), rel=1e-8
    )
    expected = theory.step_schedule(spectrum, SHOTS, STEPS)
    np.testing.assert_allclose(found.schedule, expected, rtol=1e-7)
    assert 0 < found.alpha_gain < found.schedule_gain < 1
    for value, (low, high) in zip(
        [found.alpha, *found.schedule],
        [found.alpha_interval, *found.schedule_intervals],
        strict=True,
    ):
        assert low < value < high
    assert isinstance(found.per_step, PerStep)
    assert found.per_step.values.shape == (STEPS,)


def test_with_labels_they_minimise_the_loss_of_the_inner_loop_itself():
    family = Linear()
    found = multi_step_rates(OBJECTIVE, PARAMS, family, KEY, STEPS, num_tasks=TASKS)
    before = mean_loss(family, 0.0, STEPS)
    with_one, with_many = (
        mean_loss(family, jnp.asarray(found.alpha), STEPS),
        mean_loss(family, found.per_step, STEPS),
    )
    assert 1 - with_one / before == pytest.approx(found.alpha_gain, rel=1e-8)
    assert 1 - with_many / before == pytest.approx(found.schedule_gain, rel=1e-8)
    assert with_many < with_one
    for factor in (0.98, 1.02):
        assert mean_loss(family, jnp.asarray(found.alpha * factor), STEPS) > with_one
        for step in range(STEPS):
            rates = np.array(found.schedule)
            rates[step] *= factor
            assert mean_loss(family, PerStep(jnp.asarray(rates)), STEPS) > with_many
    assert found.schedule == sorted(found.schedule)
    assert found.alpha_interval[0] < found.alpha < found.alpha_interval[1]


def test_one_step_is_the_label_aware_rate():
    family = Linear()
    found = multi_step_rates(OBJECTIVE, PARAMS, family, KEY, 1, num_tasks=TASKS)
    episodes = sampled(family)
    phi, query = np.asarray(episodes.support.x), np.asarray(episodes.query.x)
    w = np.concatenate([PARAMS["a"], PARAMS["b"]])
    top = bottom = 0.0
    for i in range(TASKS):
        residual = phi[i] @ w - np.asarray(episodes.support.y)[i]
        moved = query[i] @ phi[i].T @ residual
        top += np.sum((query[i] @ w - np.asarray(episodes.query.y)[i]) * moved)
        bottom += np.sum(moved**2)
    assert found.alpha == pytest.approx(SHOTS / 2 * top / bottom, rel=1e-6)
    assert found.schedule == pytest.approx([found.alpha], rel=1e-6)


def test_the_measure_of_a_classifier_has_the_traces_of_h6(rng):
    # Cross-entropy: the Hessian in the outputs is no multiple of the identity, and singular.
    model = mlp((2,), 3, hidden=(4,))
    objective, params = Objective.of(model.apply, "classification"), model.init(jax.random.key(1))
    support, query = (
        Batch(jnp.asarray(rng.normal(size=(n, 2))), jnp.asarray(rng.integers(0, 3, n)))
        for n in (4, 6)
    )
    episode = Episode(support, query)
    for restrict in (lambda g: g, GradientAdapter(1, model.is_head).restrict):
        rule = jax.jit(lambda p, r=restrict: label_free_measure(objective, p, episode, KEY, 2, r))(
            params
        )
        terms = label_free_terms(objective, params, episode, KEY, restrict)
        moments = [float(jnp.sum(rule.weights * rule.nodes**power)) for power in (0, 1, 2)]
        assert moments == pytest.approx(
            [float(t) for t in (terms.first, terms.second, terms.third)]
        )


def test_layers_without_labels_are_those_of_the_theory():
    family = Linear(same=True)
    found = per_layer_rates(OBJECTIVE, PARAMS, family, KEY, labels=False, num_tasks=TASKS)
    x = np.asarray(sampled(family).support.x)
    expected = np.asarray(theory.layer_rates([x[..., :3], x[..., 3:]]))
    np.testing.assert_allclose(found.alphas, expected, rtol=1e-7)
    assert found.names == ["a", "b"]
    assert float(found.rate["b"]) == found.alphas[1]
    for value, (low, high) in zip(found.alphas, found.intervals, strict=True):
        assert low < value < high
    assert 0 < found.single_gain < found.gain < 1


def test_layers_with_labels_minimise_the_loss_of_the_inner_loop_itself():
    family = Linear()
    found = per_layer_rates(OBJECTIVE, PARAMS, family, KEY, num_tasks=TASKS)
    before, best = mean_loss(family, 0.0, 1), mean_loss(family, found.rate, 1)
    assert 1 - best / before == pytest.approx(found.gain, rel=1e-8)
    for name in PARAMS:
        for factor in (0.97, 1.03):
            moved = found.rate | {name: found.rate[name] * factor}
            assert mean_loss(family, moved, 1) > best
    assert found.gain > found.single_gain


def test_arrays_that_do_not_adapt_get_no_rate():
    model = mlp((1,), 1, hidden=(4,))
    objective, params = Objective.of(model.apply, "regression"), model.init(jax.random.key(0))
    restrict = GradientAdapter(1, model.is_head).restrict
    found = per_layer_rates(
        objective, params, Sinusoid(shots=4, queries=4), KEY, num_tasks=4, restrict=restrict
    )
    heads = [name.startswith("head") for name in found.names]
    assert any(heads)
    assert not all(heads)
    assert [alpha != 0 for alpha in found.alphas] == heads


class Contrary(Linear):
    """The query labels are those of the support set with the sign turned round."""

    def sample(self, key):
        episode = super().sample(key)
        return Episode(episode.support, Batch(episode.support.x, -episode.support.y))


def test_what_cannot_be_measured_is_refused():
    def refused(message, function, *arguments, params=PARAMS, family=None, **options):
        with pytest.raises(InputError) as caught:
            function(OBJECTIVE, params, family or Linear(), KEY, *arguments, **options)
        assert str(caught.value) == message

    zero = {"a": jnp.zeros((3, 2)), "b": jnp.zeros((1, 2))}
    refused(
        "no adaptation rate lowers the predicted query loss at these parameters; train first, or use labels=False",
        multi_step_rates,
        STEPS,
        params=zero,
        family=Contrary(),
        num_tasks=TASKS,
    )
    nowhere = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), PARAMS)
    not_finite = "the loss or its derivatives are not finite at these parameters; check the data for huge values"
    refused(not_finite, multi_step_rates, STEPS, params=nowhere, num_tasks=TASKS)
    refused(not_finite, per_layer_rates, params=nowhere, num_tasks=TASKS)
    refused("steps is 0; it must be a whole number of at least 1", multi_step_rates, 0)
    refused("num_tasks is 1; it must be a whole number of at least 2", per_layer_rates, num_tasks=1)
