"""How many tasks to compute side by side: the meta-step of dense networks of different widths, in groups of tasks.

    taskset -c 0 python benchmarks/groups.py [--widths 40 100 200 400] [--groups 1 5 25] [--rounds 9]

Sinusoids, 25 tasks, two hidden layers of each width. The groups take turns, for about a fifth of a second each;
medians over the rounds, for a cell of a grid and for the default (see `default_cost.py`). 25 are all tasks at once.
"""

import dataclasses
import tempfile
from pathlib import Path

import jax
import tyro

from default_cost import CHOICES, times
from metastep.models import mlp
from metastep.train import keep_freed_memory, side_by_side


@dataclasses.dataclass
class Options:
    """Time meta-steps in groups of tasks."""

    widths: tuple[int, ...] = (40, 100, 140, 200, 400, 800)
    """Of both hidden layers."""
    groups: tuple[int, ...] = (1, 5, 25)
    """Tasks side by side; divisors of 25."""
    rounds: int = 9
    """How often each has its turn."""


def main() -> None:
    """Print two rows for each width."""
    options = tyro.cli(Options)
    keep_freed_memory()
    columns = [f"{group} at once" for group in options.groups]
    print(f"| one meta-step, ms | parameters, kB | {' | '.join(columns)} | metastep takes |")
    print("|---" * (len(columns) + 3) + "|")
    for width in options.widths:
        hidden = (width, width)
        model = mlp((1,), 1, hidden)
        shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes) / 1024
        for name, given in (("a cell", CHOICES[0]), ("the default", CHOICES[-1])):
            choices = [
                {**given, "hidden": hidden, "tasks_at_once": each} for each in options.groups
            ]
            with tempfile.TemporaryDirectory() as folder:
                found = times("sinusoid", choices, options.rounds, Path(folder))
            shown = " | ".join(f"{1e3 * each:.3g}" for each in found)
            chosen = side_by_side(model, None, 25) or 25
            print(f"| {width}, {name} | {size:,.0f} | {shown} | {chosen} |", flush=True)


if __name__ == "__main__":
    main()
