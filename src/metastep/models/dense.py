"""Linear models and multilayer perceptrons."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from metastep._errors import check_count
from metastep._types import Params
from metastep.models.activations import relu
from metastep.models.core import Model, head_named


def init_dense(key: PRNGKeyArray, inputs: int, outputs: int) -> Params:
    """Weights and biases uniform in +-1/sqrt(inputs): the biases spread the kinks of a ReLU layer."""
    weight_key, bias_key = jax.random.split(key)
    bound = 1.0 / math.sqrt(inputs)
    weight = jax.random.uniform(weight_key, (inputs, outputs), minval=-bound, maxval=bound)
    bias = jax.random.uniform(bias_key, (outputs,), minval=-bound, maxval=bound)
    return {"weight": weight, "bias": bias}


def apply_dense(layer: Params, x: Float[Array, "n inputs"]) -> Float[Array, "n outputs"]:
    """x W + b."""
    return x @ layer["weight"] + layer["bias"]


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)  # (examples, features)


def linear(
    input_shape: Sequence[int],
    output_size: int,
    features: Callable[[Array], Array] | None = None,
    bias: bool = False,
) -> Model:
    """f(x) = features(x) w, started at w = 0: the model of mixed linear regression.

    Parameters
    ----------
    input_shape : shape of one example, before `features`
    output_size : number of outputs, at least 1
    features : (examples, *input_shape) -> (examples, dim), fixed; the identity (flattened) by default
    bias : add a constant, adapted like the weights
    """
    check_count("output_size", output_size)
    feature_map = features or _flat
    example = jax.ShapeDtypeStruct((1, *input_shape), jnp.result_type(float))
    dim = jax.eval_shape(feature_map, example).shape[-1]

    def init(key: PRNGKeyArray) -> Params:
        del key  # the closed forms of the theory start from zero, and so does this
        layer = {"weight": jnp.zeros((dim, output_size))}
        return {"head": layer | ({"bias": jnp.zeros(output_size)} if bias else {})}

    def apply(params: Params, x: Array) -> Array:
        outputs = feature_map(x) @ params["head"]["weight"]
        return outputs + params["head"]["bias"] if bias else outputs

    return Model(init, apply, head_named("head"), name="linear")


def mlp(
    input_shape: Sequence[int],
    output_size: int,
    hidden: Sequence[int] = (40, 40),
    activation: Callable[[Array], Array] = relu,
) -> Model:
    """A multilayer perceptron; the default widths are those of MAML's sinusoid experiment.

    Parameters
    ----------
    input_shape : shape of one example; it is flattened
    output_size : number of outputs, at least 1
    hidden : widths of the hidden layers, each at least 1
    activation : elementwise nonlinearity; `relu` here differs from `jax.nn.relu` in its second derivative alone
    """
    check_count("output_size", output_size)
    for width in hidden:
        check_count("hidden width", width)
    sizes = [math.prod(input_shape), *hidden, output_size]
    names = [f"layer{i}" for i in range(1, len(sizes) - 1)] + ["head"]

    def init(key: PRNGKeyArray) -> Params:
        keys = jax.random.split(key, len(names))
        return {
            name: init_dense(layer_key, inputs, outputs)
            for name, layer_key, inputs, outputs in zip(
                names, keys, sizes[:-1], sizes[1:], strict=True
            )
        }

    def apply(params: Params, x: Array) -> Array:
        x = _flat(x)
        for name in names[:-1]:
            x = activation(apply_dense(params[name], x))
        return apply_dense(params["head"], x)

    name = "mlp-" + "-".join(map(str, hidden))
    return Model(init, apply, head_named("head"), name=name)
