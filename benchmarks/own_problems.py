"""Tasks and models unlike those that metastep brings: are its defaults of any use there?

Other kinds of task, other activations, other architectures; none has a size or a scale in common with what the
defaults were found on.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from metastep import Batch, Episode
from metastep.datasets import data_root, load_omniglot
from metastep.models import Model, mlp
from metastep.tasks import AbstractTaskFamily, TaskSplits

_UNIFORM, _NORMAL = jax.random.uniform, jax.random.normal


def split(x: Array, y: Array, support: int) -> Episode:
    """The first `support` examples as support set, the others as query set."""
    return Episode(Batch(x[:support], y[:support]), Batch(x[support:], y[support:]))


class Clusters(AbstractTaskFamily):
    """Five classes with centres of their own in 8 hidden dimensions, seen through one fixed map to 16: 5 shots."""

    kind = "classification"
    input_shape = (16,)
    output_size = 5
    shots: int = eqx.field(static=True, default=5)
    spread: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.7)

    def sample(self, key: PRNGKeyArray) -> Episode:
        centre_key, noise_key = jax.random.split(key)
        lift = jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)) / 8**0.5)
        centres = _NORMAL(centre_key, (5, 8))
        labels = jnp.tile(jnp.arange(5), 2 * self.shots)
        hidden = centres[labels] + self.spread * _NORMAL(noise_key, (labels.size, 8))
        return split(jnp.tanh(2 * hidden @ lift.astype(hidden.dtype)), labels, 5 * self.shots)


class Logistic(AbstractTaskFamily):
    """Two classes divided by a plane in 20 dimensions that is the task's own, with coin-flip errors near it."""

    kind = "classification"
    input_shape = (20,)
    output_size = 2
    shots: int = eqx.field(static=True, default=20)

    def sample(self, key: PRNGKeyArray) -> Episode:
        plane_key, input_key, label_key = jax.random.split(key, 3)
        scales = jnp.logspace(0, -1, 20)
        weights = 2 + 2 * _NORMAL(plane_key, (20,))
        x = scales * _NORMAL(input_key, (2 * self.shots, 20))
        ones = _UNIFORM(label_key, (2 * self.shots,)) < jax.nn.sigmoid(x @ weights)
        return split(x, ones.astype(int), self.shots)


class Stairs(AbstractTaskFamily):
    """Functions of one variable that jump at three places of their own: no derivative says where."""

    kind = "regression"
    input_shape = (1,)
    output_size = 1
    shots: int = eqx.field(static=True, default=15)

    def sample(self, key: PRNGKeyArray) -> Episode:
        place_key, height_key, input_key = jax.random.split(key, 3)
        places = _UNIFORM(place_key, (3,), minval=-1, maxval=1)
        heights = _NORMAL(height_key, (4,))
        x = _UNIFORM(input_key, (2 * self.shots, 1), minval=-1, maxval=1)
        return split(x, heights[jnp.sum(x > places, axis=1)][:, None], self.shots)


class Pendulums(AbstractTaskFamily):
    """A driven pendulum of unknown length, mass and friction: (angle, speed, torque) to the changes that follow."""

    kind = "regression"
    input_shape = (3,)
    output_size = 2
    shots: int = eqx.field(static=True, default=20)

    def sample(self, key: PRNGKeyArray) -> Episode:
        body_key, input_key = jax.random.split(key)
        low, high = jnp.array([[0.5, 0.5, 0.0], [2.0, 2.0, 1.0]])
        length, mass, friction = _UNIFORM(body_key, (3,), minval=low, maxval=high)
        limits = jnp.array([math.pi, 4.0, 2.0])
        x = _UNIFORM(input_key, (2 * self.shots, 3), minval=-limits, maxval=limits)
        angle, speed, torque = x.T
        push = torque / (mass * length**2) - friction * speed - 9.8 / length * jnp.sin(angle)
        return split(x, jnp.stack([speed + 0.1 * push, push], axis=1), self.shots)


class Retrieval(AbstractTaskFamily):
    """Eight tokens of six numbers; the answer is the value of those that a secret direction of the task points at."""

    kind = "regression"
    input_shape = (8, 6)
    output_size = 1
    shots: int = eqx.field(static=True, default=20)

    def sample(self, key: PRNGKeyArray) -> Episode:
        secret_key, token_key = jax.random.split(key)
        question = _NORMAL(secret_key, (4,))
        x = _NORMAL(token_key, (2 * self.shots, 8, 6))
        weights = jax.nn.softmax(2 * x[..., :4] @ question, axis=-1)
        return split(x, jnp.sum(weights * x[..., 4], axis=-1, keepdims=True), self.shots)


