"""The rows of the speed benchmark: problems, their parameters and data as NumPy arrays, the same for everyone.

Parameters are a list of arrays: weight (inputs, outputs) and bias of every dense layer; for Conv4, of each block the
kernel (3, 3, inputs, outputs), scale and offset, then weight and bias of the head.
"""

import dataclasses
import itertools
import math
from typing import Literal

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
    """One problem on `tasks` tasks: a meta-step of MAML or ANIL, the adaptation rate of the untrained model, or the
    least risk of a linear model over adaptation rates."""

    name: str
    tasks: int
    steps: int
    shots: int
    queries: int
    alpha: float
    ways: int = 0  # 0 for the sinusoid
    size: int = 28
    channels: int = 1
    filters: int = 64
    pooling: str = "stride"
    head_only: bool = False
    rate: str = "fixed"
    kind: Literal["meta-step", "rate", "curve"] = "meta-step"

    @property
    def has_peers(self) -> bool:
        """Whether the other libraries have what is timed among their documented examples."""
        return self.kind == "meta-step" and self.rate == "fixed"


DIM, ALPHAS = 20, 200  # of the linear model, and of the curve

ROWS = (
    Row("sinusoid, 1 step", tasks=25, steps=1, shots=10, queries=10, alpha=0.01),
    Row("sinusoid, 5 steps", tasks=25, steps=5, shots=10, queries=10, alpha=0.01),
    Row("sinusoid, 1 step, learned rates", tasks=25, steps=1, shots=10, queries=10, alpha=0.01, rate="meta-sgd"),
    Row("20-way 1-shot, 1 step", tasks=16, steps=1, ways=20, shots=1, queries=1, alpha=2.0),
    Row("20-way 1-shot, 5 steps", tasks=16, steps=5, ways=20, shots=1, queries=1, alpha=2.0),
    Row("5-way 1-shot, 1 step", tasks=32, steps=1, ways=5, shots=1, queries=1, alpha=2.0),
    Row("5-way 1-shot, 5 steps", tasks=32, steps=5, ways=5, shots=1, queries=1, alpha=2.0),
    Row("ANIL 20-way 1-shot, 5 steps", tasks=16, steps=5, ways=20, shots=1, queries=1, alpha=2.0, head_only=True),
    Row(
        "84x84 5-way 1-shot, 5 steps", tasks=4, steps=5, ways=5, shots=1, queries=15, alpha=0.05, size=84,
        channels=3, filters=32, pooling="max",
    ),
    Row("alpha of the sinusoid, 128 tasks", tasks=128, steps=1, shots=10, queries=10, alpha=0.0, kind="rate"),
    Row("alpha of 20-way 1-shot, 128 tasks", tasks=128, steps=1, ways=20, shots=1, queries=1, alpha=0.0, kind="rate"),
    Row("least risk at 200 alphas, 5,000 tasks", tasks=5_000, steps=1, shots=50, queries=0, alpha=0.06, kind="curve"),
)  # fmt: skip


def parameters(row: Row, rng: np.random.Generator) -> list[np.ndarray]:
    """Uniform within +-sqrt(3 / inputs): every layer keeps the size of what it is given."""

    def uniform(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape) * math.sqrt(3 / math.prod(shape[:-1]))

    if row.kind == "curve":
        return []
    if not row.ways:
        sizes = [1, 40, 40, 1]
        pairs = [(uniform(a, b), 0.1 * rng.normal(size=b)) for a, b in itertools.pairwise(sizes)]
        return [array for pair in pairs for array in pair]
    arrays = []
    for block in range(4):
        inputs = row.channels if block == 0 else row.filters
        arrays += [uniform(3, 3, inputs, row.filters), np.ones(row.filters), np.zeros(row.filters)]
    rest = 1 if row.pooling == "stride" else (row.size // 16) ** 2
    return [*arrays, uniform(rest * row.filters, row.ways), np.zeros(row.ways)]


def episodes(row: Row, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """support_x, support_y, query_x, query_y with a leading task axis; of images only the shape matters.

    For a curve: features, optima of the tasks, and the adaptation rates up to `row.alpha`.
    """
    if row.kind == "curve":
        return {
            "phi": rng.uniform(-5, 5, (row.tasks, row.shots, DIM)),
            "optima": rng.normal(scale=3**0.5, size=(row.tasks, DIM)),
            "alphas": np.linspace(0, row.alpha, ALPHAS),
        }
    if not row.ways:
        amplitude, phase = (
            rng.uniform(0.1, 5, (row.tasks, 1, 1)),
            rng.uniform(0, np.pi, (row.tasks, 1, 1)),
        )
        x = rng.uniform(-5, 5, (row.tasks, row.shots + row.queries, 1))
        y = amplitude * np.sin(x - phase)
        return {
            "support_x": x[:, : row.shots], "support_y": y[:, : row.shots],
            "query_x": x[:, row.shots :], "query_y": y[:, row.shots :],
        }  # fmt: skip
    shape = (row.size, row.size, row.channels)
    labels = np.arange(row.ways)
    parts = {}
    for part, count in (("support", row.shots), ("query", row.queries)):
        parts[f"{part}_x"] = rng.uniform(size=(row.tasks, row.ways * count, *shape))
        parts[f"{part}_y"] = np.tile(np.repeat(labels, count), (row.tasks, 1))
    return parts
