"""metastep beside bare JAX and the PyTorch libraries: same parameters, same tasks, one run.

    taskset -c 0 python benchmarks/speed.py [--rows 0 1 3] [--rounds 5] [--out benchmarks/results]

For each row, every contender is a process of its own. All first compute the meta-gradient (or the rate, or the curve,
that the row is about) in float64, which must agree; then they compile; then they take turns, a round each, and the
median of the rounds is reported, with the seconds to the first step, peak memory and the share of the matrix-product
peak that was measured on this machine.
PyTorch's libraries run in an environment that the script makes. A contender that fails is listed with its error.
Writes speed.json and a figure, and prints a table. Use `taskset` to say how many cores to measure on.
"""

import dataclasses
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from metastep._records import read_json, write_json
from peers.environment import peer_python
from speed_figure import draw
from speed_rows.rows import ROWS, Row, episodes, parameters

HERE = Path(__file__).parent / "speed_rows"
CONTENDERS = {
    "metastep": ("ours.py",),
    "bare JAX": ("floor.py",),
    "torch.func compiled": ("torch_func.py", "compiled"),
    "torch.func": ("torch_func.py",),
    "TorchOpt": ("torchopt_worker.py",),
    "higher": ("higher_worker.py",),
    "learn2learn": ("learn2learn_worker.py",),
}
OURS = ("metastep", "bare JAX")
# PyTorch's tuning guide asks for an allocator that keeps its memory; glibc does when it is told to. metastep tells it
# by itself, and JAX's threads have to share the main thread's arena for it.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}
# Correct implementations differ by 7e-14; a wrong second-order term differs by percents.
TOLERANCE = 1e-8


@dataclasses.dataclass
class Options:
    """Time one meta-step of each row."""

    rows: tuple[int, ...] = tuple(range(len(ROWS)))
    """Which rows, by number."""
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    """Which contenders."""
    rounds: int = 5
    """Turns that every contender gets."""
    seconds: float = 0.5
    """Least length of a turn; slow rows take one meta-step."""
    clock: Literal["seconds", "cpu_seconds"] = "seconds"
    """Of the wall, or of the process: for a machine, or a single core, that others use too."""
    patience: float = 240.0
    """Seconds after which a request counts as failed."""
    peers: Path = Path(".cache/peers")
    """Where the peers' environment is kept."""
    out: Path = Path("benchmarks/results")
    """Where the JSON goes."""
    figures: Path = Path("docs/figures")
    """Where the figure goes."""


class Worker:
    """One contender's process on one row."""

    def __init__(self, name: str, row: Row, data: Path, options: Options):
        root = options.peers.absolute()
        python = sys.executable if name in OURS else str(peer_python(root))
        script, *flags = CONTENDERS[name]
        cores = str(len(os.sched_getaffinity(0)))
        environment = dict(os.environ) | {"OMP_NUM_THREADS": cores, "MKL_NUM_THREADS": cores}
        environment |= {} if name == "metastep" else ALLOCATOR
        environment |= {"MALLOC_ARENA_MAX": "1"} if name == "bare JAX" else {}
        problem = [json.dumps(dataclasses.asdict(row)), str(data), str(root)]
        self.name, self.facts, self.times = name, {}, []
        self._patience, self._log = options.patience, tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, str(HERE / script), *problem, *flags], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def ask(self, request: str) -> dict[str, Any]:
        """Its answer; once it has failed, the failure."""
        if "error" in self.facts:
            return self.facts
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(request, file=self._process.stdin, flush=True)
            ready, _, _ = select.select([self._process.stdout], [], [], self._patience)
            line = self._process.stdout.readline() if ready else ""
        except BrokenPipeError:
            ready, line = True, ""
        if line:
            reply = json.loads(line)
        elif ready:
            self._log.seek(0)
            reply = {
                "error": (self._log.read().decode().strip().splitlines() or ["it ended"])[-1][:200]
            }
        else:
            reply = {"error": f"no answer to {request.split()[0]!r} within {self._patience:g} s"}
        if "error" in reply:
            self.facts["error"] = reply["error"]
            self._process.kill()
        self.facts["peak_mb"] = reply.get("peak_mb", self.facts.get("peak_mb"))
        return reply

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def matmul_peak() -> float:
    """Floating-point operations per second of a large product in float32, by the better of JAX's and NumPy's."""
    import jax
    import jax.numpy as jnp

    size, best, cores = 1024, 0.0, len(os.sched_getaffinity(0))
    a = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    product, b = jax.jit(lambda x: x @ x), jnp.asarray(a)
    for function in (lambda: jax.block_until_ready(product(b)), lambda: a @ a):
        for _ in range(10):
            began = time.process_time()
            function()
            best = max(best, 2 * size**3 * cores / (time.process_time() - began))
    return best


