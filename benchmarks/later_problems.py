"""Tasks written after tasks were bounded: functions of several kinds, and many inputs of which few matter."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

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
