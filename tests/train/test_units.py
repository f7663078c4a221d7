"""Inputs and labels that nobody has brought to zero mean and unit variance: who meets them, and what is said."""

import dataclasses
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Array, Float

from metastep import Batch, Episode
from metastep.models import mlp
from metastep.tasks import AbstractTaskFamily
from metastep.train import (
    RunFolder,
    TrainConfig,
    adapt_and_predict,
    choose_rates,
    evaluate_run,
    load_run,
    load_tasks,
    measure_rates,
    train,
)
from metastep.train.problem import build_model
from metastep.train.units import remarks_on_units, width_to_grow_to


class Shifted(AbstractTaskFamily):
    """Two normal inputs and a normal label, moved and stretched."""

    kind = "regression"
    input_shape = (2,)
    output_size = 1
    mean: Float[Array, " 2"] = eqx.field(converter=jnp.asarray, default=(0.0, 0.0))
    spread: Float[Array, " 2"] = eqx.field(converter=jnp.asarray, default=(1.0, 1.0))
    label: Float[Array, " 2"] = eqx.field(converter=jnp.asarray, default=(0.0, 1.0))

    def sample(self, key) -> Episode:
        x = self.mean + self.spread * jax.random.normal(key, (20, 2))
        y = self.label[0] + self.label[1] * jax.random.normal(jax.random.fold_in(key, 1), (20, 1))
        return Episode(Batch(x[:10], y[:10]), Batch(x[10:], y[10:]))


def pseudo_huber(outputs, labels):
    """A loss of the user's own, which may compare anything with anything."""
    return jnp.mean(jnp.sqrt(1 + jnp.square(outputs - labels)))


def remarks(family, **options) -> dict[str, list[str]]:
    config = TrainConfig(tasks=family, **options)
    return remarks_on_units(config, load_tasks(config).description.get("units", {}))


def warnings(family, **options) -> list[str]:
    """What is said where nobody meets the units."""
    found = remarks(family, standardise=False, **options)
    assert not found["notes"]
    return found["warnings"]


@given(
    mean=st.tuples(*[st.floats(-2.5, 2.5)] * 2),
    spread=st.tuples(*[st.floats(0.3, 2.5)] * 2),
    label=st.tuples(st.floats(-1.0, 1.0), st.floats(0.3, 2.5)),
)
def test_nothing_is_said_about_usual_numbers(mean, spread, label):
    small = tuple(m * s for m, s in zip(mean, spread, strict=True))
    assert warnings(Shifted(small, spread, label)) == []


@pytest.mark.parametrize(
    ("family", "seen"),
    [
        (
            Shifted(mean=(0.0, 50.0)),
            r"inputs have a mean of (50|49\.9)\S* in column 2 of 2, [45]\d\S* standard dev",
        ),
        (Shifted(mean=(0.0, -50.0)), r"inputs have a mean of -(50|49\.9)\S* in column 2 of 2, "),
        (
            Shifted(spread=(300.0, 1.0)),
            r"inputs have standard deviations from (0\.\d+|1\S*) to [23]\d\d:",
        ),
        (
            Shifted(spread=(0.05, 20.0)),
            r"inputs have standard deviations from 0\.0[45]\d* to (19|20)",
        ),
        (
            Shifted(label=(1e3, 1.0)),
            r"labels have a mean of 1000, (9\d\d|1\S+) standard deviations from 0: ",
        ),
        (Shifted(label=(0.0, 1e3)), r"labels have a standard deviation of (9\d\d|1)"),
        (Shifted(label=(0.0, 1e-3)), r"labels have a standard deviation of (0\.00|9)"),
        (Shifted(label=(0.0, 5.0)), r"labels have a standard deviation of (4\.[89]|5)"),
        (Shifted(label=(0.0, 0.1)), r"labels have a standard deviation of (0\.09|0\.1)"),
        (
            Shifted(spread=(5.0, 4.0)),
            r"inputs have standard deviations from (3\.[89]|4)\S* to (4\.[89]|5)",
        ),
    ],
)
def test_what_stands_out_is_told_with_what_to_do(family, seen):
    (text,) = warnings(family)
    assert re.search(seen, text), text
    assert "zero mean and unit variance" in text


