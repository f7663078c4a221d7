"""Weak scaling on one machine: the same tasks for each device, on 1 and 2 devices and on 2 processes.

    python benchmarks/weak_scaling.py

Reports the processor time of a task, all threads and processes together, and the wall time of a meta-step. Ideal is
the same processor time for a task however many devices there are: then dealing tasks out and averaging cost nothing,
and devices with cores of their own take the same wall time for more tasks. Processor time is what can be measured on
a machine that does other things too. Writes benchmarks/results/weak_scaling.json and docs/figures/weak-scaling.png.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TASKS = 100  # of each device
INNER_STEPS = 5
REPEATS = 5
SETTINGS = {  # name: (processes, devices of each)
    "1 device": (1, 1),
    "2 devices": (1, 2),
    "2 processes": (2, 1),
}


def meta_steps(index: int, processes: int, devices: int, port: int, steps: int) -> dict:
    """Train in this process, which may be one of several, and look at the clocks."""
    import jax
    import jax.numpy as jnp

    from metastep.adapt import GradientAdapter
    from metastep.metagrad import Exact
    from metastep.models import Objective, mlp
    from metastep.rates import FixedRate, make_optimizer
    from metastep.tasks import Sinusoid
    from metastep.train import CrewConfig, Learner, initial_state, join
    from metastep.train.devices import replicate
    from metastep.train.step import compile_advance

    others: dict = {"coordinator": f"127.0.0.1:{port}", "processes": processes, "process_id": index}
    crew = join(CrewConfig(devices=devices, **(others if processes > 1 else {})))
    model, tasks = mlp((1,), 1), TASKS * processes * devices
    learner = Learner(
        model=model,
        objective=Objective.of(model.apply, "regression"),
        adapter=GradientAdapter(INNER_STEPS),
        meta_gradient=Exact(),
        rate=FixedRate(0.01),
        optimizer=make_optimizer("adam", 1e-3),
        tasks_per_step=tasks,
        mesh=crew.mesh(tasks),
    )
    run, mesh, key = compile_advance(learner), learner.mesh, jax.random.key(0)
    state = replicate(mesh, initial_state(learner, key))
    family, key = replicate(mesh, (Sinusoid(shots=10), key))
    cpu, wall = [], []
    for dispatch in range(REPEATS + 1):  # the first one compiles
        until = replicate(mesh, jnp.asarray((dispatch + 1) * steps))
        began, worked = time.perf_counter(), time.process_time()
        state = jax.block_until_ready(run(family, key, state, until))
        wall.append((time.perf_counter() - began) / steps)
        cpu.append((time.process_time() - worked) / steps)
    return {"tasks": tasks, "cpu_seconds": min(cpu[1:]), "wall_seconds": min(wall[1:])}


def measure(name: str, steps: int) -> dict:
    """One setting, in processes of its own."""
    processes, devices = SETTINGS[name]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    children = [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                "--steps",
                str(steps),
                "--child",
                name,
                str(index),
                str(port),
            ],
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    said = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    tasks = said[0]["tasks"]
    return {
        "setting": name,
        "tasks": tasks,
        "cpu_microseconds_per_task": 1e6 * sum(one["cpu_seconds"] for one in said) / tasks,
        "wall_milliseconds_per_meta_step": 1e3 * max(one["wall_seconds"] for one in said),
    }


def draw(rows: list[dict], path: Path) -> None:
    """Processor time of a task in each setting, beside the ideal."""
    from metastep.report import style

    figure, (axes,) = style.new_figure()
    values = [row["cpu_microseconds_per_task"] for row in rows]
    labels = [f"{row['setting']}\n{row['tasks']} tasks" for row in rows]
    bars = axes.bar(labels, values, color=style.BLUE, width=0.55)
    axes.bar_label(bars, [f"{value:.0f}" for value in values], padding=2)
    axes.axhline(values[0], color=style.VERMILLION, linestyle="--", label="ideal")
    axes.set_ylabel("processor time of a task (µs)")
    axes.set_ylim(0, 1.2 * max(values))
    axes.grid(axis="x", visible=False)
    style.legend_below(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(style.render(figure, "png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="meta-steps of a dispatch")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, index, port = options.child
        processes, devices = SETTINGS[name]
        print(json.dumps(meta_steps(int(index), processes, devices, int(port), options.steps)))
        return
    rows = []
    for name in SETTINGS:
        rows.append(measure(name, options.steps))
        print(json.dumps(rows[-1]), flush=True)
    record = {"network": "mlp 1-40-40-1", "inner_steps": INNER_STEPS, "rows": rows}
    out = ROOT / "benchmarks" / "results" / "weak_scaling.json"
    out.write_text(json.dumps(record, indent=1) + "\n")
    draw(rows, ROOT / "docs" / "figures" / "weak-scaling.png")


if __name__ == "__main__":
    main()
