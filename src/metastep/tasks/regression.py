"""Synthetic regression families: the sinusoids of Finn et al., and Bernacchia's linear and quadratic tasks."""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metastep._errors import check_count
from metastep._trees import as_array
from metastep._types import Batch, Episode, Kind
from metastep.tasks.core import AbstractTaskFamily, check_sizes, split_batch
from metastep.theory.citations import source


class AbstractRegression(AbstractTaskFamily):
    """A regression family that draws one task, then its inputs, all independent."""

    shots: eqx.AbstractVar[int]
    queries: eqx.AbstractVar[int]
    curvature: eqx.AbstractVar[int]

    @property
    def kind(self) -> Kind:
        return "regression"

    @abc.abstractmethod
    def sample_examples(self, key: PRNGKeyArray, count: int) -> Batch:
        """`count` independent examples of one freshly drawn task."""

    def sample(self, key: PRNGKeyArray) -> Episode:
        sizes = [self.shots, self.queries, self.curvature]
        support, query, curvature = split_batch(self.sample_examples(key, sum(sizes)), sizes)
        return Episode(support, query, curvature if self.curvature else None)


@source("finn2017", "section 5.1", "as printed")
class Sinusoid(AbstractRegression):
    """y = amplitude sin(x - phase): amplitude U[0.1, 5], phase U[0, pi], x U[-5, 5].

    Attributes
    ----------
    shots, queries : examples in the support and the query set
    curvature : examples of the separate Hessian sample D_h; 0 takes D_h = D_in
    amplitude, phase, inputs : (low, high) of the uniform laws
    noise : standard deviation of the label noise, in units of y

    References
    ----------
    Finn et al. (2017), section 5.1.
    """

    shots: int = eqx.field(static=True, default=10)
    queries: int = eqx.field(static=True, default=10)
    curvature: int = eqx.field(static=True, default=0)
    amplitude: Float[Array, "2"] = eqx.field(converter=as_array, default=(0.1, 5.0))
    phase: Float[Array, "2"] = eqx.field(converter=as_array, default=(0.0, jnp.pi))
    inputs: Float[Array, "2"] = eqx.field(converter=as_array, default=(-5.0, 5.0))
    noise: Float[Array, ""] = eqx.field(converter=as_array, default=0.0)

    def __check_init__(self) -> None:
        check_sizes(shots=self.shots, queries=self.queries, curvature=self.curvature)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1,)

    @property
    def output_size(self) -> int:
        return 1

    def sample_examples(self, key: PRNGKeyArray, count: int) -> Batch:
        curve_key, input_key, noise_key = jax.random.split(key, 3)
        low, high = self.inputs
        x = jax.random.uniform(input_key, (count, 1), minval=low, maxval=high)
        y = self.curve(curve_key, x)
        noise = jax.lax.cond(  # Gaussians are the dearest part of sampling, and the paper has none
            self.noise != 0,
            lambda: self.noise * jax.random.normal(noise_key, y.shape),
            lambda: jnp.zeros_like(y),
        )
        return Batch(x, y + noise)

    def curve(self, key: PRNGKeyArray, x: Array) -> Array:
        """The noise-free sinusoid that `key` stands for, at x."""
        amplitude_key, phase_key = jax.random.split(key)
        amplitude = jax.random.uniform(
            amplitude_key, minval=self.amplitude[0], maxval=self.amplitude[1]
        )
        phase = jax.random.uniform(phase_key, minval=self.phase[0], maxval=self.phase[1])
        return amplitude * jnp.sin(x - phase)


@source(
    "finn2017", "section 5.1: the oracle that receives the true parameters as input", "as printed"
)
class KnownSinusoid(AbstractTaskFamily):
    """`Sinusoid` for an oracle: x, amplitude and phase are the inputs, amplitude sin(x - phase) the label.

    Nothing is left to adapt to, so support and query set are the same examples. A model that is trained
    here without adaptation (`algorithm="erm"`) says how low the error of one that adapts could get.

    Attributes
    ----------
    examples : examples of an episode
    laws : whose amplitude, phase and inputs are drawn from; its sizes and its noise are not used

    References
    ----------
    Finn et al. (2017), section 5.1.
    """

    examples: int = eqx.field(static=True, default=10)
    laws: Sinusoid = eqx.field(default_factory=Sinusoid)

    def __check_init__(self) -> None:
        check_count("examples", self.examples)

    @property
    def kind(self) -> Kind:
        return "regression"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (3,)

    @property
    def output_size(self) -> int:
        return 1

    def sample(self, key: PRNGKeyArray) -> Episode:
        def uniform(key: PRNGKeyArray, law: Array, shape: tuple[int, ...] = ()) -> Array:
            return jax.random.uniform(key, shape, minval=law[0], maxval=law[1])

        amplitude_key, phase_key, input_key = jax.random.split(key, 3)
        amplitude = uniform(amplitude_key, self.laws.amplitude)
        phase = uniform(phase_key, self.laws.phase)
        x = uniform(input_key, self.laws.inputs, (self.examples,))
        told = jnp.stack([x, jnp.full_like(x, amplitude), jnp.full_like(x, phase)], axis=1)
        batch = Batch(told, amplitude * jnp.sin(x - phase)[:, None])
        return Episode(batch, batch)


