"""What a run says about inputs and labels that nobody has brought to zero mean and unit variance."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Array, Float

from metastep import Batch, Episode
from metastep.tasks import AbstractTaskFamily
from metastep.train import TrainConfig, choose_rates, load_tasks
from metastep.train.units import warn_of_units


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


def warnings(family, **options) -> list[str]:
    config = TrainConfig(tasks=family, **options)
    return warn_of_units(config, load_tasks(config))


@given(
    mean=st.tuples(*[st.floats(-2.5, 2.5)] * 2),
    spread=st.tuples(*[st.floats(0.5, 5.0)] * 2),
    label=st.tuples(st.floats(-1.0, 1.0), st.floats(0.5, 5.0)),
)
def test_nothing_is_said_about_usual_numbers(mean, spread, label):
    small = tuple(m * s for m, s in zip(mean, spread, strict=True))
    assert warnings(Shifted(small, spread, label)) == []


@pytest.mark.parametrize(
    ("family", "seen"),
    [
        (
            Shifted(mean=(0.0, 50.0)),
            r"inputs have a mean of (50|49\.9)\S* and a standard deviation of \S+ in column 2",
        ),
        (Shifted(mean=(0.0, -50.0)), r"inputs have a mean of -(50|49\.9)\S* .* in column 2 of 2"),
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
            r"labels have a mean of 1000 and a standard deviation of \S+: ",
        ),
        (Shifted(label=(0.0, 1e3)), r"labels have a standard deviation of (9\d\d|1)"),
        (Shifted(label=(0.0, 1e-3)), r"labels have a standard deviation of (0\.00|9)"),
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
    assert "mean of 500 and a standard deviation of 0 in column 2 of 2" in text
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
    assert warnings(str(table), target_columns=("y",), kind="regression") == []
    (text,) = warnings(str(table), target_columns=("y",), kind="regression", standardise=False)
    assert "mean of 10" in text


@pytest.mark.parametrize("name", ["sinusoid", "quadratic", "linear"])
def test_tasks_of_the_library_are_as_they_are(name):
    assert warnings(name) == []


def test_the_record_of_a_run_holds_it_whether_or_not_rates_are_measured():
    options = {"tasks": Shifted(mean=(0.0, 50.0)), "hidden": (4,), "iterations": 2}
    for alpha in ("auto", 0.01):
        config = TrainConfig(**options, alpha=alpha, rate="fixed", meta_lr=1e-3, rehearse=False)
        found = choose_rates(config, load_tasks(config))["warnings"]
        assert any("mean of 50" in text or "mean of 49" in text for text in found)
