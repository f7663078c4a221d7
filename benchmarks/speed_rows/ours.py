"""metastep as users run it: the learner, loop and sampling of `metastep train`; its estimates; its theory."""

import os
from functools import partial

os.environ["JAX_ENABLE_X64"] = (
    "1"  # for the check of gradients; turned off before anything is timed
)

import jax
import jax.numpy as jnp
import numpy as np
from worker import serve

from metastep import models, theory
from metastep._types import Batch, Episode, MetaParams
from metastep.adapt import GradientAdapter
from metastep.metagrad import Exact, TaskGradient, mean_over_tasks
from metastep.rates import label_aware_terms, make_optimizer, make_rate
from metastep.tasks import FewShot, Sinusoid
from metastep.train import Learner, initial_state, keep_freed_memory, side_by_side
from metastep.train.step import compile_advance


def model_of(row):
    """The library's own models."""
    if not row["ways"]:
        return models.mlp((1,), 1, activation=jax.nn.relu)  # as the peers have it
    return models.conv4(
        (row["size"], row["size"], row["channels"]), row["ways"], row["filters"], row["pooling"]
    )


def tree_of(row, arrays):
    """The list of arrays as the model's parameters."""
    arrays = [jnp.asarray(a) for a in arrays]
    head = {"weight": arrays[-2], "bias": arrays[-1]}
    if not row["ways"]:
        layers = [
            {"weight": w, "bias": b} for w, b in zip(arrays[:-2:2], arrays[1:-2:2], strict=True)
        ]
        return {f"layer{i + 1}": layer for i, layer in enumerate(layers)} | {"head": head}
    blocks = {}
    for i in range(4):
        kernel, scale, offset = arrays[3 * i : 3 * i + 3]
        flat = kernel.reshape(-1, kernel.shape[-1])
        blocks[f"block{i + 1}"] = {"kernel": flat, "scale": scale, "offset": offset}
    return blocks | {"head": head}


def list_of(row, tree, like):
    """The way back."""
    if not row["ways"]:
        layers = [tree["layer1"], tree["layer2"], tree["head"]]
        arrays = [layer[name] for layer in layers for name in ("weight", "bias")]
    else:
        blocks = [tree[f"block{i + 1}"] for i in range(4)]
        arrays = [block[name] for block in blocks for name in ("kernel", "scale", "offset")]
        arrays += [tree["head"]["weight"], tree["head"]["bias"]]
    return [np.asarray(a).reshape(b.shape) for a, b in zip(arrays, like, strict=True)]


def family_of(row):
    """Sinusoids, or random images of 100 classes."""
    if not row["ways"]:
        return Sinusoid(shots=row["shots"], queries=row["queries"])
    count = max(20, row["shots"] + row["queries"])
    shape = (100 * count, row["size"], row["size"], row["channels"])
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return FewShot(
        images, np.full(100, count), ways=row["ways"], shots=row["shots"], queries=row["queries"],
        rotations=True,
    )  # fmt: skip


def episode_of(arrays):
    """The arrays of a problem as episodes."""
    parts = {name: jnp.asarray(value) for name, value in arrays.items()}
    support = Batch(parts["support_x"], parts["support_y"])
    return Episode(support, Batch(parts["query_x"], parts["query_y"]))


def rate(row, params, episodes):
    """The terms of the label-aware estimate, task by task; images one task after another."""
    if params[0].dtype == np.float32:
        jax.config.update("jax_enable_x64", False)
    model = model_of(row)
    objective = models.Objective.of(model.apply, family_of(row).kind)
    width, tree, given = side_by_side(model), tree_of(row, params), episode_of(episodes)

    @jax.jit
    def found(params, given):
        of_task = partial(label_aware_terms, objective, params)
        return jax.lax.map(of_task, given, batch_size=width or row["tasks"])

    def terms():
        aware = jax.device_get(found(tree, given))
        return [aware.slope, aware.curvature]

    return terms, lambda count: [jax.block_until_ready(found(tree, given)) for _ in range(count)]


def curve(row, params, data):
    """Sufficient statistics of the tasks, then the curve."""
    phi, optima, alphas = (np.asarray(data[k], float) for k in ("phi", "optima", "alphas"))
    return (
        lambda: [np.asarray(theory.risk_curve(phi, optima).risks(alphas))],
        lambda count: [
            jax.block_until_ready(theory.risk_curve(phi, optima).risks(alphas))
            for _ in range(count)
        ],
    )


def contender(row, params, episodes):
    """What the row is about."""
    kinds = {"meta-step": meta_steps, "rate": rate, "curve": curve}
    return kinds[row["kind"]](row, params, episodes)


def meta_steps(row, params, episodes):
    """Steps start from the model's own parameters: no time depends on their values."""
    if params[0].dtype == np.float32:
        jax.config.update("jax_enable_x64", False)
    model = model_of(row)
    family = family_of(row)
    adapter = GradientAdapter(row["steps"], model.is_head if row["head_only"] else None)
    parts = {"features": model.features, "head": model.head} if row["head_only"] else {}
    learner = Learner(
        model, models.Objective.of(model.apply, family.kind, **parts), adapter, Exact(),
        make_rate(row["rate"], row["alpha"], adapter.restrict, adapter.trainable), make_optimizer("adam", 1e-3),
        tasks_per_step=row["tasks"], tasks_at_once=side_by_side(model),
    )  # fmt: skip

    def gradient():
        start = tree_of(row, params)
        rates, state = learner.rate.init(start)
        given = episode_of(episodes)

        @jax.jit
        def mean(meta, given):
            rule = lambda meta: learner.rate.alpha(meta, state)  # noqa: E731
            bound = TaskGradient(learner.meta_gradient, learner.objective, adapter, rule, meta)
            return mean_over_tasks(bound, given, learner.tasks_at_once)[1].params

        return list_of(row, mean(MetaParams(start, rates), given), params)

    advance, state = compile_advance(learner), initial_state(learner, jax.random.key(0))
    key = jax.random.key(1)

    def step(count):
        jax.block_until_ready(advance(family, key, state, jnp.asarray(count)))

    return gradient, step


if __name__ == "__main__":
    keep_freed_memory()  # as the command line does
    serve(contender)
