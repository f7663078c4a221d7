"""How long the meta rate should fall at the end of a run: shares of the run, from the same state on.

    python benchmarks/decays.py [--families clusters "omniglot 20-way MAML" ...] [--seeds 0 1 2]

For each family, budget and seed of benchmarks/zero_tuning.py, metastep as it is with no rate given up to four fifths
of the run, unless its loss is found flat before; then the rest with a decay over the last fifth, as it is by default,
and over less. Beside the held-out losses, by how much about a doubling of the run has lowered the training loss when
the default begins to decay. Adds to decays.json, and prints a table. Omniglot needs METASTEP_DATA.
"""

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from metastep._records import read_json, write_json
from metastep.train import build_learner, choose_rates
from metastep.train.evaluate import compile_judge
from metastep.train.state import HEALTHY, TrainState, initial_state, next_window
from metastep.train.step import compile_advance
from zero_tuning import FAMILIES, interval, load

SHARES = (0.2, 0.1, 0.05)
_WARM_UP = 0.05


@dataclasses.dataclass
class Options:
    """Compare how long the meta rate falls."""

    families: tuple[str, ...] = ("sinusoid", "clusters", "omniglot 20-way MAML")
    """Which ones, by their names in benchmarks/zero_tuning.py."""
    budgets: tuple[int, ...] = (100, 300, 1_000)
    """Those of a family that are among these."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One training for each."""
    out: Path = Path("benchmarks/results")
    """Where decays.json goes."""


def compare(name: str, budget: int, seed: int, folder: Path) -> dict[str, Any] | None:
    """Held-out loss for each share; None where the loss is found flat earlier, so that none of them decides."""
    family = FAMILIES[name]
    config, task_set = load(family, seed, folder)
    config = dataclasses.replace(config, iterations=budget)
    rates = choose_rates(config, task_set)
    # The course is ours, step by step, so the learner's own is constant.
    learner = build_learner(
        dataclasses.replace(config, schedule="constant"),
        task_set.description, rates["alpha_chosen"], rates["meta_lr"],
    )  # fmt: skip
    advance = compile_advance(learner)
    judge = compile_judge(learner, learner.adapter.steps, family.test_tasks)
    start, training, testing = jax.random.split(jax.random.key(seed), 3)

    def go_on(state: TrainState, until: int, decay: float) -> TrainState:
        peak = state.meta_lr / course(int(state.iteration) - 1, budget, decay)
        for step in range(int(state.iteration), until):
            given = peak * course(step, budget, decay)
            state = dataclasses.replace(state, meta_lr=given.astype(state.meta_lr.dtype))
            state = next_window(
                advance(task_set.splits.train, training, state, jnp.asarray(step + 1))
            )
            if int(state.failure) != HEALTHY:
                break
            peak = peak * state.meta_lr / given  # half of it where the guard says so
        return state

    middle = go_on(initial_state(learner, start, budget), budget - round(budget / 5), SHARES[0])
    if int(middle.trend.flat_since) >= 0:
        return None
    losses = []
    for share in SHARES:
        state = go_on(jax.tree.map(jnp.copy, middle), budget, share)
        alpha = learner.rate.alpha(state.meta, state.rate_state)
        found = judge(state.meta.params, alpha, task_set.splits.test, testing)
        loss = float(jnp.mean(found.losses[:, -1]))
        losses.append(loss if int(state.failure) == HEALTHY and math.isfinite(loss) else None)
    return {"budget": budget, "seed": seed, "gain": gain(middle), "losses": losses}


def course(step: int, horizon: int, decay: float) -> float:
    """The share of its peak that the rate of a meta-step is, by number; before the first, 1."""
    if step < 0:
        return 1.0
    progress = (step + 0.5) / horizon
    return min(progress / _WARM_UP, 1) * min((1 - progress) / decay, 1)


def gain(state: TrainState) -> float:
    """How far the mean logarithm of the training loss fell from two periods of the trend to the last two."""
    count, total = np.asarray(state.trend.count), np.asarray(state.trend.total)
    if not count[-1]:  # a new one has just begun
        count, total = np.roll(count, 1), np.roll(total, 1)
    early, late = (slice(0, 2), slice(2, 4)) if count[0] else (slice(1, 2), slice(2, 4))
    return float(total[early].sum() / count[early].sum() - total[late].sum() / count[late].sum())


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """A line of Markdown for each budget: ratios to the first share, as means over seeds with their intervals."""
    for budget in sorted({row["budget"] for row in rows}):
        mine = [row for row in rows if row["budget"] == budget]
        losses = np.array(
            [[math.inf if x is None else x for x in row["losses"]] for row in mine], float
        )
        cells = []
        for column in (losses / losses[:, :1]).T[1:]:
            half = interval(column)
            cells.append(f"{column.mean():.3f}" + ("" if half is None else f" ± {half:.3f}"))
        lowered = 1 - math.exp(-np.mean([row["gain"] for row in mine]))
        columns = [name, f"{budget:,d}", f"{lowered:.0%}", f"{losses[:, 0].mean():.4g}", *cells]
        print("| " + " | ".join([*columns, str(len(mine))]) + " |", flush=True)


def main() -> None:
    """Family after family; each adds its rows to decays.json."""
    options = tyro.cli(Options)
    path = options.out / "decays.json"
    record = read_json(path) if path.exists() else {}
    shares = " | ".join(f"last {share:.0%}" for share in SHARES[1:])
    print(
        f"| family | meta-steps | a doubling lowers the loss by | loss, last {SHARES[0]:.0%} | {shares} | seeds |"
    )
    print("|---" * (len(SHARES) + 4) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.families:
            budgets = [budget for budget in FAMILIES[name].budgets if budget in options.budgets]
            found = [
                compare(name, budget, seed, Path(folder))
                for budget in budgets
                for seed in options.seeds
            ]
            record[name] = [row for row in found if row is not None]
            write_json(path, record)
            show(name, record[name])
            jax.clear_caches()


if __name__ == "__main__":
    main()
