"""What zero tuning is tried on: tasks, options, the grid that brackets the best cell, and budgets."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from awkward_problems import (
    Counts,
    Outliers,
    Rare,
    Series,
    Units,
    Weather,
    deviance,
    huber,
    recurrent,
)
from later_problems import Arms, Decays, Modes, Sparse, Spirals, absolute_error
from metastep.models import linear, mlp
from metastep.tasks import MixedLinear, Quadratic, Sinusoid
from own_problems import (
    Clusters,
    Logistic,
    Pendulums,
    Retrieval,
    Stairs,
    attention,
    drawings,
    residual,
    waves,
)
from vector_problems import Embeddings, Permuted

_DIM = 20


def ill_conditioned(x):
    """Features whose variances span three orders of magnitude."""
    return x * jnp.logspace(0, -1.5, _DIM)


@dataclasses.dataclass(frozen=True)
class Family:
    """Tasks, options, the grid that brackets their best cell, and budgets."""

    options: dict[str, Any]
    alphas: tuple[float, float]
    budgets: tuple[int, ...]
    long_budgets: tuple[int, int, int]
    coarse_sgd: tuple[float, ...] = (1e-2, 1e-1)
    test_tasks: int = 1_000


_LINEAR = MixedLinear(centre=jnp.ones(_DIM), features=ill_conditioned, shots=10, queries=25)
_FAR_LABELS = Weather(usual=(0.0,) * 3, spread=(1.0,) * 3, label_mean=21.0)
_SINE = (1e-3, 1e-1)
_LONG = (6_000, 20_000, 60_000)
FAMILIES: dict[str, Family] = {
    "sinusoid": Family({"tasks": "sinusoid"}, _SINE, (300, 1_000, 3_000), _LONG),
    "sinusoid, 5 inner steps": Family(
        {"tasks": "sinusoid", "steps": 5}, _SINE, (200, 600, 2_000), _LONG
    ),
    # The next four were chosen after the defaults, and nothing was chosen by them.
    "sinusoid, 10 inner steps": Family({"tasks": "sinusoid", "steps": 10}, _SINE, (200, 600), _LONG),
    "sinusoid, wide network": Family(
        {"tasks": "sinusoid", "hidden": (200, 200)}, _SINE, (200, 600), _LONG
    ),
    "sinusoid, first-order": Family(
        {"tasks": "sinusoid", "algorithm": "fomaml"}, _SINE, (200, 600), _LONG
    ),
    "sinusoid, 4 tasks a step": Family(
        {"tasks": "sinusoid", "tasks_per_step": 4}, _SINE, (200, 600), _LONG
    ),
    "noisy sinusoid": Family({"tasks": Sinusoid(noise=1.0)}, _SINE, (300, 1_000, 3_000), _LONG),
    "quadratic": Family(
        {"tasks": Quadratic(shots=10, queries=10)}, _SINE, (300, 1_000, 3_000), _LONG
    ),
    "ill-conditioned linear": Family(
        {"tasks": _LINEAR, "model": linear((_DIM,), 1)}, (1e-2, 1), (300, 1_000, 3_000),
        (1_000, 5_000, 20_000),
    ),
    "sensors": Family({"tasks": "SENSORS", "sensors": 200}, (1e-2, 1), (200, 600, 2_000), (2_000, 6_000, 20_000)),
    "omniglot 5-way ANIL": Family(
        {"tasks": "omniglot", "ways": 5, "algorithm": "anil"}, (0.1, 10), (30, 100, 300),
        (500, 2_000, 10_000), test_tasks=300,
    ),
    "omniglot 5-way MAML": Family(
        {"tasks": "omniglot", "ways": 5}, (0.1, 10), (30, 100, 200), (500, 2_000, 10_000),
        coarse_sgd=(), test_tasks=300,
    ),
    "omniglot 20-way ANIL": Family(
        {"tasks": "omniglot", "ways": 20, "algorithm": "anil"}, (0.1, 10), (30, 100, 200),
        (500, 2_000, 10_000), coarse_sgd=(), test_tasks=100,
    ),
    "omniglot 20-way MAML": Family(
        {"tasks": "omniglot", "ways": 20}, (0.1, 10), (20, 50, 100), (500, 2_000, 10_000),
        coarse_sgd=(), test_tasks=100,
    ),
    # And these after everything else, to be unlike all of the above: see `own_problems`.
    "clusters": Family({"tasks": Clusters}, (3e-1, 30), (100, 300, 1_000), _LONG),
    "logistic": Family(
        {"tasks": Logistic, "model": linear((20,), 2, bias=True)}, (1e-1, 1e1), (100, 300, 1_000), _LONG
    ),
    "stairs": Family(
        {"tasks": Stairs, "model": mlp((1,), 1, (64, 64, 64), jnp.tanh), "steps": 3}, (1e-2, 1),
        (100, 300, 1_000), _LONG,
    ),
    "pendulums": Family(
        {"tasks": Pendulums, "model": residual(3, 2), "steps": 2}, (1e-3, 1e-1), (100, 300, 1_000), _LONG
    ),
    "retrieval": Family(
        {"tasks": Retrieval, "model": attention(6)}, (1e-3, 1e-1), (100, 300, 1_000), _LONG
    ),
    "drawings": Family(
        {"tasks": drawings, "model": waves(), "steps": 3}, (3e-2, 3), (100, 300, 1_000), _LONG,
        test_tasks=300,
    ),
    # The last four are from `awkward_problems`.
    "counts": Family({"tasks": Counts, "loss": deviance}, (3e-3, 3e-1), (100, 300, 1_000), _LONG),
    "outliers": Family(
        {"tasks": Outliers, "loss": huber, "steps": 2}, (1e-2, 1), (100, 300, 1_000), _LONG
    ),
    "units": Family({"tasks": Units}, (1e-6, 1e-3), (100, 300, 1_000), _LONG),
    "series": Family(
        {"tasks": Series, "model": recurrent(), "steps": 3}, (1e-2, 1), (100, 300), _LONG
    ),
    # And these when all of the above had been run: corners of the options, and two more kinds of data.
    "sinusoid, one example": Family({"tasks": "sinusoid", "shots": 1}, _SINE, (300, 1_000), _LONG),
    "sinusoid, ANIL": Family(
        {"tasks": "sinusoid", "algorithm": "anil"}, (1e-2, 1), (300, 1_000), _LONG
    ),
    "sinusoid, Hessian-free": Family(
        {"tasks": "sinusoid", "algorithm": "hfmaml"}, _SINE, (300, 1_000), _LONG
    ),
    "sinusoid, 20 inner steps": Family({"tasks": "sinusoid", "steps": 20}, _SINE, (100, 300), _LONG),
    "sinusoid, 1 task a step": Family(
        {"tasks": "sinusoid", "tasks_per_step": 1}, _SINE, (300, 1_000, 3_000), _LONG
    ),
    "sinusoid, deep network": Family(
        {"tasks": "sinusoid", "hidden": (40,) * 6}, _SINE, (300, 1_000), _LONG
    ),
    "weather": Family({"tasks": Weather}, (1e-2, 1), (300, 1_000), _LONG),
    "weather, --no-standardise": Family(
        {"tasks": Weather, "standardise": False}, (1e-7, 1e-3), (300, 1_000), _LONG
    ),
    "far labels": Family({"tasks": _FAR_LABELS}, _SINE, (300, 1_000), _LONG),
    "far labels, --no-standardise": Family(
        {"tasks": _FAR_LABELS, "standardise": False}, _SINE, (300, 1_000), _LONG
    ),
    "rare": Family({"tasks": Rare}, (3e-2, 3), (100, 300, 1_000), _LONG),
    # And these when tasks were bounded; sizes of vectors did not grow yet.
    "modes": Family({"tasks": Modes}, _SINE, (300, 1_000), _LONG),
    "sparse": Family({"tasks": Sparse}, _SINE, (300, 1_000), _LONG),
    "few sensors": Family({"tasks": "SENSORS", "sensors": 30}, (1e-2, 1), (200, 600), _LONG),
    "sinusoid, Reptile": Family(
        {"tasks": "sinusoid", "algorithm": "reptile", "steps": 5}, _SINE, (200, 600), _LONG
    ),
    # And this when class labels had a floor. It found a miss.
    "clusters, deep network": Family(
        {"tasks": Clusters, "hidden": (40,) * 6}, (3e-1, 30), (100, 300, 1_000), _LONG
    ),
    # It found that widths matter, which models now meet from three times on.
    "arms": Family({"tasks": Arms(reach=25.0)}, (1e-5, 1e-3), (100, 300, 1_000), _LONG),
    "arms, --no-standardise": Family(
        {"tasks": Arms(reach=25.0), "standardise": False}, (1e-5, 1e-3), (100, 300, 1_000), _LONG
    ),
    # Options on class labels, which were all tried on sinusoids before. They found misses, mended since.
    "clusters, 5 inner steps": Family({"tasks": Clusters, "steps": 5}, (1e-1, 10), (100, 300, 1_000), _LONG),
    "clusters, first-order": Family(
        {"tasks": Clusters, "algorithm": "fomaml"}, (3e-2, 3), (100, 300, 1_000), _LONG
    ),
    "clusters, Reptile": Family(
        {"tasks": Clusters, "algorithm": "reptile", "steps": 5}, (3e-2, 3), (100, 300, 1_000), _LONG
    ),
    # The first of these found that few tasks have to limit the meta rate.
    "clusters, 4 tasks a step": Family(
        {"tasks": Clusters, "tasks_per_step": 4}, (1e-1, 10), (100, 300, 1_000), _LONG
    ),
    "sinusoid, 100 tasks a step": Family(
        {"tasks": "sinusoid", "tasks_per_step": 100}, _SINE, (200, 600), _LONG
    ),
    # Classes that can be told apart without error, and a loss without curvature. They found misses too.
    "spirals": Family({"tasks": Spirals}, (1e-1, 10), (100, 300, 1_000), _LONG),
    "spirals, 5 inner steps": Family({"tasks": Spirals, "steps": 5}, (3e-2, 3), (100, 300, 1_000), _LONG),
    "decays, absolute error": Family(
        {"tasks": Decays, "loss": absolute_error}, (3e-3, 3e-1), (100, 300, 1_000), _LONG
    ),
    # The first found that ReLU needs a second derivative: see `kinks.py`.
    "embeddings": Family({"tasks": Embeddings}, (1e-1, 10), (100, 300, 1_000), _LONG),
    "permuted": Family({"tasks": Permuted}, (1e-1, 10), (100, 300, 1_000), _LONG),
}  # fmt: skip