class Drawings(AbstractTaskFamily):
    """One drawing as a function: (row, column) in -1..1 to ink, known at 100 pixels and asked at 100 others."""

    kind = "regression"
    input_shape = (2,)
    output_size = 1
    images: Array  # (drawings, side, side), ink in 0..1
    shots: int = eqx.field(static=True, default=100)

    def sample(self, key: PRNGKeyArray) -> Episode:
        image_key, pixel_key = jax.random.split(key)
        image = self.images[jax.random.randint(image_key, (), 0, self.images.shape[0])]
        side = image.shape[0]
        pixels = jax.random.choice(pixel_key, side**2, (2 * self.shots,), replace=False)
        places = jnp.stack([pixels // side, pixels % side], axis=1) * (2 / (side - 1)) - 1
        return split(places.astype(float), image.reshape(-1, 1)[pixels].astype(float), self.shots)


def drawings() -> TaskSplits:
    """Every fifth drawing of Omniglot, at 28 x 28; those to be judged by are of other characters (METASTEP_DATA)."""
    data = load_omniglot(data_root(None), "vinyals", 28)
    parts = (data.train, data.validation, data.test)
    train, validation, test = (Drawings(jnp.asarray(_ink(part.images[::5]))) for part in parts)
    return TaskSplits(train, validation, test, "drawings")


def _ink(images: np.ndarray) -> np.ndarray:
    return images.reshape(images.shape[:3]).astype(np.float32) / 255


def _dense(key: PRNGKeyArray, inputs: int, outputs: int) -> Float[Array, "inputs outputs"]:
    return _NORMAL(key, (inputs, outputs)) / inputs**0.5


def residual(inputs: int, outputs: int, width: int = 48, blocks: int = 3) -> Model:
    """Residual blocks of layer norm, GELU and a branch that starts at zero, as in today's deep networks."""

    def init(key: PRNGKeyArray) -> Any:
        first, last, *keys = jax.random.split(key, 2 + blocks)
        return {
            "in": _dense(first, inputs, width),
            "blocks": [
                {
                    "gain": jnp.ones(width), "offset": jnp.zeros(width),
                    "up": _dense(k, width, 2 * width), "down": jnp.zeros((2 * width, width)),
                }
                for k in keys
            ],
            "out": _dense(last, width, outputs), "bias": jnp.zeros(outputs),
        }  # fmt: skip

    def apply(params: Any, x: Array) -> Array:
        x = x @ params["in"]
        for block in params["blocks"]:
            normal = block["gain"] * jax.nn.standardize(x) + block["offset"]
            x = x + jax.nn.gelu(normal @ block["up"]) @ block["down"]
        return jax.nn.standardize(x) @ params["out"] + params["bias"]

    return Model(init, apply, name="residual")


def attention(size: int, width: int = 24, layers: int = 2) -> Model:
    """A small transformer without positions: attention with one head, and a feed-forward part; mean over tokens."""

    def init(key: PRNGKeyArray) -> Any:
        first, last, *keys = jax.random.split(key, 2 + 6 * layers)
        names = ("query", "key", "value", "mix", "up", "down")
        sizes = {"up": (width, 2 * width), "down": (2 * width, width)}
        return {
            "in": _dense(first, size, width),
            "layers": [
                {
                    name: _dense(keys[6 * i + j], *sizes.get(name, (width, width)))
                    for j, name in enumerate(names)
                }
                for i in range(layers)
            ],
            "out": _dense(last, width, 1),
        }

    def apply(params: Any, x: Array) -> Array:
        x = x @ params["in"]
        for layer in params["layers"]:
            normal = jax.nn.standardize(x)
            queries, keys = normal @ layer["query"], normal @ layer["key"]
            weights = jax.nn.softmax(queries @ keys.mT / width**0.5, axis=-1)
            x = x + weights @ (normal @ layer["value"]) @ layer["mix"]
            x = x + jax.nn.relu(jax.nn.standardize(x) @ layer["up"]) @ layer["down"]
        return jnp.mean(jax.nn.standardize(x), axis=1) @ params["out"]

    return Model(init, apply, name="attention")


def waves(outputs: int = 1, hidden: int = 64, frequencies: int = 32) -> Model:
    """Fixed random Fourier features of a place, and two hidden layers: a picture as a function."""
    places = np.random.default_rng(1).normal(size=(2, frequencies)) * 3
    inner = mlp((2 * frequencies,), outputs, (hidden, hidden))

    def apply(params: Any, x: Array) -> Array:
        phases = x @ jnp.asarray(places, x.dtype)
        return inner.apply(params, jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=1))

    return Model(inner.init, apply, inner.is_head, name="waves")
