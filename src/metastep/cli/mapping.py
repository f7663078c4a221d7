"""`metastep rates --map`: the (alpha, beta) plane, computed, drawn and written."""

from functools import partial
from typing import Any

from metastep._records import to_plain, write_json
from metastep.cli.options import RatesOptions
from metastep.cli.progress import counting, error_console
from metastep.report import rate_map as drawing
from metastep.report import save_figure
from metastep.train import TaskSet, map_of_problem

_UNITS = {"classification": "nats", "regression": "squared error"}


def draw_map(options: RatesOptions, task_set: TaskSet, alpha: float) -> dict[str, Any]:
    """Write rates_map.json, .png and .svg into --out, and return what is printed of them."""
    with counting(error_console()) as count:
        tell = count.of()
        tell("measuring the curvature", 0, 1)
        found = map_of_problem(
            options,
            task_set,
            alpha,
            optimizer=options.map_optimizer,
            iterations=options.map_iterations,
            progress=partial(tell, "training at every pair of rates"),
        )
    records = to_plain(found | {"tasks": options.tasks, "algorithm": options.algorithm})
    file = options.out / "rates_map.json"
    write_json(file, records)
    figure = drawing.map_figure(records, _UNITS[task_set.description["kind"]])
    pictures = save_figure(figure, options.out / "rates_map.png")
    return {
        "files": [str(path) for path in (*pictures, file)],
        "optimizer": records["optimizer"],
        "cells": [len(records["alphas"]), len(records["betas"])],
        "iterations": records["iterations"],
        "tasks_per_step": records["tasks_per_step"],
        "chosen": records["chosen"],
        "alpha_c": records["predicted"]["start"]["alpha_c"],
        "trained_cells": int(drawing.trained_cells(records).sum()),
        "seconds": records["seconds"],
    }
