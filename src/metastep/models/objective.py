"""From outputs to a number: losses as means over examples, and the objective of a model on a batch."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from metastep._errors import InputError, check_choice
from metastep._types import Batch, Episode, Kind, Loss, Params, Scalar

Apply = Callable[[Params, Array], Array]
OutputLoss = Callable[[Array, Array], Scalar]


def squared_error(outputs: Float[Array, "n outputs"], targets: Float[Array, "n outputs"]) -> Scalar:
    """(1/n) sum ||f(x) - y||^2: a mean over examples, a sum over outputs, and no factor 1/2.

    Raises
    ------
    InputError
        When the shapes differ: (n, 1) against (n,) would compare every output with every target.
    """
    if outputs.shape != targets.shape:
        raise InputError(
            f"the model's outputs have shape {outputs.shape} and the targets {targets.shape}; give targets one "
            f"column per output"
        )
    return jnp.sum(jnp.square(outputs - targets)) / outputs.shape[0]


def cross_entropy(outputs: Float[Array, "n ways"], labels: Int[Array, " n"]) -> Scalar:
    """Mean over examples of -log softmax(outputs)[label], in nats."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, labels))


def accuracy(outputs: Float[Array, "n ways"], labels: Int[Array, " n"]) -> Scalar:
    """Share of examples whose largest output is the labelled one, in [0, 1]."""
    return jnp.mean(jnp.argmax(outputs, axis=-1) == labels, dtype=outputs.dtype)


def loss_for(kind: Kind) -> OutputLoss:
    """The loss of each kind of task: squared error for regression, cross-entropy for classification."""
    check_choice("kind", kind, ("regression", "classification"))
    return squared_error if kind == "regression" else cross_entropy


class Objective(eqx.Module):
    """The loss of a model on a batch, with outputs and output loss still apart for curvature products.

    Attributes
    ----------
    apply : (params, x) -> outputs
    output_loss : (outputs, y) -> scalar, a mean over examples and convex in the outputs
    metric : (outputs, y) -> scalar to report beside the loss, such as `accuracy`; None for none
    features, head : `apply` in two parts, (params, x) -> features and (params, features) -> outputs, where the inner
        loop leaves alone whatever the features depend on (ANIL); None otherwise
    """

    apply: Apply = eqx.field(static=True)
    output_loss: OutputLoss = eqx.field(static=True)
    metric: OutputLoss | None = eqx.field(static=True, default=None)
    features: Apply | None = eqx.field(static=True, default=None)
    head: Apply | None = eqx.field(static=True, default=None)

    @classmethod
    def of(
        cls,
        apply: Apply,
        kind: Kind,
        loss: OutputLoss | None = None,
        *,
        features: Apply | None = None,
        head: Apply | None = None,
    ) -> "Objective":
        """The usual objective: squared error for regression; cross-entropy and accuracy for classification.

        `loss` replaces the usual one.
        """
        metric = accuracy if kind == "classification" else None
        return cls(apply, loss or loss_for(kind), metric, features, head)

    def past_features(self, params: Params, episode: Episode) -> tuple["Objective", Episode]:
        """The objective of the head alone, and the episode as the head sees it; themselves where not in two parts."""
        if self.features is None or self.head is None:
            return self, episode
        features = self.features

        def seen(batch: Batch) -> Batch:
            return Batch(features(params, batch.x), batch.y)

        curvature = None if episode.curvature is None else seen(episode.curvature)
        parts = Episode(seen(episode.support), seen(episode.query), curvature)
        return Objective(self.head, self.output_loss, self.metric), parts

    def __call__(self, params: Params, batch: Batch) -> Scalar:
        return self.output_loss(self.apply(params, batch.x), batch.y)

    def on(self, batch: Batch) -> Loss:
        """The loss as a function of the parameters alone."""
        return lambda params: self(params, batch)
