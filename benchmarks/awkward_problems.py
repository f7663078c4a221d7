"""Tasks that plain gradient steps find awkward: counts, wild labels, unlike units, sequences, offsets, rare classes.

Two have a loss of their own. Written after all of `own_problems` had been run, `Weather` and `Rare` after the others.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from metastep import Episode
from metastep.models import Model, from_equinox
from metastep.tasks import AbstractTaskFamily
from own_problems import split

_UNIFORM, _NORMAL = jax.random.uniform, jax.random.normal


class Counts(AbstractTaskFamily):
    """Counts whose logarithmic rate is a wave of the task's own over two inputs: from none to hundreds."""

    kind = "regression"
    input_shape = (2,)
    output_size = 1
    shots: int = eqx.field(static=True, default=12)

    def sample(self, key: PRNGKeyArray) -> Episode:
        wave_key, input_key, count_key = jax.random.split(key, 3)
        level, height = _NORMAL(wave_key, (2,))
        phases = _UNIFORM(jax.random.fold_in(wave_key, 1), (2,), maxval=2 * jnp.pi)
        x = _UNIFORM(input_key, (2 * self.shots, 2), minval=-2, maxval=2)
        first, second = jnp.sin(2 * x[:, 0] + phases[0]), jnp.cos(x[:, 1] + phases[1])
        rate = jnp.exp(1 + 0.7 * level + 0.6 * first + 0.5 * height * second)
        return split(x, jax.random.poisson(count_key, rate).astype(float)[:, None], self.shots)


def deviance(outputs: Float[Array, "n 1"], counts: Float[Array, "n 1"]) -> Float[Array, ""]:
    """Mean Poisson deviance of logarithmic rates: 0 where every rate is its count."""
    surprise = jax.scipy.special.xlogy(counts, counts)
    return jnp.mean(2 * (surprise - counts * outputs - counts + jnp.exp(outputs)))


class Outliers(AbstractTaskFamily):
    """Smooth functions of three inputs; one label in ten of the support set is 30 off, of the query set none."""

    kind = "regression"
    input_shape = (3,)
    output_size = 1
    shots: int = eqx.field(static=True, default=20)

    def sample(self, key: PRNGKeyArray) -> Episode:
        weight_key, input_key, wild_key, sign_key = jax.random.split(key, 4)
        weights = _NORMAL(weight_key, (3,))
        x = _NORMAL(input_key, (2 * self.shots, 3))
        y = 2 * jnp.tanh(x @ weights) + 0.3 * weights[0] * jnp.sum(x, axis=1)
        known = jnp.arange(2 * self.shots) < self.shots
        wild = known & (_UNIFORM(wild_key, (2 * self.shots,)) < 0.1)
        off = 30 * jax.random.rademacher(sign_key, (2 * self.shots,), float)
        return split(x, (y + jnp.where(wild, off, 0))[:, None], self.shots)


def huber(outputs: Float[Array, "n 1"], y: Float[Array, "n 1"]) -> Float[Array, ""]:
    """Squared error up to 1, and from there on as steep as there."""
    return jnp.mean(2 * optax.huber_loss(outputs, y, delta=1.0))


class Units(AbstractTaskFamily):
    """Three outputs of sizes 20, 1 and 0.05, of two inputs of sizes 1 and 50, and nobody scales them."""

    kind = "regression"
    input_shape = (2,)
    output_size = 3
    shots: int = eqx.field(static=True, default=10)

    def sample(self, key: PRNGKeyArray) -> Episode:
        own_key, input_key = jax.random.split(key)
        a, b, c, d = _UNIFORM(own_key, (4,), minval=-1.5, maxval=1.5)
        u, v = _UNIFORM(input_key, (2, 2 * self.shots), minval=-1, maxval=1)
        y = [20 * jnp.sin(2 * u + a), b * v + c, 0.05 * jnp.cos(3 * u * v + d)]
        return split(jnp.stack([u, 50 * v], axis=1), jnp.stack(y, axis=1), self.shots)


class Series(AbstractTaskFamily):
    """Twenty values of a damped oscillation, its frequency and damping the task's own, to the one that follows."""

    kind = "regression"
    input_shape = (20,)
    output_size = 1
    shots: int = eqx.field(static=True, default=8)

    def sample(self, key: PRNGKeyArray) -> Episode:
        own_key, start_key, noise_key = jax.random.split(key, 3)
        low, high = jnp.array([[0.2, 0.9], [1.2, 1.0]])
        frequency, damping = _UNIFORM(own_key, (2,), minval=low, maxval=high)
        height, phase = _UNIFORM(start_key, (2, 2 * self.shots, 1))
        t = jnp.arange(21.0)
        wave = (0.5 + height) * damping**t * jnp.sin(frequency * t + 2 * jnp.pi * phase)
        values = wave + 0.02 * _NORMAL(noise_key, wave.shape)
        return split(values[:, :20], values[:, 20:], self.shots)


class _Recurrent(eqx.Module):
    cell: eqx.nn.GRUCell
    out: eqx.nn.Linear

    def __init__(self, key: PRNGKeyArray):
        cell_key, out_key = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(1, 16, key=cell_key)
        self.out = eqx.nn.Linear(16, 1, key=out_key)

    def __call__(self, series: Float[Array, " time"]) -> Float[Array, " 1"]:
        def step(state: Array, value: Array) -> tuple[Array, None]:
            return self.cell(value[None], state), None

        return self.out(jax.lax.scan(step, jnp.zeros(16), series)[0])


def recurrent() -> Model:
    """A gated recurrent unit of width 16 that reads a series value by value."""
    return from_equinox(_Recurrent)


class Weather(AbstractTaskFamily):
    """Degrees, percents and hectopascals as instruments give them, to a reading that each site weighs its own way.

    Pressure is always near 1,013, so that a network sees little else until its first layer has learned to. Other
    means and standard deviations of inputs, and others of the reading than 0 and 2.1, may be given.
    """

    kind = "regression"
    input_shape = (3,)
    output_size = 1
    shots: int = eqx.field(static=True, default=10)
    usual: Float[Array, " 3"] = eqx.field(converter=jnp.asarray, default=(15.0, 60.0, 1013.0))
    spread: Float[Array, " 3"] = eqx.field(converter=jnp.asarray, default=(8.0, 15.0, 10.0))
    label_mean: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.0)
    label_spread: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=1.0)

    def sample(self, key: PRNGKeyArray) -> Episode:
        site_key, input_key, noise_key = jax.random.split(key, 3)
        weights, level = _NORMAL(site_key, (3,)), _NORMAL(jax.random.fold_in(site_key, 1))
        z = _NORMAL(input_key, (2 * self.shots, 3))
        y = level + z @ weights + 0.5 * z[:, 0] * z[:, 1] + 0.1 * _NORMAL(noise_key, z.shape[:1])
        readings = self.label_mean + self.label_spread * y[:, None]
        return split(self.usual + self.spread * z, readings, self.shots)


class Rare(AbstractTaskFamily):
    """Faults of machines: about one example in ten is one, told by a direction that each machine has of its own."""

    kind = "classification"
    input_shape = (8,)
    output_size = 2
    shots: int = eqx.field(static=True, default=25)

    def sample(self, key: PRNGKeyArray) -> Episode:
        own_key, input_key = jax.random.split(key)
        direction = jnp.ones(8) / 2 + _NORMAL(own_key, (8,)) / 2
        x = _NORMAL(input_key, (2 * self.shots, 8))
        far = x @ direction / jnp.linalg.norm(direction)
        return split(x, (far > 1.3).astype(int), self.shots)