def test_labels_that_no_output_is_compared_with_do_not_count():
    """Counts of a Poisson law stand beside the exponential of an output."""
    deviance = lambda outputs, y: jnp.mean(jnp.exp(outputs) - y * outputs)  # noqa: E731
    assert warnings(Shifted(label=(1e3, 1.0)), loss=deviance) == []


def test_a_column_that_never_varies_is_in_the_way_if_it_is_large():
    (text,) = warnings(Shifted(mean=(0.0, 500.0), spread=(1.0, 0.0)))
    assert "mean of 500 in column 2 of 2" in text
    # Beside narrow inputs 1 is large; nobody says that it varies.
    (text,) = warnings(Shifted(mean=(0.0, 1.0), spread=(0.02, 0.0)))
    assert "mean of 1 in column 2 of 2" in text
    assert warnings(Shifted(mean=(0.0, 1.0), spread=(1.0, 0.0))) == []
    assert warnings(Shifted(spread=(0.0, 0.0))) == []


def test_a_nearly_constant_flag_is_no_offset():
    """0 or 1 with few zeros: its mean is ten of its own deviations, and harmless beside inputs of width 1."""
    assert warnings(Shifted(mean=(0.0, 0.99), spread=(1.0, 0.1))) == []


class Tokens(Shifted):
    input_shape = (6,)

    def sample(self, key) -> Episode:
        of = super().sample(key)
        tokens = jax.random.randint(key, (10, 6), 0, 30_000)
        return Episode(Batch(tokens, of.support.y), Batch(tokens, of.query.y))


class Pixels(Shifted):
    input_shape = (4, 4, 1)

    def sample(self, key) -> Episode:
        of = super().sample(key)
        pixels = jax.random.uniform(key, (10, 4, 4, 1), maxval=4095.0).at[:, 0].set(0)
        return Episode(Batch(pixels, of.support.y), Batch(pixels, of.query.y))


def test_tokens_have_no_units_and_pixels_are_one_column():
    assert warnings(Tokens()) == []
    (text,) = warnings(Pixels())
    assert "column" not in text


def test_tables_are_told_of_where_they_are_not_standardised(tmp_path):
    table = tmp_path / "table.csv"
    rows = [
        f"t{i},{1000 + (i * 7 + j * 3) % 11},{(i + j) % 5}" for i in range(12) for j in range(40)
    ]
    table.write_text("\n".join(["task,pressure,y", *rows]))
    options = {"target_columns": ("y",), "kind": "regression"}
    assert remarks(str(table), **options) == {"notes": [], "warnings": []}
    (text,) = warnings(str(table), **options)
    assert "mean of 10" in text


@pytest.mark.parametrize("name", ["sinusoid", "quadratic", "linear"])
def test_tasks_of_the_library_are_as_they_are(name):
    assert warnings(name) == []


def test_a_model_of_the_library_meets_them():
    """By its outputs: those of the same parameters without units, on inputs and labels brought to standard ones."""
    family = Shifted(mean=(0.0, 50.0), spread=(1.0, 4.0), label=(-300.0, 20.0))
    found = remarks(family)
    assert not found["warnings"]
    assert len(found["notes"]) == 2
    assert all("--no-standardise" in text for text in found["notes"])
    config = TrainConfig(tasks=family, hidden=(5,))
    description = load_tasks(config).description
    units = description["units"]
    for name, centre, width in (("inputs", [0, 50], [1, 4]), ("labels", [-300], [20])):
        assert units[name]["mean"] == pytest.approx(centre, abs=0.2 * max(width))
        assert units[name]["deviation"] == pytest.approx(width, rel=0.1)
    model = build_model(config, description)
    plain = build_model(dataclasses.replace(config, standardise=False), description)
    params, x = model.init(jax.random.key(3)), jnp.array([[0.3, 54.0], [-1.0, 41.0]])
    seen = (x - jnp.array(units["inputs"]["mean"])) / jnp.array(units["inputs"]["deviation"])
    expected = units["labels"]["mean"][0] + units["labels"]["deviation"][0] * plain.apply(
        params, seen
    )
    np.testing.assert_allclose(model.apply(params, x), expected, rtol=1e-12)
    assert build_model(config, description) is model  # else every program would be compiled anew


