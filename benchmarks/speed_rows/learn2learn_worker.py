"""learn2learn: clone and adapt, as its MAML examples do."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
from load import load_learn2learn
from torch_nets import loss_of, serve_modules

library = load_learn2learn(Path(sys.argv[3]))


def adapted_loss(row, body, head, task):
    """ANIL computes the features once and adapts the head, as in its ANIL example."""
    loss = loss_of(row)
    if row["head_only"]:
        seen, asked, inner = body(task["support_x"]), body(task["query_x"]), head
    else:
        seen, asked, inner = task["support_x"], task["query_x"], torch.nn.Sequential(body, head)
    learner = library.MAML(inner, lr=row["alpha"], first_order=False).clone()
    for _ in range(row["steps"]):
        learner.adapt(loss(learner(seen), task["support_y"]))
    return loss(learner(asked), task["query_y"])


serve_modules(adapted_loss)
