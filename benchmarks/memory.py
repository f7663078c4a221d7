"""Memory and time of one meta-step against inner steps and tasks side by side, for each way to differentiate.

    python benchmarks/memory.py                     sizes only: programs are compiled, not run
    python benchmarks/memory.py --time 1 5          also times those numbers of inner steps
    python benchmarks/memory.py --draw              draws the figure again

Conv4 with 32 filters and max-pooling on 84x84x3 images, 5-way 1-shot, 15 queries of each class: the network of
mini-ImageNet in the literature. Writes benchmarks/results/memory.json and docs/figures/memory.png.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from metastep.adapt import GradientAdapter
from metastep.metagrad import DERIVATIVES, Exact
from metastep.models import Objective, conv4
from metastep.rates import FixedRate, make_optimizer
from metastep.tasks import FewShot
from metastep.train import Learner, initial_state
from metastep.train.memory import footprint
from metastep.train.step import compile_advance

ROOT = Path(__file__).parents[1]
SIZE, CHANNELS, FILTERS, WAYS, SHOTS, QUERIES = 84, 3, 32, 5, 1, 15
TASKS = 4  # of a meta-step, as on mini-ImageNet in the literature


def make_family() -> FewShot:
    """Random images: neither memory nor time depends on what is in them."""
    per_class = SHOTS + QUERIES
    images = np.random.default_rng(0).integers(
        0, 256, (2 * WAYS * per_class, SIZE, SIZE, CHANNELS), np.uint8
    )
    counts = np.full(2 * WAYS, per_class)
    return FewShot(images, counts, ways=WAYS, shots=SHOTS, queries=QUERIES)


def make_learner(derivative: str, steps: int, tasks_at_once: int) -> Learner:
    """The learner of `metastep train`, at a fixed rate."""
    model = conv4((SIZE, SIZE, CHANNELS), WAYS, FILTERS, "max")
    return Learner(
        model=model,
        objective=Objective.of(model.apply, "classification"),
        adapter=GradientAdapter(steps),
        meta_gradient=Exact(derivative),
        rate=FixedRate(0.01),
        optimizer=make_optimizer("adam", 1e-3),
        tasks_per_step=TASKS,
        tasks_at_once=tasks_at_once,
    )


def timed(learner: Learner, family: FewShot, repeats: int = 3) -> float:
    """Median seconds of a meta-step, after one that compiles."""
    run, key = compile_advance(learner), jax.random.key(0)
    state, seconds = initial_state(learner, key), []
    for step in range(repeats + 1):
        began = time.perf_counter()
        state = jax.block_until_ready(run(family, key, state, jnp.asarray(step + 1)))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))


def measure(derivative: str, steps: int, width: int, time_it: bool, family: FewShot) -> dict:
    """One cell of the table."""
    learner, began = make_learner(derivative, steps, width), time.perf_counter()
    needed = footprint(learner, family)
    return {
        "derivative": derivative,
        "steps": steps,
        "tasks_at_once": width,
        "temporary_bytes": needed.temporary,
        "argument_bytes": needed.arguments,
        "compile_seconds": round(time.perf_counter() - began, 2),
        "seconds_per_meta_step": timed(learner, family) if time_it else None,
    }


def cell(row: dict) -> tuple[int, int, int]:
    """Where a row stands in the table."""
    return row["tasks_at_once"], row["steps"], DERIVATIVES.index(row["derivative"])


def with_row(rows: list[dict], new: dict) -> list[dict]:
    """The rows with a new one last, in place of what was measured in its cell before."""
    return [row for row in rows if cell(row) != cell(new)] + [new]


def draw(rows: list[dict], path: Path) -> None:
    """Temporary memory of a meta-step against inner steps."""
    from metastep.report import style
    from metastep.report.lines import Series, line_figure

    widths = sorted({row["tasks_at_once"] for row in rows})
    looks = zip(
        DERIVATIVES,
        (style.VERMILLION, style.BLUE, style.GREEN),
        ("o", "s", "^"),
        ("-", "-", "--"),  # two of them nearly coincide
        strict=True,
    )
    series = []
    for derivative, color, marker, line in looks:
        for width in widths:
            mine = [r for r in rows if (r["derivative"], r["tasks_at_once"]) == (derivative, width)]
            label = derivative if len(widths) == 1 else f"{derivative}, {width} at once"
            y = [row["temporary_bytes"] / 1e9 for row in mine]
            x = [row["steps"] for row in mine]
            series.append(Series(label, x, y, color=color, line=line, marker=marker))
    figure = line_figure(series, "inner steps", "temporary memory (GB)")
    figure.axes[0].set(ylim=(0, None), xlim=(0, 1.04 * max(row["steps"] for row in rows)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(style.render(figure, "png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 5, 20, 50])
    parser.add_argument("--widths", type=int, nargs="+", default=[1, TASKS])
    parser.add_argument("--time", type=int, nargs="*", default=[], help="inner steps to time too")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "memory.json")
    parser.add_argument("--add", action="store_true", help="to what was measured before")
    parser.add_argument("--draw", action="store_true", help="draw what was measured before")
    options = parser.parse_args()
    if options.draw:
        draw(json.loads(options.out.read_text())["rows"], ROOT / "docs" / "figures" / "memory.png")
        return
    family = make_family()
    rows = json.loads(options.out.read_text())["rows"] if options.add else []
    for width in options.widths:
        for steps in options.steps:
            for derivative in DERIVATIVES:
                time_it = steps in options.time and width == 1
                rows = with_row(rows, measure(derivative, steps, width, time_it, family))
                print(json.dumps(rows[-1]), flush=True)
                record = {
                    "network": f"conv4-{FILTERS}-max on {SIZE}x{SIZE}x{CHANNELS}",
                    "tasks_per_step": TASKS,
                    "jax": jax.__version__,
                    "device": jax.devices()[0].device_kind,
                    "rows": sorted(rows, key=cell),
                }
                options.out.write_text(json.dumps(record, indent=1) + "\n")
    rows = sorted(rows, key=cell)
    draw(rows, ROOT / "docs" / "figures" / "memory.png")


if __name__ == "__main__":
    main()
