"""What every contender's process does: read a problem, then answer requests, a line of JSON for each (NumPy only).

A contender is a function (row, parameters, episodes) -> (gradient, step): `gradient()` is the meta-gradient as a
list of NumPy arrays shaped like the parameters, and asked for in float64; `step(count)` takes that many meta-steps
with Adam, in float32, and returns when they are done.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Contender = Callable[[dict, list[np.ndarray], dict[str, np.ndarray]], tuple[Callable, Callable]]


def cast(values: Any, kind: str) -> Any:
    """Floating-point arrays in one precision; labels as they are."""
    if isinstance(values, dict):
        return {name: cast(value, kind) for name, value in values.items()}
    if isinstance(values, list):
        return [cast(value, kind) for value in values]
    return values.astype(kind) if values.dtype.kind == "f" else values


def serve(contender: Contender, facts: Callable[..., dict] = lambda *problem: {}) -> None:
    """Requests, each answered by a line: `gradient OUT.npz`, `start` (compile), `time COUNT`, `facts`."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    row = json.loads(sys.argv[1])
    stored = dict(np.load(sys.argv[2]))
    params = [
        stored.pop(f"param{i}") for i in range(sum(name.startswith("param") for name in stored))
    ]
    answer, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    step: Callable[[int], None] | None = None
    for line in sys.stdin:
        name, *arguments = line.split()
        began, used, reply = time.perf_counter(), time.process_time(), {}
        try:
            if name == "facts":
                reply |= facts(row, cast(params, "float32"), cast(stored, "float32"))
            elif name == "gradient":
                gradient, _ = contender(row, cast(params, "float64"), cast(stored, "float64"))
                np.savez(arguments[0], *gradient())
            elif name == "start":
                _, step = contender(row, cast(params, "float32"), cast(stored, "float32"))
                step(1)
            elif step is not None:
                step(int(arguments[0]))
            reply["seconds"] = time.perf_counter() - began
        except Exception as error:  # listed in the table, not dropped
            reply["error"] = f"{type(error).__name__}: {str(error).strip()[:200]}"
        reply["cpu_seconds"] = time.process_time() - used
        reply["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(reply), file=answer, flush=True)
