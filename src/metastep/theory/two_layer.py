"""The tangent kernel of a wide two-layer network in closed form, one chunk of its width at a time.

With scalar inputs, width 10,240 makes 30,721 tangent features. Those of 1,600 examples would fill
393 MB in float64; their Gram matrix fills 20 MB.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from metastep._errors import check_choice, check_count
from metastep._types import Scalar
from metastep.theory._inputs import check_array, to_common_dtype
from metastep.theory.citations import source

__all__ = [
    "TwoLayerNetwork",
    "two_layer_network",
    "two_layer_tangent_gram",
    "two_layer_tangent_moments",
]


@source("zou2022", "section H.2, two-layer network", "as printed")
class TwoLayerNetwork(NamedTuple):
    """f(x) = w2 . relu(W1 x + b1) + b2.

    Attributes
    ----------
    hidden : (width, inputs) W1
    hidden_bias : (width,) b1
    output : (width,) w2
    output_bias : () b2, which no tangent feature depends on
    """

    hidden: Float[Array, "width inputs"]
    hidden_bias: Float[Array, " width"]
    output: Float[Array, " width"]
    output_bias: Scalar

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "..."]:
        """Outputs (...) for inputs (..., inputs)."""
        active = jax.nn.relu(x @ self.hidden.T + self.hidden_bias)
        return active @ self.output + self.output_bias


@source("zou2022", "section H.2, two-layer network with normal or uniform weights", "as printed")
def two_layer_network(
    key: PRNGKeyArray,
    inputs: int,
    width: int = 10_000,
    law: Literal["normal", "uniform"] = "uniform",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> TwoLayerNetwork:
    """Random weights for the wide network of the over-parameterised experiments.

        normal: every weight and bias N(0, 1);   uniform: U(-1/sqrt(n), 1/sqrt(n)), n inputs of the
        layer

    Parameters
    ----------
    key : random key
    inputs : dimension of x, at least 1
    width : hidden units, at least 1
    law : "normal" or "uniform"; the latter is the default of common frameworks and gives the scale
        of 1e-4 for alpha seen in the paper's figures
    dtype : float32 or float64

    Returns
    -------
    `TwoLayerNetwork`.

    Raises
    ------
    InputError
        For sizes below 1 or an unknown law.

    References
    ----------
    Zou et al. (2022), sections 5.1, 5.2 and H.2; the paper names the laws, not their scales.
    """
    check_count("inputs", inputs)
    check_count("width", width)
    check_choice("law", law, ("normal", "uniform"))
    shapes = ((width, inputs), (width,), (width,), ())
    fans = (inputs, inputs, width, width)
    parts = [
        jax.random.normal(part_key, shape, dtype)
        if law == "normal"
        else jax.random.uniform(part_key, shape, dtype, -1, 1) / fan**0.5
        for part_key, shape, fan in zip(jax.random.split(key, 4), shapes, fans, strict=True)
    ]
    return TwoLayerNetwork(*parts)


@source("metastep", "closed form of the two-layer tangent kernel", "derived")
@source("zou2022", "(H.17), Gram matrix of the tangent features", "as printed")
def two_layer_tangent_gram(
    network: TwoLayerNetwork,
    x: Float[ArrayLike, "*tasks examples inputs"],
    other: Float[ArrayLike, "*tasks others inputs"] | None = None,
    *,
    chunk: int = 1024,
) -> Float[Array, "*tasks examples others"]:
    """Tangent kernel of a two-layer network between two sets of inputs, or between those of every task.

        k(x, x') = R R'^T + 1 + (D D'^T) o (x x'^T + 1),   R = relu(Z), D = 1[Z > 0] w2, Z = x W1^T
        + b1

    Parameters
    ----------
    network : weights at which the tangent is taken
    x : (examples, inputs), or (tasks, examples, inputs) for the kernel within every task
    other : (others, inputs) or (tasks, others, inputs), x'; x itself when left out
    chunk : hidden units handled at a time; the working memory is about
        4 (examples + others) chunk numbers, of one task at a time

    Returns
    -------
    (examples, others) or (tasks, examples, others) Gram matrix k, equal to Psi(x) Psi(x')^T.

    Raises
    ------
    InputError
        For shapes that do not match the network, empty or non-finite arrays, or a chunk below 1.

    References
    ----------
    Zou et al. (2022), (H.16)-(H.17) define the features Psi; the closed form of their Gram matrix
    is derived here.
    """
    axes = ("tasks", "examples") if jnp.ndim(x) == 3 else ("examples",)
    network, points = _check_network(network, x, *axes)
    others = points
    if other is not None:
        tasks, inputs = points.shape[:-2], points.shape[-1]
        others = check_array("other", other, *tasks, "others", inputs).astype(points.dtype)
    units = _chunks(network, chunk)
    if len(axes) == 2:
        return _grams_of_tasks(units, points, others)
    return _gram(units, points, others)


@jax.jit
def _grams_of_tasks(units: TwoLayerNetwork, points: Array, others: Array) -> Array:
    return jax.lax.map(lambda task: _gram(units, *task), (points, others))


def _gram(units: TwoLayerNetwork, points: Array, others: Array) -> Array:
    """The kernel between two batches, from chunks of hidden units."""
    start = jnp.zeros((len(points), len(others)), points.dtype)

    def add_units(
        sums: tuple[Array, Array], units: TwoLayerNetwork
    ) -> tuple[tuple[Array, Array], None]:
        (left, left_slopes), (right, right_slopes) = _unit_features(units, points, others)
        return (sums[0] + left @ right.T, sums[1] + left_slopes @ right_slopes.T), None

    (of_outputs, of_slopes), _ = jax.lax.scan(add_units, (start, start), units)
    return of_outputs + 1 + of_slopes * (points @ others.T + 1)


@source("zou2022", "(H.15), entry moments of the tangent features", "as printed")
def two_layer_tangent_moments(
    network: TwoLayerNetwork, x: Float[ArrayLike, "examples inputs"], *, chunk: int = 1024
) -> tuple[Scalar, Scalar]:
    """Mean and mean square over all entries of the tangent features, without forming them.

    The difference mean square - mean^2 is the variance of the entries that (H.15) calls sigma~^2,
    and dim times the mean square is E|psi|^2.

    Parameters
    ----------
    network : weights at which the tangent is taken
    x : (examples, inputs)
    chunk : hidden units handled at a time

    Returns
    -------
    () mean and () mean square of the examples x (width (inputs + 2) + 1) entries.

    Raises
    ------
    InputError
        For shapes that do not match the network, empty or non-finite arrays, or a chunk below 1.

    References
    ----------
    Zou et al. (2022), (H.15) and the text after (H.17).
    """
    network, points = _check_network(network, x, "examples")
    zero = jnp.zeros((), points.dtype)

    def add_units(
        sums: tuple[Array, Array], units: TwoLayerNetwork
    ) -> tuple[tuple[Array, Array], None]:
        ((outputs, slopes),) = _unit_features(units, points)
        total = jnp.sum(outputs) + jnp.sum(slopes.sum(1) * (points.sum(1) + 1))
        squares = jnp.sum(outputs**2) + jnp.sum((slopes**2).sum(1) * ((points**2).sum(1) + 1))
        return (sums[0] + total, sums[1] + squares), None

    (total, squares), _ = jax.lax.scan(add_units, (zero, zero), _chunks(network, chunk))
    examples, inputs = points.shape
    entries = examples * (len(network.output) * (inputs + 2) + 1)
    return (total + examples) / entries, (squares + examples) / entries


def _check_network(
    network: TwoLayerNetwork, x: Float[ArrayLike, "*axes inputs"], *axes: str
) -> tuple[TwoLayerNetwork, Array]:
    hidden = check_array("network.hidden", network.hidden, "width", "inputs")
    width, inputs = hidden.shape
    arrays = to_common_dtype(
        hidden,
        check_array("network.hidden_bias", network.hidden_bias, width),
        check_array("network.output", network.output, width),
        check_array("network.output_bias", network.output_bias),
        check_array("x", x, *axes, inputs),
    )
    return TwoLayerNetwork(*arrays[:4]), arrays[4]


def _chunks(network: TwoLayerNetwork, chunk: int) -> TwoLayerNetwork:
    """The hidden units in equal chunks on a new leading axis; padding units have no effect."""
    check_count("chunk", chunk)
    width = len(network.output)
    size = min(chunk, width)
    padding = -width % size

    def split(leaf: Array) -> Array:
        padded = jnp.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(-1, size, *leaf.shape[1:])

    count = (width + padding) // size
    return TwoLayerNetwork(
        split(network.hidden),
        split(network.hidden_bias),
        split(network.output),
        jnp.broadcast_to(network.output_bias, count),
    )


def _unit_features(units: TwoLayerNetwork, *batches: Array) -> list[tuple[Array, Array]]:
    """R and D of some hidden units for each batch of inputs, both (examples, units)."""
    features = []
    for points in batches:
        values = points @ units.hidden.T + units.hidden_bias
        features.append((jax.nn.relu(values), jnp.where(values > 0, units.output, 0)))
    return features
