"""Few-shot classification over an array of images or feature vectors, sampled on the device."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from metastep._errors import InputError
from metastep._types import Batch, Episode, Kind
from metastep.tasks.core import (
    AbstractTaskFamily,
    as_default_float,
    check_counts,
    check_groups,
    check_sizes,
)
from metastep.tasks.draws import distinct


class FewShot(AbstractTaskFamily):
    """N-way K-shot episodes: classes without replacement, then examples of each without replacement.

    Attributes
    ----------
    examples : (examples, ...) sorted by class; uint8 images in 0..255, handed on as floats in 0..1, or
        floating-point features, handed on as they are
    counts : (classes,) number of examples of each class
    ways, shots, queries : classes of a task, and support and query examples of each class
    curvature : examples of each class in the separate Hessian sample D_h; 0 takes D_h = D_in
    rotations : treat each class turned by 90, 180 and 270 degrees as three more classes
    largest_class : max(counts), known when compiling

    Raises
    ------
    InputError
        When a size is out of range, counts do not add up to the examples, there are fewer classes than
        ways, or a class has too few examples.
    """

    examples: Array
    counts: Int[Array, " classes"]
    ways: int = eqx.field(static=True)
    shots: int = eqx.field(static=True)
    queries: int = eqx.field(static=True)
    curvature: int = eqx.field(static=True)
    rotations: bool = eqx.field(static=True)
    largest_class: int = eqx.field(static=True)

    def __init__(
        self,
        examples: np.ndarray,
        counts: np.ndarray,
        *,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        curvature: int = 0,
        rotations: bool = False,
        names: tuple[str, ...] = (),
    ):
        check_sizes(ways=ways, shots=shots, queries=queries, curvature=curvature)
        counts = np.asarray(counts)
        check_counts(counts, len(examples), "class", "examples")
        num_classes = len(counts) * (4 if rotations else 1)
        if num_classes < ways:
            raise InputError(
                f"{ways}-way tasks need {ways} classes, but there are only {num_classes}"
            )
        needed = {"shots": shots, "queries": queries, "curvature": curvature}
        check_groups(counts, needed, names, "classes", "examples")
        if rotations and (examples.ndim != 4 or examples.shape[1] != examples.shape[2]):
            raise InputError(
                f"rotations need square images (n, size, size, channels), not {examples.shape}"
            )
        self.examples = as_default_float(examples)
        self.counts = jnp.asarray(counts, jnp.result_type(int))
        self.ways, self.shots, self.queries = ways, shots, queries
        self.curvature, self.rotations = curvature, rotations
        self.largest_class = int(counts.max())

    @property
    def kind(self) -> Kind:
        return "classification"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.examples.shape[1:]

    @property
    def output_size(self) -> int:
        return self.ways

    def sample(self, key: PRNGKeyArray) -> Episode:
        class_key, example_key = jax.random.split(key)
        turns = 4 if self.rotations else 1
        drawn = distinct(class_key, len(self.counts) * turns, self.ways)
        classes, turn = drawn // turns, drawn % turns
        sizes = (self.shots, self.queries, self.curvature)
        within = jax.vmap(lambda k, n: distinct(k, n, sum(sizes), self.largest_class))(
            jax.random.split(example_key, self.ways), self.counts[classes]
        )  # (ways, examples)
        first = jnp.cumsum(self.counts) - self.counts
        x = self.examples[first[classes][:, None] + within]
        if self.rotations:
            x = jax.vmap(_rotate)(x, turn)
        if jnp.issubdtype(x.dtype, jnp.integer):
            x = x.astype(jnp.result_type(float)) / 255
        return self._split(x, sizes)

    def _split(self, x: Array, sizes: tuple[int, int, int]) -> Episode:
        shots, queries, curvature = sizes
        labels = jnp.arange(self.ways)

        def part(start: int, size: int) -> Batch:
            images = x[:, start : start + size]
            return Batch(images.reshape(-1, *self.input_shape), jnp.repeat(labels, size))

        own_curvature = part(shots + queries, curvature) if curvature else None
        return Episode(part(0, shots), part(shots, queries), own_curvature)


def _rotate(images: Array, turns: Int[Array, ""]) -> Array:
    """Turn a stack of square images by 90 degrees `turns` times.

    Pixels are looked up, of which XLA makes a smaller program than of a choice between four turned stacks: every
    program that draws tasks compiles it.
    """
    count, size, _, channels = images.shape
    places = np.arange(size * size).reshape(size, size)
    turned = np.stack([np.rot90(places, quarter).ravel() for quarter in range(4)])
    pixels = images.reshape(count, size * size, channels)
    return jnp.take(pixels, jnp.asarray(turned)[turns], axis=1, mode="clip").reshape(images.shape)
