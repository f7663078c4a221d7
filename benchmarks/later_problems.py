"""Tasks written after tasks were bounded: functions of several kinds, many inputs of which few matter, arms.

The last two found misses: classes that can be told apart without error, and a loss without curvature.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metastep import Episode
from metastep.tasks import AbstractTaskFamily
from own_problems import split

_UNIFORM, _NORMAL = jax.random.uniform, jax.random.normal


class Modes(AbstractTaskFamily):
    """Waves, lines, parabolas, corners and steps, five kinds of functions after Vuorio et al. (2019), with noise."""

    kind = "regression"
    input_shape = (1,)
    output_size = 1
    shots: int = eqx.field(static=True, default=10)

    def sample(self, key: PRNGKeyArray) -> Episode:
        kind_key, place_key, size_key, input_key, noise_key = jax.random.split(key, 5)
        place, slope = _UNIFORM(place_key, (2,), minval=-3, maxval=3)
        height = _UNIFORM(size_key, minval=0.1, maxval=5)
        x = _UNIFORM(input_key, (2 * self.shots, 1), minval=-5, maxval=5)
        away = x - place
        modes = jnp.stack(
            [
                height * jnp.sin(away),
                slope * x + place,
                0.05 * slope * away**2,
                slope * jnp.abs(away),
                height * jnp.tanh(2 * away),
            ]
        )
        y = modes[jax.random.randint(kind_key, (), 0, len(modes))]
        return split(x, y + 0.3 * _NORMAL(noise_key, y.shape), self.shots)


class Sparse(AbstractTaskFamily):
    """Forty inputs, three of which count in each task; eight of them ever do. Fewer examples than inputs."""

    kind = "regression"
    input_shape = (40,)
    output_size = 1
    shots: int = eqx.field(static=True, default=15)

    def sample(self, key: PRNGKeyArray) -> Episode:
        which_key, weight_key, input_key, noise_key = jax.random.split(key, 4)
        which = jax.random.choice(which_key, 8, (3,), replace=False)
        weights = 1.5 * jax.random.rademacher(weight_key, (3,), float)
        x = _NORMAL(input_key, (2 * self.shots, 40))
        y = (x[:, which] @ weights + x[:, which[0]] * x[:, which[1]])[:, None]
        return split(x, y + 0.5 * _NORMAL(noise_key, y.shape), self.shots)


class Arms(AbstractTaskFamily):
    """Where an arm with two links points to, by its two angles; lengths of the links and where angles begin differ.

    `turn` is a radian and `reach` 25 cm in the units that the data are in: 57.3 for degrees, 25 for centimetres.
    """

    kind = "regression"
    input_shape = (2,)
    output_size = 2
    turn: float = eqx.field(converter=jnp.asarray, default=1.0)
    reach: float = eqx.field(converter=jnp.asarray, default=1.0)

    def sample(self, key: PRNGKeyArray) -> Episode:
        link_key, begin_key, angle_key = jax.random.split(key, 3)
        first, second = self.reach * _UNIFORM(link_key, (2,), minval=0.4, maxval=1.6)
        begin = _UNIFORM(begin_key, (2,), minval=-0.6, maxval=0.6)
        angles = _UNIFORM(angle_key, (25, 2), minval=-jnp.pi / 2, maxval=jnp.pi / 2)
        turned = jnp.cumsum(angles + begin, axis=1)
        x, y = (first * f(turned[:, 0]) + second * f(turned[:, 1]) for f in (jnp.cos, jnp.sin))
        return split(self.turn * angles, jnp.stack([x, y], axis=1), 10)


class Spirals(AbstractTaskFamily):
    """Two arms of a spiral, how tight and turned how far is the task's own; they hardly touch."""

    kind = "classification"
    input_shape = (2,)
    output_size = 2
    shots: int = eqx.field(static=True, default=20)

    def sample(self, key: PRNGKeyArray) -> Episode:
        own_key, input_key, noise_key = jax.random.split(key, 3)
        low, high = jnp.array([[0.0, 1.0], [2 * jnp.pi, 3.0]])
        turn, tightness = _UNIFORM(own_key, (2,), minval=low, maxval=high)
        labels = jnp.tile(jnp.arange(2), self.shots)
        distance = _UNIFORM(input_key, labels.shape, minval=0.2, maxval=2)
        angle = tightness * distance + jnp.pi * labels + turn
        x = distance[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
        return split(x + 0.05 * jax.random.normal(noise_key, x.shape), labels, self.shots)


class Decays(AbstractTaskFamily):
    """Oscillations that decay over time; the noise has a finite mean and no finite variance."""

    kind = "regression"
    input_shape = (1,)
    output_size = 1
    shots: int = eqx.field(static=True, default=10)

    def sample(self, key: PRNGKeyArray) -> Episode:
        own_key, input_key, noise_key = jax.random.split(key, 3)
        low, high = jnp.array([[0.5, 0.2, -1.0], [2.0, 2.0, 1.0]])
        height, rate, level = _UNIFORM(own_key, (3,), minval=low, maxval=high)
        time = _UNIFORM(input_key, (2 * self.shots, 1), maxval=4)
        y = height * jnp.exp(-rate * time) * jnp.cos(3 * time) + level
        return split(time, y + 0.1 * jax.random.t(noise_key, 2.0, y.shape), self.shots)


def absolute_error(outputs: Float[Array, "n 1"], y: Float[Array, "n 1"]) -> Float[Array, ""]:
    """Mean absolute error."""
    return jnp.mean(jnp.abs(outputs - y))
