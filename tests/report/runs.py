"""Fabricated run folders: every number is made up here, so a test knows what to look for."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from metastep._records import write_json

HOSTILE = "<script>alert('x')</script> & \"quoted\" $\\frac{ [red]name[/red]"


def config(name: str = "sinusoid", kind: str = "regression", **train: Any) -> dict[str, Any]:
    options = {
        "algorithm": "maml",
        "alpha": "auto",
        "meta_lr": 0.001,
        "steps": 1,
        "iterations": 5000,
        "tasks_per_step": 25,
        "ways": 5,
        "shots": 10,
        "queries": 10,
        "model": "mlp",
        "optimizer": "adam",
        "seed": 7,
    }
    return {
        "metastep": "0.1.0",
        "tasks": {"name": name, "kind": kind, "input_shape": [1], "output_size": 1},
        "train": {**options, **train},
        "command": ["metastep", "train", name, "--out", "runs/my run"],
    }


def rates() -> dict[str, Any]:
    alpha = np.linspace(0.0, 0.1, 21)
    predicted = 4.0 - 80.0 * alpha + 1000.0 * alpha**2
    measured = predicted + 4e4 * np.maximum(alpha - 0.03, 0) ** 3
    return {
        "alpha": 0.04,
        "alpha_interval": [0.036, 0.0445],
        "label_free_alpha": 0.0311,
        "label_free_interval": [0.03, 0.0322],
        "predicted_gain": 0.4,
        "label_free_gain": 0.38,
        "num_tasks": 256,
        "meta_lr": 0.001,
        "alpha_chosen": 0.04,
        "alpha_reason": "the rate that lowers the query loss of 256 sampled tasks most",
        "meta_lr_reason": "Adam's usual rate; the bound on beta does not bind it",
        "warnings": ["the quadratic prediction is 40 % off at twice alpha"],
        "curve": {
            "alpha": alpha,
            "measured": measured,
            "ci95": 0.03 * measured,
            "predicted": predicted,
        },
    }


def metric_rows(iterations: int = 5000, every: int = 100, accuracy: bool = False) -> list[dict]:
    noise = np.random.default_rng(0)
    rows: list[dict] = []
    for iteration in range(every, iterations + 1, every):
        part = iteration / iterations
        loss = 3.0 * np.exp(-5 * part) * float(noise.lognormal(0, 0.08)) + 0.02
        row = {"iteration": iteration, "loss": loss, "loss_before": 4.0 + 0.2 * part}
        row |= {"alpha": 0.04, "meta_lr": 0.001, "grad_norm": 1.0, "seconds": part}
        if accuracy:
            row |= {"accuracy": 0.2 + 0.75 * (1 - np.exp(-4 * part)), "accuracy_before": 0.2}
        rows.append(row)
        if iteration % (5 * every) == 0:
            values = {"loss": 1.1 * loss, "loss_before": 4.1}
            if accuracy:
                values |= {"accuracy": row["accuracy"] - 0.02, "accuracy_before": 0.2}
            rows.append({"iteration": iteration, "validation": values})
    return rows


def status(word: str = "finished", iterations: int = 5000, message: str = "") -> dict[str, Any]:
    return {
        "status": word,
        "iterations": iterations,
        "steps_per_second": 812.0,
        "seconds": 6.2,
        "message": message,
        "best": {"iteration": 4500, "loss": 0.061},
    }


def evaluation(accuracy: bool = False) -> dict[str, Any]:
    def at(steps: int) -> dict[str, Any]:
        point: dict[str, Any] = {"loss": {"mean": 4.1 * 0.1**steps + 0.05, "ci95": 0.012}}
        if accuracy:
            point["accuracy"] = {"mean": 0.2 + 0.75 * (1 - 0.1**steps), "ci95": 0.0061}
        return point

    curve = [{"steps": steps, **at(steps)} for steps in range(6)]
    return {
        "num_tasks": 600,
        "split": "test",
        "seed": 7,
        "transductive": False,
        "steps": 1,
        **at(1),
        "before": at(0),
        "curve": curve,
    }


def curve_examples(tasks: int = 4) -> dict[str, Any]:
    draw = np.random.default_rng(1)
    grid = np.tile(np.linspace(-5, 5, 80), (tasks, 1))
    phase, amplitude = draw.uniform(0, 3, (tasks, 1)), draw.uniform(1, 5, (tasks, 1))
    support = draw.uniform(-5, 5, (tasks, 10))
    return {
        "kind": "curves",
        "grid": grid,
        "truth": amplitude * np.sin(grid + phase),
        "before": 0.3 * np.sin(grid + 1.5),
        "after": 0.9 * amplitude * np.sin(grid + phase + 0.1),
        "support_x": support,
        "support_y": amplitude * np.sin(support + phase),
    }


def image_examples(tasks: int = 3, ways: int = 5, shots: int = 1, queries: int = 10) -> dict:
    draw = np.random.default_rng(2)
    # A class is a bar at its own angle, so the pictures can be told apart by eye.
    rows, columns = np.mgrid[-1:1:28j, -1:1:28j]

    def image(label: int) -> np.ndarray:
        angle = np.pi * label / ways + draw.normal(0, 0.05)
        distance = np.abs(rows * np.cos(angle) - columns * np.sin(angle))
        return (distance > 0.12).astype(float)[..., None]

    support_y = np.tile(np.repeat(np.arange(ways), shots), (tasks, 1))
    query_y = np.tile(np.arange(queries) % ways, (tasks, 1))
    after = (
        0.05 + 0.9 * (query_y[..., None] == np.arange(ways)) + draw.uniform(0, 0.2, (1, 1, ways))
    )
    return {
        "kind": "images",
        "support_x": np.stack([[image(label) for label in task] for task in support_y]),
        "support_y": support_y,
        "query_x": np.stack([[image(label) for label in task] for task in query_y]),
        "query_y": query_y,
        "before": np.full((tasks, queries, ways), 1 / ways),
        "after": after / after.sum(-1, keepdims=True),
    }


def scatter_examples(tasks: int = 4, queries: int = 30) -> dict[str, Any]:
    draw = np.random.default_rng(3)
    truth = draw.normal(0, 2, (tasks, queries))
    return {
        "kind": "scatter",
        "query_y": truth,
        "before": 0.1 * truth + draw.normal(0, 0.1, truth.shape),
        "after": truth + draw.normal(0, 0.4, truth.shape),
    }


def write_metrics(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_run(path: Path, **parts: Any) -> Path:
    """Write the given parts (config, rates, status, evaluation, rows, examples) as a run folder."""
    path.mkdir(parents=True, exist_ok=True)
    for name in ("config", "rates", "status", "evaluation"):
        if name in parts:
            write_json(path / f"{name}.json", parts[name])
    if "rows" in parts:
        write_metrics(path / "metrics.jsonl", parts["rows"])
    if "examples" in parts:
        np.savez(path / "examples.npz", **parts["examples"])
    return path


def regression_run(path: Path) -> Path:
    return write_run(
        path,
        config=config(),
        rates=rates(),
        status=status(),
        evaluation=evaluation(),
        rows=metric_rows(),
        examples=curve_examples(),
    )


def classification_run(path: Path) -> Path:
    return write_run(
        path,
        config=config("omniglot", "classification", model="conv4", shots=1, steps=5),
        rates=rates(),
        status=status(),
        evaluation=evaluation(accuracy=True),
        rows=metric_rows(accuracy=True),
        examples=image_examples(),
    )