def test_labels_stay_where_the_loss_is_the_users_own():
    deviance = lambda outputs, y: jnp.mean(jnp.exp(outputs) - y * outputs)  # noqa: E731
    family = Shifted(mean=(0.0, 50.0), label=(1e3, 1.0))
    config = TrainConfig(tasks=family, loss=deviance, hidden=(5,))
    found = remarks(family, loss=deviance)
    assert [text.split()[0] for text in found["notes"]] == ["inputs"]
    assert not found["warnings"]
    model = build_model(config, load_tasks(config).description)
    outputs = model.apply(model.init(jax.random.key(3)), jnp.array([[0.3, 50.0]]))
    assert abs(float(outputs[0, 0])) < 20


def test_a_model_of_the_users_own_is_left_alone_and_warned_of():
    own = mlp((2,), 1, (5,))
    family = Shifted(mean=(0.0, 50.0))
    config = TrainConfig(tasks=family, model=own, curved_relu=False)
    assert build_model(config, load_tasks(config).description) is own
    found = remarks(family, model=own)
    assert not found["notes"]
    assert len(found["warnings"]) == 1


@pytest.mark.parametrize(
    ("label", "options", "width"),
    [
        ((0.0, 20.0), {"standardise": False}, 20.0),
        ((0.0, 20.0), {"model": mlp((2,), 1, (5,))}, 20.0),
        ((0.0, 20.0), {}, None),  # the model is told
        (
            (0.0, 20.0),
            {"standardise": False, "loss": pseudo_huber},
            None,
        ),  # who knows what outputs are
        ((1e3, 2.0), {"standardise": False}, None),  # far, and no wider than usual
    ],
)
def test_outputs_have_to_grow_to_wide_labels_that_no_model_was_told_of(label, options, width):
    family = Shifted(label=label)
    config = TrainConfig(tasks=family, **({"hidden": (30,)} | options))
    task_set = load_tasks(config)
    found = width_to_grow_to(config, task_set.description.get("units", {}))
    assert found == (None if width is None else pytest.approx(width, rel=0.1))
    assert (measure_rates(config, task_set, num_tasks=32).grown is None) == (width is None)


def test_far_labels_are_learned_and_the_run_remembers_their_units(tmp_path):
    options = {"tasks": Shifted(label=(1e3, 2.0)), "hidden": (4,), "iterations": 30}
    options |= {"tasks_per_step": 3, "eval_tasks": 20, "steps": 1}
    train(TrainConfig(**options), RunFolder(tmp_path / "run"))
    run = load_run(RunFolder(tmp_path / "run"), tasks=options["tasks"])
    # Labels are noise: nothing can do better than their mean, whose error is their variance.
    assert evaluate_run(run, num_tasks=100)[0].after.loss.mean == pytest.approx(4, rel=0.5)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 2)), 1e3 + 2 * rng.normal(size=(10, 1))
    assert adapt_and_predict(run, x, y, x).predictions == pytest.approx(1e3, abs=10)
    raw = TrainConfig(**options, standardise=False)
    train(raw, RunFolder(tmp_path / "raw"))
    run = load_run(RunFolder(tmp_path / "raw"), tasks=options["tasks"])
    assert evaluate_run(run, num_tasks=100)[0].after.loss.mean > 100  # power


def test_the_record_of_a_run_holds_them_whether_or_not_rates_are_measured():
    options = {"tasks": Shifted(mean=(0.0, 50.0)), "hidden": (4,), "iterations": 2}
    for alpha, standardise in (("auto", True), (0.01, False)):
        config = TrainConfig(
            **options,
            alpha=alpha,
            standardise=standardise,
            rate="fixed",
            meta_lr=1e-3,
            rehearse=False,
        )
        found = choose_rates(config, load_tasks(config))
        texts = found["notes" if standardise else "warnings"]
        assert any(text.startswith("inputs have a mean of ") for text in texts)
