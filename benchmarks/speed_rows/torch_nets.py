"""The rows' networks in PyTorch: as modules, and as functions of a list of parameters."""

import torch
from torch import nn
from torch.nn import functional


def layout(arrays):
    """Kernels to PyTorch's (outputs, inputs, 3, 3), dense weights to (outputs, inputs)."""
    tensors = [torch.from_numpy(a) for a in arrays]
    return [
        t.permute(3, 2, 0, 1).contiguous()
        if t.ndim == 4
        else t.T.contiguous()
        if t.ndim == 2
        else t
        for t in tensors
    ]


def back(tensors):
    """The way back, as NumPy arrays."""
    found = [t.detach() for t in tensors]
    found = [t.permute(2, 3, 1, 0) if t.ndim == 4 else t.T if t.ndim == 2 else t for t in found]
    return [t.contiguous().numpy() for t in found]


def on_torch(episodes):
    """Images channels first."""
    parts = {name: torch.from_numpy(value) for name, value in episodes.items()}
    return {
        n: v.permute(0, 1, 4, 2, 3).contiguous() if v.ndim == 5 else v for n, v in parts.items()
    }


def loss_of(row):
    """Mean over examples, as metastep's."""
    return functional.cross_entropy if row["ways"] else functional.mse_loss


class Pooled(nn.Module):
    """Average what is left, or flatten it."""

    def __init__(self, average):
        super().__init__()
        self.average = average

    def forward(self, x):
        return x.mean((2, 3)) if self.average else x.permute(0, 2, 3, 1).flatten(1)


def modules(row, params):
    """(features, head) with these parameters; batch norm by the batch's own statistics."""
    if not row["ways"]:
        body = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU())
        head = nn.Linear(40, 1)
    else:
        stride, layers = (2 if row["pooling"] == "stride" else 1), []
        for block in range(4):
            inputs = row["channels"] if block == 0 else row["filters"]
            layers.append(nn.Conv2d(inputs, row["filters"], 3, stride, 1, bias=False))
            layers.append(nn.BatchNorm2d(row["filters"], eps=1e-3, track_running_stats=False))
            layers.append(nn.ReLU())
            if stride == 1:
                layers.append(nn.MaxPool2d(2))
        body = nn.Sequential(*layers, Pooled(stride == 2))
        head = nn.Linear(params[-2].shape[1], row["ways"])
    everything = [*body.parameters(), *head.parameters()]
    for own, given in zip(everything, params, strict=True):
        own.data = given.clone()
    return body, head


def batch_norm(x, scale, offset):
    """By hand: under vmap, PyTorch's own gives wrong second derivatives (see batch_norm_trap.py)."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    variance = (centred * centred).mean((0, 2, 3), keepdim=True)
    return centred * (scale[:, None, None] * torch.rsqrt(variance + 1e-3)) + offset[:, None, None]


def features(row, params, x, norm=batch_norm):
    """What the head sees, as a function of the list of parameters."""
    if not row["ways"]:
        for weight, bias in zip(params[:-2:2], params[1:-2:2], strict=True):
            x = functional.relu(functional.linear(x, weight, bias))
        return x
    stride = 2 if row["pooling"] == "stride" else 1
    for i in range(4):
        kernel, scale, offset = params[3 * i : 3 * i + 3]
        x = functional.relu(
            norm(functional.conv2d(x, kernel, stride=stride, padding=1), scale, offset)
        )
        if stride == 1:
            x = functional.max_pool2d(x, 2)
    return x.mean((2, 3)) if stride == 2 else x.permute(0, 2, 3, 1).flatten(1)


def serve_modules(adapted_loss, make=modules):
    """A contender from (row, body, head, episode of one task) -> query loss whose backward reaches the modules."""
    from worker import serve

    def contender(row, params, episodes):
        torch.set_num_threads(1)
        body, head = make(row, layout(params))
        everything = [*body.parameters(), *head.parameters()]
        optimizer = torch.optim.Adam(everything, 1e-3)
        parts = on_torch(episodes)

        def accumulate():
            optimizer.zero_grad()
            for task in range(row["tasks"]):
                one = {name: value[task] for name, value in parts.items()}
                (adapted_loss(row, body, head, one) / row["tasks"]).backward()

        def gradient():
            accumulate()
            return back([p.grad for p in everything])

        def step(count):
            for _ in range(count):
                accumulate()
                optimizer.step()

        return gradient, step

    serve(contender)
