"""Is our Omniglot training on the track of an independent implementation? learn2learn's MAML beside ours.

    python benchmarks/omniglot_reference.py [--ways 5] [--stops 50 100 200 400] [--out benchmarks/results]

Both train the published Conv4 with the published settings (Adam 1e-3, one inner step, a mean loss, so the
published 0.4 is 2.0) on the same images of the same classes, and are judged on 600 tasks of the held-out classes.
learn2learn runs in an environment that this script makes (`benchmarks/peers`). METASTEP_DATA names the data root.
"""

import dataclasses
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from metastep import datasets
from metastep._records import read_json, write_json
from metastep.train import RunFolder, TrainConfig, evaluate_run, load_run, resume, train
from peers.environment import peer_python

HERE = Path(__file__).parent


@dataclasses.dataclass
class Options:
    """Compare early learning curves on Omniglot."""

    ways: int = 5
    """Classes of a task, one shot each."""
    inner_steps: int = 1
    """Inner steps."""
    alpha: float = 2.0
    """Adaptation rate of both, for a mean loss."""
    tasks: int = 32
    """Tasks of a meta-step."""
    stops: tuple[int, ...] = (50, 100, 200, 400)
    """Meta-steps after which both are judged."""
    seed: int = 0
    """Of both."""
    curves: tuple[Literal["published", "auto", "learn2learn"], ...] = (
        "published",
        "auto",
        "learn2learn",
    )
    """Which: ours at the published alpha, ours with alpha auto, and learn2learn's at the published alpha."""
    peers: Path = Path(".cache/peers")
    """Where the peers' environment is kept."""
    out: Path = Path("benchmarks/results")
    """Where the JSON goes."""


def ours(options: Options, folder: Path, alpha: float | str) -> list[dict]:
    """Our curve, through the training that the command line runs, judged at every stop."""
    run, rows = RunFolder(folder), []
    for stop in options.stops:
        if rows:
            result = resume(run, iterations=stop)
        else:
            config = TrainConfig(
                tasks="omniglot", ways=options.ways, steps=options.inner_steps, alpha=alpha,
                meta_lr=1e-3, tasks_per_step=options.tasks, iterations=stop, eval_tasks=2,
                eval_every=10**6, seed=options.seed,
            )  # fmt: skip
            result = train(config, run)
        evaluation, _ = evaluate_run(load_run(run, "latest"), num_tasks=600)
        accuracy = evaluation.after.accuracy
        assert accuracy is not None
        rows.append({"step": stop, "accuracy": accuracy.mean, "ci95": accuracy.ci95})
        rows[-1] |= {"alpha": result.alpha}
        print(f"metastep, alpha {result.alpha:.3g}: {rows[-1]}", flush=True)
    return rows


def theirs(options: Options, folder: Path) -> list[dict]:
    """learn2learn's curve on the same images."""
    data = datasets.load_omniglot(datasets.data_root(None), "vinyals", 28)
    images, out = folder / "images.npz", folder / "learn2learn.json"
    arrays = {
        part: np.asarray(classes.images).reshape(len(classes.names), -1, 28, 28)
        for part, classes in (("train", data.train), ("test", data.test))
    }
    np.savez(images, allow_pickle=False, **arrays)
    python = peer_python(options.peers.absolute())
    arguments = [
        options.ways,
        options.inner_steps,
        options.alpha,
        1e-3,
        options.tasks,
        options.seed,
    ]
    command = [
        python,
        HERE / "peers" / "learn2learn_omniglot.py",
        options.peers.absolute(),
        images,
        out,
    ]
    subprocess.run([str(part) for part in (*command, *arguments, *options.stops)], check=True)
    return json.loads(out.read_text())


def main() -> None:
    """Run the chosen curves; each is added to the JSON when it is done."""
    options = tyro.cli(Options)
    path = options.out / "omniglot_reference.json"
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(options).items()
        if name not in ("curves", "peers", "out")
    }
    record = read_json(path) if path.exists() else {}
    if record.get("settings") != settings:
        record = {"settings": settings, "curves": {}}
    makers = {
        "published": lambda folder: ours(options, folder / "run", options.alpha),
        "auto": lambda folder: ours(options, folder / "run", "auto"),
        "learn2learn": lambda folder: theirs(options, folder),
    }
    for name in options.curves:
        with tempfile.TemporaryDirectory() as folder:
            record["curves"][name] = makers[name](Path(folder))
        write_json(path, record)
    for name, rows in record["curves"].items():
        shown = "  ".join(f"{row['step']}: {row['accuracy']:.3f}" for row in rows)
        print(f"{name:12s} {shown}")


if __name__ == "__main__":
    main()
