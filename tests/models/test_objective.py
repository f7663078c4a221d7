"""Losses as means over examples, and the objective that binds them to a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep import Batch
from metastep._errors import InputError
from metastep.models import Objective, accuracy, cross_entropy, loss_for, squared_error


def test_squared_error_is_a_mean_over_examples_and_a_sum_over_outputs(rng):
    outputs, targets = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    expected = sum(np.sum((outputs[i] - targets[i]) ** 2) for i in range(5)) / 5
    found = squared_error(jnp.asarray(outputs), jnp.asarray(targets))
    assert float(found) == pytest.approx(expected, rel=1e-14)
    assert float(squared_error(jnp.array([[2.0]]), jnp.array([[0.0]]))) == 4.0  # no factor 1/2


def test_targets_of_another_shape_are_not_broadcast():
    # (n, 1) against (n,) would compare every output with every target.
    with pytest.raises(InputError) as caught:
        squared_error(jnp.zeros((4, 1)), jnp.zeros(4))
    assert str(caught.value) == (
        "the model's outputs have shape (4, 1) and the targets (4,); give targets one column per output"
    )


def test_cross_entropy_is_in_nats(rng):
    logits, labels = rng.normal(scale=3, size=(6, 4)), np.array([0, 3, 1, 1, 2, 0])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.mean([np.log(shares[i, label]) for i, label in enumerate(labels)])
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    assert float(found) == pytest.approx(expected, rel=1e-12)
    uniform = cross_entropy(jnp.zeros((3, 20)), jnp.array([0, 7, 19]))
    assert float(uniform) == pytest.approx(np.log(20), rel=1e-12)


def test_cross_entropy_of_huge_outputs_is_finite():
    outputs = jnp.array([[1e4, -1e4], [1e4, -1e4]])
    assert float(cross_entropy(outputs, jnp.array([0, 0]))) == 0.0
    assert float(cross_entropy(outputs, jnp.array([0, 1]))) == pytest.approx(1e4)


def test_accuracy_counts_the_largest_output():
    outputs = jnp.array([[0.1, 0.9], [2.0, -1.0], [0.0, 5.0], [1.0, 0.0]])
    assert float(accuracy(outputs, jnp.array([1, 0, 0, 1]))) == 0.5
    assert float(accuracy(outputs, jnp.array([1, 0, 1, 0]))) == 1.0


def test_objectives_by_kind(rng):
    apply = lambda params, x: x @ params  # noqa: E731
    x, weight = jnp.asarray(rng.normal(size=(5, 2))), jnp.asarray(rng.normal(size=(2, 3)))
    targets, labels = jnp.asarray(rng.normal(size=(5, 3))), jnp.array([0, 1, 2, 1, 0])
    regression = Objective.of(apply, "regression")
    classification = Objective.of(apply, "classification")
    assert regression.metric is None
    assert classification.metric is accuracy
    for objective, y, loss in (
        (regression, targets, squared_error),
        (classification, labels, cross_entropy),
    ):
        expected = loss(x @ weight, y)
        assert float(objective(weight, Batch(x, y))) == float(expected)
        assert float(objective.on(Batch(x, y))(weight)) == float(expected)
    assert loss_for("regression") is squared_error


def test_unknown_kinds_are_refused():
    with pytest.raises(InputError, match="kind is 'both'; choose one of: classification, reg"):
        Objective.of(lambda params, x: x, "both")


@pytest.mark.parametrize(
    ("function", "y"),
    [
        (squared_error, jnp.ones((4, 2), "float32")),
        (cross_entropy, jnp.ones(4, int)),
        (accuracy, jnp.ones(4, int)),
    ],
)
def test_single_precision_in_single_precision_out(function, y):
    assert jax.eval_shape(function, jnp.ones((4, 2), "float32"), y).dtype == jnp.float32
