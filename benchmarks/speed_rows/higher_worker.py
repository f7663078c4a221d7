"""higher: innerloop_ctx over a module, as its MAML example does."""

import higher
import torch
from torch_nets import loss_of, serve_modules


def adapted_loss(row, body, head, task):
    """ANIL hands only the head to the inner loop."""
    loss = loss_of(row)
    if row["head_only"]:
        seen, asked, inner = body(task["support_x"]), body(task["query_x"]), head
    else:
        seen, asked, inner = task["support_x"], task["query_x"], torch.nn.Sequential(body, head)
    optimizer = torch.optim.SGD(inner.parameters(), row["alpha"])
    with higher.innerloop_ctx(inner, optimizer, copy_initial_weights=False) as (functional, steps):
        for _ in range(row["steps"]):
            steps.step(loss(functional(seen), task["support_y"]))
        return loss(functional(asked), task["query_y"])


serve_modules(adapted_loss)
