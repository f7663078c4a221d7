"""torch.func: grad of a vmap over tasks of grads, eager or through torch.compile."""

import sys

import torch
from torch.func import grad, vmap
from torch_nets import back, features, layout, loss_of, on_torch
from worker import serve

COMPILED = "compiled" in sys.argv


def contender(row, params, episodes):
    """ANIL computes the features once and adapts the head."""
    torch.set_num_threads(1)
    params, parts, loss = layout(params), on_torch(episodes), loss_of(row)
    optimizer_params = [torch.nn.Parameter(p.clone()) for p in params]
    optimizer = torch.optim.Adam(optimizer_params, 1e-3)

    def head_loss(head, seen, y):
        return loss(torch.nn.functional.linear(seen, head[0], head[1]), y)

    def whole_loss(params, x, y):
        return head_loss(params[-2:], features(row, params, x), y)

    def after(params, support_x, support_y, query_x, query_y):
        if row["head_only"]:
            head, seen = params[-2:], features(row, params, support_x)
            for _ in range(row["steps"]):
                slope = grad(head_loss)(head, seen, support_y)
                head = [p - row["alpha"] * g for p, g in zip(head, slope, strict=True)]
            return head_loss(head, features(row, params, query_x), query_y)
        for _ in range(row["steps"]):
            slope = grad(whole_loss)(params, support_x, support_y)
            params = [p - row["alpha"] * g for p, g in zip(params, slope, strict=True)]
        return whole_loss(params, query_x, query_y)

    def mean(params, *data):
        return vmap(after, (None, 0, 0, 0, 0))(params, *data).mean()

    slope_of = grad(mean)
    if COMPILED:
        slope_of = torch.compile(slope_of)
    data = [parts[name] for name in ("support_x", "support_y", "query_x", "query_y")]

    def step(count):
        for _ in range(count):
            slope = slope_of([p.detach() for p in optimizer_params], *data)
            for own, found in zip(optimizer_params, slope, strict=True):
                own.grad = found.detach()
            optimizer.step()

    return lambda: back(grad(mean)(params, *data)), step


serve(contender)
