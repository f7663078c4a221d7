"""TorchOpt: MetaSGD on a module whose state is put back after each task, as its MAML example does."""

import torch
import torchopt
from torch_nets import loss_of, serve_modules


def adapted_loss(row, body, head, task):
    """ANIL hands only the head to the inner loop."""
    loss = loss_of(row)
    if row["head_only"]:
        seen, asked, inner = body(task["support_x"]), body(task["query_x"]), head
    else:
        seen, asked, inner = task["support_x"], task["query_x"], torch.nn.Sequential(body, head)
    optimizer = torchopt.MetaSGD(inner, lr=row["alpha"])
    start = (
        torchopt.extract_state_dict(inner, by="reference"),
        torchopt.extract_state_dict(optimizer, by="reference"),
    )
    for _ in range(row["steps"]):
        optimizer.step(loss(inner(seen), task["support_y"]))
    result = loss(inner(asked), task["query_y"])
    torchopt.recover_state_dict(inner, start[0])
    torchopt.recover_state_dict(optimizer, start[1])
    return result


serve_modules(adapted_loss)
