"""How long `metastep train sinusoid` takes to its first meta-step when its programs have been compiled before.

    python benchmarks/start.py

Starts the command in fresh processes, as a user would, and reads the clocks whenever it says how far it is.
Bytecode and compiled programs are kept from the first start, which is not counted, to the next. The last
command has a new seed each time. A second core saves time on the wall, as programs are read on a thread;
`taskset -c 1` leaves one. Processor time is that of all threads of the process, to a hundredth of a second;
on a machine that does other things it is the one to look at.
Prints a table and writes benchmarks/results/start.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
# A line that begins so ends the stage; the first meta-step of the run itself is the last one.
WITH_SHORT_TRAININGS = {
    "Python, imports, tasks": "measuring alpha",
    "alpha, first short training": "short training 1",
    "other short trainings": "alpha",
    "state, checkpoint, first meta-step": "1/",
}
WITHOUT = {
    "Python, imports, tasks": "measuring alpha",
    "alpha": "alpha",
    "state, checkpoint, first meta-step": "1/",
}
COMMANDS = {
    "metastep train sinusoid": WITH_SHORT_TRAININGS,
    "metastep train sinusoid --no-rehearse": WITHOUT,
    "metastep train sinusoid --no-rehearse --seed ROUND": WITHOUT,
}


def processor_seconds(process: int) -> float:
    """Of all threads of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def start(arguments: list[str], stages: dict[str, str], folder: Path) -> dict[str, dict]:
    """One start up to its first meta-step: what each stage took, and all of them."""
    environment = dict(os.environ) | {
        "PYTHONPATH": str(ROOT / "src"),
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "COLUMNS": "1000",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    out = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-m", *arguments, "--out", f"{out}/run"]
    began, clocks, left = time.perf_counter(), {}, dict(stages)
    child = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert child.stderr is not None
    for line in child.stderr:
        stage = next(iter(left))
        if line.startswith(left[stage]):
            clocks[stage] = time.perf_counter() - began, processor_seconds(child.pid)
            del left[stage]
        if not left:
            break
    child.kill()
    child.wait()
    taken, before = {}, (0.0, 0.0)
    for stage, now in clocks.items():
        taken[stage] = {"wall": now[0] - before[0], "processor": now[1] - before[1]}
        before = now
    return taken | {"all": {"wall": before[0], "processor": before[1]}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    record = {}
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        for name, stages in COMMANDS.items():
            # Seed 0 is that of the commands before.
            rounds = [
                start(name.replace("ROUND", str(number)).split(), stages, folder)
                for number in range(options.rounds + 1)
            ][1:]
            print(f"\n{name}\n{'stage':40}{'wall, s':>10}{'processor, s':>14}")
            record[name] = {}
            for stage in rounds[0]:
                row = {
                    clock: round(statistics.median(one[stage][clock] for one in rounds), 3)
                    for clock in ("wall", "processor")
                }
                record[name][stage] = row
                print(f"{stage:40}{row['wall']:10.2f}{row['processor']:14.2f}", flush=True)
    out = ROOT / "benchmarks" / "results" / "start.json"
    out.write_text(json.dumps({"rounds": options.rounds, "seconds": record}, indent=1) + "\n")


if __name__ == "__main__":
    main()