def _task_weights(key: PRNGKeyArray, centre: Array, spread: Array) -> Array:
    """w ~ N(centre, spread^2 / dim I)."""
    return centre + spread / centre.shape[0] ** 0.5 * jax.random.normal(key, centre.shape)


@source("bernacchia2021", "section 4", "as printed")
class MixedLinear(AbstractRegression):
    """y = features(x)' w + noise with w ~ N(centre, spread^2 / dim I) and x ~ N(0, I).

    Attributes
    ----------
    centre : (dim,) mean of the task weights; `dim` is the number of features
    input_size : dimension of x
    features : (examples, input_size) -> (examples, dim), fixed; the identity by default
    spread : standard deviation of ||w - centre||, Bernacchia's nu
    noise : standard deviation of the label noise, Bernacchia's sigma
    shots, queries, curvature : as in `Sinusoid`

    References
    ----------
    Bernacchia (2021), section 4; Zou et al. (2022), section 2 (mixed linear regression).
    """

    centre: Float[Array, " dim"] = eqx.field(converter=as_array)
    input_size: int = eqx.field(static=True, default=-1)
    features: Callable[[Array], Array] | None = eqx.field(static=True, default=None)
    shots: int = eqx.field(static=True, default=10)
    queries: int = eqx.field(static=True, default=25)
    curvature: int = eqx.field(static=True, default=0)
    spread: Float[Array, ""] = eqx.field(converter=as_array, default=1.0)
    noise: Float[Array, ""] = eqx.field(converter=as_array, default=0.2)

    def __check_init__(self) -> None:
        check_sizes(shots=self.shots, queries=self.queries, curvature=self.curvature)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.centre.shape[0] if self.input_size < 0 else self.input_size,)

    @property
    def output_size(self) -> int:
        return 1

    def sample_examples(self, key: PRNGKeyArray, count: int) -> Batch:
        weight_key, input_key, noise_key = jax.random.split(key, 3)
        x = jax.random.normal(input_key, (count, *self.input_shape))
        phi = x if self.features is None else self.features(x)
        y = phi @ _task_weights(weight_key, self.centre, self.spread)[:, None]
        return Batch(x, y + self.noise * jax.random.normal(noise_key, y.shape))


@source("bernacchia2021", "section 5", "as printed", "hyperparameters from Zou et al. (2022), H.3")
class Quadratic(AbstractRegression):
    """y = (x' w + b)^2 + noise with w ~ N(centre, spread^2 / dim I), b ~ N(0, 1), x ~ N(0, I).

    Attributes
    ----------
    centre : (dim,) mean of the task weights; `dim` is the dimension of x
    spread, noise, shots, queries, curvature : as in `MixedLinear`

    References
    ----------
    Bernacchia (2021), section 5; Zou et al. (2022), appendix H.3.
    """

    centre: Float[Array, " dim"] = eqx.field(converter=as_array, default=(0.0,))
    shots: int = eqx.field(static=True, default=10)
    queries: int = eqx.field(static=True, default=25)
    curvature: int = eqx.field(static=True, default=0)
    spread: Float[Array, ""] = eqx.field(converter=as_array, default=1.0)
    noise: Float[Array, ""] = eqx.field(converter=as_array, default=0.2)

    def __check_init__(self) -> None:
        check_sizes(shots=self.shots, queries=self.queries, curvature=self.curvature)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.centre.shape

    @property
    def output_size(self) -> int:
        return 1

    def sample_examples(self, key: PRNGKeyArray, count: int) -> Batch:
        weight_key, offset_key, input_key, noise_key = jax.random.split(key, 4)
        x = jax.random.normal(input_key, (count, *self.input_shape))
        weights = _task_weights(weight_key, self.centre, self.spread)
        y = jnp.square(x @ weights + jax.random.normal(offset_key))[:, None]
        return Batch(x, y + self.noise * jax.random.normal(noise_key, y.shape))
