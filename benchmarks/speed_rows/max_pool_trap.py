"""Max-pooling by `jnp.max` gives wrong second derivatives under XLA; other ways to pool give the right ones.

python benchmarks/speed_rows/max_pool_trap.py
"""

import os
import sys

os.environ["JAX_ENABLE_X64"] = "1"

import jax
import jax.numpy as jnp
import numpy as np

from metastep import Batch
from metastep.models import Objective, conv4, max_pool


def by_equality(x):
    """What most code does; its derivative looks for the entries that equal the maximum."""
    n, height, width, channels = x.shape
    windows = x.reshape(n, height // 2, 2, width // 2, 2, channels)
    return jnp.max(windows, axis=(2, 4))


def by_window(x):
    """As the pooling layers of Flax do."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def derivatives(pool, rng):
    """By automatic differentiation and by central differences, in float64."""
    sys.modules["metastep.models.conv4"].max_pool = pool  # pyright: ignore[reportAttributeAccessIssue]
    model = conv4((16, 16, 3), 5, filters=32, pooling="max")
    params = model.init(jax.random.key(0))
    loss = Objective.of(model.apply, "classification")
    images, labels = jnp.asarray(rng.uniform(size=(2, 5, 16, 16, 3))), jnp.arange(5)

    @jax.jit
    def meta_loss(params):
        slope = jax.grad(loss)(params, Batch(images[0], labels))
        adapted = jax.tree.map(lambda leaf, g: leaf - 0.05 * g, params, slope)
        return loss(adapted, Batch(images[1], labels))

    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    slope = jax.jit(jax.grad(meta_loss))(params)
    ahead, behind = (
        meta_loss(jax.tree.map(lambda a, d, h=h: a + h * d, params, direction))
        for h in (1e-7, -1e-7)
    )
    along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, slope, direction)))
    return float(along), float(ahead - behind) / 2e-7


if __name__ == "__main__":
    ways = {"jnp.max": by_equality, "reduce_window": by_window, "models.max_pool": max_pool}
    for name, way in ways.items():
        found, expected = derivatives(way, np.random.default_rng(1))
        print(f"{name:16} {found:10.6f}   central differences {expected:10.6f}")