def measure(row: Row, options: Options, folder: Path, peak: float) -> dict[str, Any]:
    """Agreement first, then compile, then turns."""
    rng, data = np.random.default_rng(0), folder / "row.npz"
    arrays = {f"param{i}": array for i, array in enumerate(parameters(row, rng))}
    np.savez(data, **arrays, **episodes(row, rng))  # pyright: ignore[reportArgumentType]
    names = [n for n in options.contenders if row.has_peers or n in OURS]
    workers = [Worker(name, row, data, options) for name in names]
    try:
        gradients = {worker.name: _gradient(worker, folder) for worker in workers}
        flops = next((w.ask("facts").get("flops") for w in workers if w.name == "bare JAX"), None)
        reference = gradients.get("bare JAX")
        for worker in workers:
            worker.facts["disagreement"] = _distance(gradients[worker.name], reference)
            worker.facts["first_step_seconds"] = worker.ask("start").get(options.clock)
        for turn in range(options.rounds + 1):
            for worker in workers:
                _take_turn(worker, options.seconds, options.clock, warm=turn > 0)
        found = {worker.name: _summary(worker, flops, peak) for worker in workers}
    finally:
        for worker in workers:
            worker.close()
    return {"name": row.name, "row": dataclasses.asdict(row), "flops": flops, "contenders": found}


def _gradient(worker: Worker, folder: Path) -> list[np.ndarray] | None:
    path = folder / f"{worker.name}.npz"
    if "error" in worker.ask(f"gradient {str(path).replace(' ', '_')}"):
        return None
    with np.load(str(path).replace(" ", "_")) as stored:
        return [stored[name] for name in stored.files]


def _distance(found: list[np.ndarray] | None, reference: list[np.ndarray] | None) -> float | None:
    """Length of the difference of two meta-gradients over the length of the second."""
    if found is None or reference is None:
        return None
    flat, other = (np.concatenate([a.ravel() for a in arrays]) for arrays in (found, reference))
    return float(np.linalg.norm(flat - other) / np.linalg.norm(other))


def _take_turn(worker: Worker, seconds: float, clock: str, warm: bool) -> None:
    """The first turn only finds out how many meta-steps fill one."""
    # Untimed: pages that lay free while others had their turns are slow to get, and only the first to ask would pay.
    worker.ask("time 1")
    count = worker.facts.get("steps_per_turn", 3)
    reply = worker.ask(f"time {count}")
    if "error" in reply:
        return
    if warm:
        worker.times.append(reply[clock] / count)
    else:
        worker.facts["steps_per_turn"] = max(1, round(seconds * count / reply["cpu_seconds"]))


def _summary(worker: Worker, flops: float | None, peak: float) -> dict[str, Any]:
    facts = dict(worker.facts)
    if worker.times and "error" not in facts:
        facts |= {"seconds": statistics.median(worker.times), "turns": worker.times}
        facts["agrees"] = facts["disagreement"] is not None and facts["disagreement"] < TOLERANCE
        if flops:
            facts["share_of_peak"] = flops / facts["seconds"] / peak
    return facts


def show(record: dict[str, Any]) -> None:
    """Print the table: milliseconds of a meta-step, and the same over metastep's."""
    print(f"matrix-product peak {record['peak'] / 1e9:.0f} GFLOP/s on {record['cores']} core(s)")
    for row in record["rows"]:
        print(row["name"])
        ours = row["contenders"].get("metastep", {}).get("seconds")
        for name, facts in row["contenders"].items():
            if "seconds" not in facts:
                print(f"  {name:20s} failed: {facts.get('error')}")
                continue
            ratio = f"{facts['seconds'] / ours:6.2f}" if ours else "     -"
            share = (
                f"{100 * facts['share_of_peak']:4.0f} %" if "share_of_peak" in facts else "   - "
            )
            apart = facts["disagreement"]  # None where nobody was there to disagree with
            agrees = "" if facts["agrees"] or apart is None else f"  DISAGREES ({apart:.1e})"
            print(
                f"  {name:20s} {1000 * facts['seconds']:9.2f} ms {ratio} x  {share} of peak  first step "
                f"{facts['first_step_seconds']:5.1f} s  {facts['peak_mb']:6.0f} MB{agrees}"
            )  # fmt: skip


def main() -> None:
    """Row after row; each is added to the JSON when it is done."""
    options = tyro.cli(Options)
    path = options.out / "speed.json"
    record: dict[str, Any] = read_json(path) if path.exists() else {"rows": []}
    record |= {
        "peak": matmul_peak(),
        "cores": len(os.sched_getaffinity(0)),
        "clock": options.clock,
    }
    for number in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(ROWS[number], options, Path(folder), record["peak"])
        before = [row for row in record["rows"] if row["name"] == found["name"]]
        others = [row for row in record["rows"] if row["name"] != found["name"]]
        if before:  # contenders that were left out this time keep their last result
            found["contenders"] = before[0]["contenders"] | found["contenders"]
        order = [row.name for row in ROWS]
        record["rows"] = sorted([*others, found], key=lambda row: order.index(row["name"]))
        write_json(path, record)
        show(record | {"rows": [found]})
    draw(record, options.figures)


if __name__ == "__main__":
    main()
