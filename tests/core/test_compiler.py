"""Options for XLA: which are given and when not, and that programs which have them go everywhere `jax.jit` does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metastep import _compiler
from metastep._compiler import ON_CPU, TunedJit, compiler_options, computed_once, is_traced

X = jnp.linspace(0.1, 1.0, 5)


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    """The suite itself tells XLA what to do."""
    monkeypatch.setenv("XLA_FLAGS", "")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def double(x):
    return 2 * x


def test_this_version_of_xla_knows_all_options():
    assert compiler_options() == ON_CPU


@pytest.mark.parametrize("name", ON_CPU)
def test_what_the_environment_decides_is_left_to_it(monkeypatch, name):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_enable_fast_math=false --{name}=1")
    assert compiler_options() == {key: ON_CPU[key] for key in ON_CPU if key != name}


def test_little_optimisation_stays_little():
    jax.config.update("jax_disable_most_optimizations", True)
    assert "xla_backend_optimization_level" not in compiler_options()


def test_accelerators_get_none(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options() == {}


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setitem(ON_CPU, "xla_cpu_of_another_time", True)
    assert "xla_cpu_of_another_time" not in compiler_options()
    assert TunedJit(double)(1.5) == 3.0


def test_programs_are_compiled_with_them(monkeypatch):
    # What XLA refuses shows that it was told.
    monkeypatch.setitem(ON_CPU, "xla_cpu_of_another_time", True)
    monkeypatch.setattr(_compiler, "_known", lambda name: True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_cpu_of_another_time"):
        TunedJit(double)(1.5)


def test_what_runs_for_minutes_is_compiled_as_xla_does_by_itself(monkeypatch):
    monkeypatch.setitem(ON_CPU, "xla_cpu_of_another_time", True)
    monkeypatch.setattr(_compiler, "_known", lambda name: True)
    assert TunedJit(double, long_running=True)(1.5) == 3.0


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f: f,
        jax.jit,
        jax.vmap,
        lambda f: jax.jit(jax.vmap(f)),
        lambda f: lambda x: jax.jvp(f, (X,), (x,))[1],
        lambda f: jax.grad(lambda x: jnp.sum(f(x) ** 2) / 4),
        lambda f: lambda xs: jax.lax.map(f, xs),
        lambda f: lambda x: jax.lax.cond(x[0] > 0, f, lambda x: x, x),
        lambda f: TunedJit(lambda x: f(x)),
    ],
    ids=["alone", "jit", "vmap", "jit of vmap", "jvp", "grad", "map", "cond", "nested"],
)  # fmt: skip
def test_it_goes_where_jit_goes(transformed):
    np.testing.assert_allclose(transformed(TunedJit(double))(X), 2 * X, rtol=1e-12)


def test_within_a_derivative_even_if_no_argument_tells():
    def scaled(x):
        return TunedJit(lambda: x**2)()

    assert jax.grad(scaled)(3.0) == 6.0


def test_static_arguments_and_lowering():
    power = TunedJit(lambda x, n: x**n, static_argnums=(1,))
    assert power(3.0, 2) == 9.0
    assert power.lower(3.0, 3).compile()(3.0) == 27.0


def test_traced_is_what_becomes_part_of_something():
    seen = []

    def look(x):
        seen.append(is_traced())
        return x

    look(1.0)
    jax.jit(look)(1.0)
    jax.grad(look)(1.0)
    with jax.disable_jit():
        look(1.0)
    assert seen == [False, True, True, False]


def _in_many_places(once):
    """Products of a sine with every one of 40 numbers, twice, each time summed another way: two uses of the sine."""

    def used(x, weights, count):
        sine = once(lambda: jnp.sin(x), count >= 0)
        wide = jnp.tanh(sine[:, None] * weights)
        return wide.sum(0), (wide * sine[:, None]).sum(1)

    return used


def _sines(function):
    arguments = X, jnp.linspace(0.0, 1.0, 40), jnp.asarray(3)
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return text.count(" sine("), function(*arguments)


def test_what_is_computed_once_is_not_in_each_of_its_uses():
    several, expected = _sines(_in_many_places(lambda make, truth: make()))
    once, found = _sines(_in_many_places(computed_once))
    assert several > 1, "XLA has learned to do so by itself: drop computed_once"
    assert once == 1
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)


def test_accelerators_compute_as_they_like(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    made = jax.make_jaxpr(lambda x, n: computed_once(lambda: jnp.sin(x), n >= 0))(X, 1)
    assert "cond" not in str(made)
