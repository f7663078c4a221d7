"""The floor: the rows in bare JAX. MAML is nothing but sampling, derivatives and Adam, in a scan over meta-steps."""

import os

os.environ["JAX_ENABLE_X64"] = "1"

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from worker import serve


def convolve(x, kernel, stride):
    """3x3, zero-padded, by neighbourhoods and one product."""
    rows, columns = (-(-size // stride) for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [
        padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
        for i, j in itertools.product(range(3), range(3))
    ]
    return jnp.concatenate(parts, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def larger(a, b):
    """The maximum, with derivatives that follow the comparison."""
    return jnp.where(a >= b, a, b)


def features(row, params, x):
    """The four blocks."""
    stride = 2 if row["pooling"] == "stride" else 1
    for i in range(4):
        kernel, scale, offset = params[3 * i : 3 * i + 3]
        x = convolve(x, kernel, stride)
        x = x - jnp.mean(x, axis=(0, 1, 2))
        variance = jnp.mean(x * x, axis=(0, 1, 2))
        x = jax.nn.relu(x * (scale * jax.lax.rsqrt(variance + 1e-3)) + offset)
        if stride == 1:
            n, height, width, channels = x.shape
            cut = x[:, : height // 2 * 2, : width // 2 * 2]
            x = cut.reshape(n, height // 2, 2, width // 2, 2, channels)
            # Not jnp.max: its second derivatives come out wrong by percents, see `metastep.models.max_pool`.
            x = larger(*(larger(x[:, :, i, :, 0], x[:, :, i, :, 1]) for i in range(2)))
    return jnp.mean(x, axis=(1, 2)) if stride == 2 else x.reshape(len(x), -1)


def loss_of(row):
    """(params, x, y) -> mean loss."""
    if not row["ways"]:

        def squared(params, x, y):
            for weight, bias in zip(params[:-2:2], params[1:-2:2], strict=True):
                x = jax.nn.relu(x @ weight + bias)
            return jnp.mean((x @ params[-2] + params[-1] - y) ** 2)

        return squared

    def entropy(params, x, y):
        logits = features(row, params, x) @ params[-2] + params[-1]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    return entropy


def head_loss(row):
    """ANIL: the features of a task once, then the inner loop on the head."""

    def entropy(head, seen, y):
        logits = seen @ head[0] + head[1]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    def after(params, rates, episode):
        head, seen = params[-2:], features(row, params, episode["support_x"])
        for _ in range(row["steps"]):
            slope = jax.grad(entropy)(head, seen, episode["support_y"])
            head = [p - a * g for p, a, g in zip(head, rates[-2:], slope, strict=True)]
        return entropy(head, features(row, params, episode["query_x"]), episode["query_y"])

    return after


def task_loss(row):
    """(params, rates, episode) -> query loss after adaptation."""
    loss = loss_of(row)
    if row["head_only"]:
        return head_loss(row)

    def after(params, rates, episode):
        for _ in range(row["steps"]):
            slope = jax.grad(loss)(params, episode["support_x"], episode["support_y"])
            params = [p - a * g for p, a, g in zip(params, rates, slope, strict=True)]
        return loss(params, episode["query_x"], episode["query_y"])

    return after


def rate(row, params, episodes):
    """Slope and curvature of each task's query loss along its inner gradient, with the model linearised."""
    if params[0].dtype == np.float32:
        jax.config.update("jax_enable_x64", False)
    loss = loss_of(row)

    def outputs(params, x):
        if row["ways"]:
            return features(row, params, x) @ params[-2] + params[-1]
        for weight, bias in zip(params[:-2:2], params[1:-2:2], strict=True):
            x = jax.nn.relu(x @ weight + bias)
        return x @ params[-2] + params[-1]

    def of_task(params, episode):
        slope = jax.grad(loss)(params, episode["support_x"], episode["support_y"])
        out, change = jax.jvp(lambda p: outputs(p, episode["query_x"]), (params,), (slope,))
        if not row["ways"]:
            error = out - episode["query_y"]
            return 2 * jnp.mean(error * change), 2 * jnp.mean(change**2)
        shares = jax.nn.softmax(out)
        along = jnp.sum(shares * change, axis=1)
        right = jnp.take_along_axis(change, episode["query_y"][:, None], 1)[:, 0]
        return jnp.mean(along - right), jnp.mean(jnp.sum(shares * change**2, axis=1) - along**2)

    @jax.jit
    def found(params, episodes):
        if not row["ways"]:
            return jax.vmap(of_task, (None, 0))(params, episodes)
        return jax.lax.map(lambda episode: of_task(params, episode), episodes)

    params = [jnp.asarray(p) for p in params]
    episodes = jax.tree.map(jnp.asarray, episodes)
    return (
        lambda: [np.asarray(part) for part in found(params, episodes)],
        lambda count: [jax.block_until_ready(found(params, episodes)) for _ in range(count)],
    )


def curve(row, params, data):
    """The least risk as the formula reads: every adaptation rate passes over all tasks."""
    phi, optima, alphas = (jnp.asarray(data[k], float) for k in ("phi", "optima", "alphas"))
    tasks, shots, dim = phi.shape

    def at(alpha):
        grams = jnp.einsum("nkd,nke->nde", phi, phi)
        adapted = phi @ (jnp.eye(dim) - 2 * alpha / shots * grams)
        weights = jnp.einsum("nkd,nke->nde", adapted, adapted)
        best = jnp.linalg.solve(weights.sum(0), jnp.einsum("nde,ne->d", weights, optima))
        return jnp.sum(jnp.einsum("nkd,nd->nk", adapted, best - optima) ** 2) / (tasks * shots)

    found = jax.jit(lambda alphas: jax.lax.map(at, alphas))
    return (
        lambda: [np.asarray(found(alphas))],
        lambda count: [jax.block_until_ready(found(alphas)) for _ in range(count)],
    )


def contender(row, params, episodes):
    """What the row is about."""
    kinds = {"meta-step": meta_steps, "rate": rate, "curve": curve}
    return kinds[row["kind"]](row, params, episodes)


def meta_steps(row, params, episodes):
    """Learned rates are logarithms beside the parameters, as metastep has them."""
    after, learned = task_loss(row), row["rate"] == "meta-sgd"
    if params[0].dtype == np.float32:
        jax.config.update("jax_enable_x64", False)
    params = [jnp.asarray(p) for p in params]
    logs = [jnp.full_like(p, np.log(row["alpha"])) for p in params] if learned else []
    episodes = jax.tree.map(jnp.asarray, episodes)

    def split(everything):
        count = len(params)
        rates = [jnp.exp(a) for a in everything[count:]] if learned else [row["alpha"]] * count
        return everything[:count], rates

    def gradient(everything, episodes):
        def total(everything, episode):
            return after(*split(everything), episode)

        if not row["ways"]:
            mean = lambda e: jnp.mean(jax.vmap(lambda one: total(e, one))(episodes))  # noqa: E731
            return jax.grad(mean)(everything)

        def add(sums, episode):
            return [
                s + g for s, g in zip(sums, jax.grad(total)(everything, episode), strict=True)
            ], None

        sums, _ = jax.lax.scan(add, [jnp.zeros_like(p) for p in everything], episodes)
        return [s / row["tasks"] for s in sums]

    optimizer = optax.adam(1e-3)

    def draw(key):
        if row["ways"]:
            return episodes
        keys = jax.random.split(key, 3)
        tasks, shots = row["tasks"], row["shots"]
        amplitude = jax.random.uniform(keys[0], (tasks, 1, 1), x_type, 0.1, 5)
        phase = jax.random.uniform(keys[1], (tasks, 1, 1), x_type, 0, np.pi)
        x = jax.random.uniform(keys[2], (tasks, shots + row["queries"], 1), x_type, -5, 5)
        y = amplitude * jnp.sin(x - phase)
        parts = (x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])
        return dict(zip(("support_x", "support_y", "query_x", "query_y"), parts, strict=True))

    x_type = episodes["support_x"].dtype

    @jax.jit
    def run(everything, state, key, count):
        def one(i, carry):
            everything, state = carry
            slope = gradient(everything, draw(jax.random.fold_in(key, i)))
            updates, state = optimizer.update(slope, state)
            return optax.apply_updates(everything, updates), state

        return jax.lax.fori_loop(0, count, one, (everything, state))

    start = (params + logs, optimizer.init(params + logs))
    return (
        lambda: [np.asarray(g) for g in jax.jit(gradient)(start[0], episodes)[: len(params)]],
        lambda count: jax.block_until_ready(run(*start, jax.random.key(0), count)),
    )


def facts(row, params, episodes):
    """Floating-point operations of a meta-step, as XLA counts them before it optimises."""
    if row["kind"] != "meta-step":
        return {}
    one = {name: value[0] for name, value in episodes.items()}
    rates = [row["alpha"]] * len(params)
    slope = jax.jit(jax.grad(lambda p, e: task_loss(row)(p, rates, e)))
    return {"flops": row["tasks"] * slope.lower(params, one).cost_analysis()["flops"]}


if __name__ == "__main__":
    serve(contender, facts)
