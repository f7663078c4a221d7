"""PyTorch's vmap over its own batch norm gives wrong second-order meta-gradients; a hand-written one is right.

    .cache/peers/env/bin/python benchmarks/speed_rows/batch_norm_trap.py

One MAML step through a small network in float64: the derivative of the query loss along a direction, by vmap over
tasks, by a loop over the same tasks, and by central differences.
"""

import json

import torch
from torch.func import grad, vmap
from torch.nn import functional
from torch_nets import batch_norm

TASKS, EXAMPLES, CHANNELS, ALPHA, STEP = 3, 6, 4, 0.3, 1e-6


def library_norm(x, scale, offset):
    """As a module without running statistics calls it."""
    return functional.batch_norm(x, None, None, scale, offset, training=True, eps=1e-3)


def meta_loss(norm, mapped):
    """params -> mean query loss after one inner step."""

    def loss(params, x, y):
        kernel, scale, offset, head = params
        x = functional.relu(norm(functional.conv2d(x, kernel, padding=1), scale, offset))
        return functional.cross_entropy(x.mean((2, 3)) @ head, y)

    def after(params, support_x, support_y, query_x, query_y):
        slope = grad(loss)(params, support_x, support_y)
        return loss(
            tuple(p - ALPHA * g for p, g in zip(params, slope, strict=True)), query_x, query_y
        )

    def mean(params, *data):
        if mapped:
            return vmap(after, (None, 0, 0, 0, 0))(params, *data).mean()
        return torch.stack([after(params, *(d[i] for d in data)) for i in range(TASKS)]).mean()

    return mean


def main() -> None:
    """Four derivatives, of which three agree."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    shapes = ((CHANNELS, 2, 3, 3), (CHANNELS,), (CHANNELS,), (CHANNELS, 3))
    params = tuple(torch.randn(shape) for shape in shapes)
    direction = tuple(torch.randn(shape) for shape in shapes)
    images = [torch.randn(TASKS, EXAMPLES, 2, 5, 5) for _ in range(2)]
    labels = [torch.randint(0, 3, (TASKS, EXAMPLES)) for _ in range(2)]
    data = (images[0], labels[0], images[1], labels[1])

    def along(function):
        slope = grad(function)(params, *data)
        return sum((g * d).sum() for g, d in zip(slope, direction, strict=True)).item()

    def difference(function):
        ahead, behind = (
            function(tuple(p + s * d for p, d in zip(params, direction, strict=True)), *data).item()
            for s in (STEP, -STEP)
        )
        return (ahead - behind) / (2 * STEP)

    found = {
        "torch": torch.__version__,
        "central differences": difference(meta_loss(library_norm, False)),
        "loop, library's batch norm": along(meta_loss(library_norm, False)),
        "vmap, library's batch norm": along(meta_loss(library_norm, True)),
        "vmap, batch norm by hand": along(meta_loss(batch_norm, True)),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
