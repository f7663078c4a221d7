"""From a table of sensors to a model that learns a new sensor from eight readings."""

import csv
import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from metastep import train


def readings(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Temperature and voltage of a new sensor; each has its own gain, offset and bend."""
    gain, offset, bend = rng.uniform([0.5, -1.0, -0.3], [2.0, 1.0, 0.3])
    temperature = rng.uniform(-2, 2, count)
    voltage = offset + gain * temperature + bend * temperature**2
    return temperature[:, None], (voltage + 0.05 * rng.normal(size=count))[:, None]


def write_table(path: Path, rng: np.random.Generator, sensors: int = 60) -> None:
    """One row per reading, with the sensor in the task column."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["task", "temperature", "target"])
        for sensor in range(sensors):
            for x, y in zip(*readings(rng, 20), strict=True):
                table.writerow([f"sensor{sensor}", *x, *y])


def main(folder: Path, iterations: int = 500) -> None:
    """Tasks, rate, training, adaptation."""
    rng = np.random.default_rng(0)
    write_table(folder / "sensors.csv", rng)
    tasks = str(folder / "sensors.csv")
    config = train.TrainConfig(tasks=tasks, shots=8, hidden=(40,), iterations=iterations)
    advice = train.measure_rates(config, train.load_tasks(config))
    low, high = advice.alpha_interval
    print(f"alpha: {advice.alpha_chosen:.3g}, 95 % interval {low:.3g} to {high:.3g}")

    config = dataclasses.replace(config, alpha=advice.alpha_chosen)  # "auto" would measure again
    train.train(config, train.RunFolder(folder / "run"))
    run = train.load_run(train.RunFolder(folder / "run"))
    errors = []
    for _ in range(5):
        x, y = readings(rng, 40)
        answer = train.adapt_and_predict(run, x[:8], y[:8], x[8:])
        pair = answer.predictions_before, answer.predictions
        errors.append([np.mean((predicted - y[8:]) ** 2) for predicted in pair])
    before, after = np.sqrt(np.mean(errors, axis=0))
    print(f"error on new sensors before adaptation: {before:.3g} V")
    print(f"error on new sensors after 8 readings: {after:.3g} V")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
