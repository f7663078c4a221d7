"""A table of many small tasks, end to end: does adapting beat not adapting, and learning each task from scratch?

    python benchmarks/sensors.py [--out benchmarks/results]

Writes a CSV of 200 sensors with 20 rows each (different gains, offsets and slopes), runs the verbs `rates`,
`train`, `evaluate` and `adapt` on it as a user would, and compares their predictions for 40 new sensors with the
unadapted model and with the same network trained from scratch on the same support rows.
"""

import csv
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from metastep._records import write_json
from metastep.models import mlp, squared_error

SUPPORT, QUERY = 10, 50


@dataclasses.dataclass
class Options:
    """Compare adapted predictions with the unadapted model and with models trained from scratch."""

    sensors: int = 200
    """Sensors to meta-train on."""
    new_sensors: int = 40
    """Sensors to adapt to."""
    steps: int = 5
    """Inner steps."""
    seed: int = 7
    """Of the sensors."""
    out: Path = Path("benchmarks/results")
    """Where the JSON goes."""


def readings(rng: np.random.Generator, rows: int) -> np.ndarray:
    """(rows, 3): temperature, humidity and the reading of one sensor with its own gain, offset and drift."""
    gain, offset, drift = rng.uniform(0.5, 2), rng.normal(0, 3), rng.uniform(-0.5, 0.5)
    temperature, humidity = rng.uniform(-10, 40, rows), rng.uniform(10, 90, rows)
    response = 0.3 * temperature + 4 * np.sin(humidity / 18) + 0.02 * (temperature - 15) ** 2
    reading = offset + gain * response + drift * temperature + rng.normal(0, 0.2, rows)
    return np.stack([temperature, humidity, reading], axis=1)


def write_table(path: Path, groups: dict[str, np.ndarray]) -> None:
    """One row per reading, with the sensor it is from."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sensor", "temperature", "humidity", "reading"])
        for name, values in groups.items():
            writer.writerows([name, *row] for row in values.round(4))


def metastep(*arguments: str) -> dict:
    """Run a verb in a process of its own."""
    command = [sys.executable, "-c", "from metastep.cli import main; main()", *arguments, "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def from_scratch(rng_seed: int, rows: np.ndarray, table: np.ndarray) -> tuple[float, float]:
    """Query error of the same network trained on one sensor's support rows alone, after 2,000 steps of Adam.

    Standardised with the statistics of the whole table. The second number is the lowest query error on the way:
    a stopping time that nobody could know, more favourable than any real training.
    """
    mean, scale = table.mean(axis=0), table.std(axis=0)
    scaled = jnp.asarray((rows - mean) / scale, jnp.float32)
    x, y = scaled[:, :2], scaled[:, 2:]
    model, optimizer = mlp((2,), 1), optax.adam(1e-2)
    params = model.init(jax.random.key(rng_seed))

    def loss(params, x, y):
        return squared_error(model.apply(params, x), y)

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(loss)(params, x[:SUPPORT], y[:SUPPORT])
        updates, state = optimizer.update(gradient, state)
        params = optax.apply_updates(params, updates)
        return (params, state), loss(params, x[SUPPORT:], y[SUPPORT:])

    run = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=2000)[1])
    errors = np.asarray(run(params)) * scale[2] ** 2
    return float(errors[-1]), float(errors.min())


def main() -> None:
    """Run the comparison."""
    options = tyro.cli(Options)
    rng = np.random.default_rng(options.seed)
    known = {f"s{i:03d}": readings(rng, 20) for i in range(options.sensors)}
    table = np.concatenate(list(known.values()))
    adapted, unadapted, scratch, oracle = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tasks, run = str(place / "sensors.csv"), str(place / "run")
        write_table(Path(tasks), known)
        columns = ("--task-column", "sensor", "--target-columns", "reading")
        rates = metastep("rates", tasks, *columns)
        metastep("train", tasks, *columns, "--steps", str(options.steps), "--out", run)
        evaluation = metastep("evaluate", run)
        for i in range(options.new_sensors):
            rows = readings(rng, SUPPORT + QUERY)
            for part, values in (("support", rows[:SUPPORT]), ("query", rows[SUPPORT:])):
                write_table(place / f"{part}.csv", {"new": values})
            files = ("--support", str(place / "support.csv"), "--query", str(place / "query.csv"))
            result = metastep("adapt", run, *files, "--out", str(place / "p.csv"))
            adapted.append(result["mean_squared_error"])
            unadapted.append(result["mean_squared_error_before"])
            converged, best = from_scratch(i, rows, table)
            scratch.append(converged)
            oracle.append(best)
    means = {
        "adapted": float(np.mean(adapted)),
        "unadapted": float(np.mean(unadapted)),
        "from_scratch": float(np.mean(scratch)),
        "from_scratch_oracle_stop": float(np.mean(oracle)),
        "adapted_beats_scratch": float(np.mean(np.array(adapted) < np.array(scratch))),
        "adapted_beats_oracle": float(np.mean(np.array(adapted) < np.array(oracle))),
    }
    for name, value in means.items():
        print(f"{name:>26}: {value:.3f}")
    del evaluation["run"]  # a folder that is gone
    write_json(options.out / "sensors.json", {"rates": rates, "evaluation": evaluation} | means)


if __name__ == "__main__":
    main()
