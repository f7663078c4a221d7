"""Meta-train Conv4 on Omniglot with learn2learn's MAML, as its own example does (runs in the peers' environment).

python learn2learn_omniglot.py ROOT IMAGES.npz OUT.json WAYS INNER_STEPS ALPHA META_LR TASKS SEED STOP...
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from load import load_learn2learn


def draw(images, rng, ways: int):
    """One support and one query image of each of `ways` classes; a turned class is another class."""
    chosen = rng.choice(4 * len(images), ways, replace=False)
    pairs = []
    for label in chosen:
        drawings = images[label // 4][rng.choice(images.shape[1], 2, replace=False)]
        pairs.append(np.rot90(drawings, label % 4, axes=(1, 2)).copy())
    stacked = torch.from_numpy(np.stack(pairs)).float().div(255).unsqueeze(2)
    return stacked[:, 0], stacked[:, 1], torch.arange(ways)


def query_loss(maml, task, inner_steps: int):
    """Loss and accuracy on the query images after adapting a clone."""
    support, query, labels = task
    learner = maml.clone()
    loss = torch.nn.functional.cross_entropy
    for _ in range(inner_steps):
        learner.adapt(loss(learner(support), labels))
    outputs = learner(query)
    return loss(outputs, labels), (outputs.argmax(1) == labels).float().mean().item()


def accuracy(maml, images, seed: int, ways: int, inner_steps: int, num_tasks: int = 600):
    """Mean accuracy on held-out tasks and its 95 % half-width."""
    rng = np.random.default_rng(seed)
    scores = [query_loss(maml, draw(images, rng, ways), inner_steps)[1] for _ in range(num_tasks)]
    return float(np.mean(scores)), float(1.96 * np.std(scores, ddof=1) / num_tasks**0.5)


def main() -> None:
    """Train until the last stop, judging at each."""
    root, data, out = (Path(argument) for argument in sys.argv[1:4])
    ways, inner_steps = int(sys.argv[4]), int(sys.argv[5])
    alpha, meta_lr = float(sys.argv[6]), float(sys.argv[7])
    tasks, seed, *stops = (int(argument) for argument in sys.argv[8:])
    library = load_learn2learn(root)
    torch.manual_seed(seed)
    rng, arrays = np.random.default_rng(seed), np.load(data)
    maml = library.MAML(library.OmniglotCNN(ways), lr=alpha, first_order=False)
    optimizer = torch.optim.Adam(maml.parameters(), meta_lr)
    rows, began = [], time.monotonic()
    for step in range(1, stops[-1] + 1):
        optimizer.zero_grad()
        for _ in range(tasks):
            loss, _ = query_loss(maml, draw(arrays["train"], rng, ways), inner_steps)
            (loss / tasks).backward()
        optimizer.step()
        if step in stops:
            mean, ci95 = accuracy(maml, arrays["test"], seed + 1, ways, inner_steps)
            rows.append({"step": step, "accuracy": mean, "ci95": ci95})
            rows[-1]["seconds"] = time.monotonic() - began
            print(rows[-1], file=sys.stderr, flush=True)
    out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
