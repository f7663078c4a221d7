"""Classes of long vectors. The first found that ReLU needs a second derivative, the second was written after that."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from metastep import Episode
from metastep.tasks import AbstractTaskFamily
from own_problems import split


class Embeddings(AbstractTaskFamily):
    """Five of 200 classes, each a fixed direction in 128 dimensions with twice as much noise around it: 5 shots."""

    kind = "classification"
    input_shape = (128,)
    output_size = 5
    shots: int = eqx.field(static=True, default=5)

    def sample(self, key: PRNGKeyArray) -> Episode:
        which_key, noise_key = jax.random.split(key)
        centres = jnp.asarray(np.random.default_rng(0).normal(size=(200, 128)), float)
        which = jax.random.choice(which_key, 200, (5,), replace=False)
        labels = jnp.tile(jnp.arange(5), 2 * self.shots)
        x = centres[which[labels]] + 2 * jax.random.normal(noise_key, (labels.size, 128))
        return split(x, labels, 5 * self.shots)


class Permuted(AbstractTaskFamily):
    """Ten fixed patterns of 64 pixels with noise, pixels in an order that is the task's own: 5 shots."""

    kind = "classification"
    input_shape = (64,)
    output_size = 10
    shots: int = eqx.field(static=True, default=5)

    def sample(self, key: PRNGKeyArray) -> Episode:
        order_key, noise_key = jax.random.split(key)
        patterns = jnp.asarray(np.random.default_rng(0).normal(size=(10, 64)), float)
        labels = jnp.tile(jnp.arange(10), 2 * self.shots)
        x = patterns[labels] + jax.random.normal(noise_key, (labels.size, 64))
        return split(x[:, jax.random.permutation(order_key, 64)], labels, 10 * self.shots)
