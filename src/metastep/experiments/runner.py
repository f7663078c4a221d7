"""Run experiments and write what they found: figure, records, tables, claims, and what it cost."""

import contextlib
import csv
import dataclasses
import gc
import io
import shlex
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from metastep import experiments
from metastep._errors import DataError, InputError, check_choice, check_count
from metastep._records import read_json, to_plain, write_bytes, write_json
from metastep.datasets.paths import data_root
from metastep.experiments.core import SCALES, Experiment, Report, Scale, Tell
from metastep.experiments.side_by_side import Died, side_by_side
from metastep.report.style import save_figure

FINISHED = "finished"
RESULT = "result.json"
_UNFINISHED, _WHOSE, _SPENT = "unfinished", "run.json", "spent.json"
_SPENT_SECONDS = 10.0  # how often what was spent is noted


def run_experiments(
    names: Sequence[str],
    out: Path,
    *,
    scale: Scale = "quick",
    seed: int = 0,
    data: str | Path | None = None,
    jobs: int = 1,
    settle: Callable[[], None] | None = None,
    tell: Callable[[str], Tell] = lambda name: Report.tell,
) -> Iterator[dict[str, Any]]:
    """Run experiments; yield the record of each when it is written.

    Parameters
    ----------
    names : experiments; "all" stands for every one
    out : folder; each experiment writes to OUT/NAME
    scale : "quick", "reduced" or "paper"
    seed : of everything random
    data : data root; None for METASTEP_DATA or the user cache
    jobs : how many at a time, each in a process of its own; 1 runs them here, one after the other
    settle : what such a process does first
    tell : name -> progress callback

    Raises
    ------
    InputError
        Before anything runs: for an unknown name or scale, a negative seed, no jobs, or a folder that cannot
        be written to. What an experiment itself raises is recorded, not raised, and so is the end of its process.
    """
    check_choice("scale", scale, SCALES)
    check_count("seed", seed, minimum=0)
    check_count("jobs", jobs)
    chosen = resolve(names)
    _check_folder(out)
    work = _Work(out, scale, seed, data)
    if jobs == 1 or len(chosen) == 1:
        for name in chosen:
            yield work(name, tell(name))
        return
    for name, record in side_by_side(dataclasses.replace(work, settle=settle), chosen, jobs, tell):
        yield work.died(name, record) if isinstance(record, Died) else record


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is done for each name, here or in another process."""

    out: Path
    scale: Scale
    seed: int
    data: str | Path | None
    settle: Callable[[], None] | None = None

    def __call__(self, name: str, tell: Tell) -> dict[str, Any]:
        if self.settle:
            self.settle()
        return run_experiment(
            experiments.load(name), self.out,
            scale=self.scale, seed=self.seed, data=self.data, tell=tell,
        )  # fmt: skip

    def died(self, name: str, how: Died) -> dict[str, Any]:
        """The record of an experiment whose process did not live to write it. What it kept stays."""
        experiment = experiments.load(name)
        config, scale = experiment.at(self.scale)
        spent = _unfinished(self.out / name / _UNFINISHED, _whose(config, self.seed)) / _SPENT
        return _recorded(
            experiment, self.out, scale, self.seed, self.data, f"failed: {how}", _spent(spent)
        )


def resolve(names: Sequence[str]) -> list[str]:
    """The names asked for, each once; "all" is every name.

    Raises
    ------
    InputError
        For a name that does not exist, or none at all; the message lists those there are.
    """
    known = experiments.names()
    if not names:
        raise InputError(f"no experiment was named; choose from: all, {', '.join(known)}")
    unknown = [name for name in names if name not in (*known, "all")]
    if unknown:
        raise InputError(
            f"there is no experiment {unknown[0]!r}; choose from: all, {', '.join(known)}"
        )
    return list(known) if "all" in names else list(dict.fromkeys(names))


def _check_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_bytes(out / ".writable", b"")
        (out / ".writable").unlink()
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written to ({error.strerror}); choose another folder"
        ) from error


def run_experiment(
    experiment: Experiment,
    out: Path,
    *,
    scale: Scale = "quick",
    seed: int = 0,
    data: str | Path | None = None,
    tell: Tell = Report.tell,
) -> dict[str, Any]:
    """Run one experiment, write OUT/NAME and return its record.

    What was kept of a run that was killed, of the same configuration and seed, is gone on with.

    Returns
    -------
    name, title, paper, seed, command; scale: that of the paper where nothing is reduced;
    status: "finished", "not run: ..." or "failed: ...";
    claims; files, relative to OUT; seconds, by the clock, and cpu_seconds, which other programs on the
    machine do not lengthen; peak_memory_mb, the most the process held meanwhile. All with what a killed run spent.
    """
    folder = out / experiment.name
    _remove_earlier(out, folder)
    config, scale = experiment.at(scale)
    unfinished = _unfinished(folder / _UNFINISHED, _whose(config, seed))
    measured = _Measured(unfinished / _SPENT)

    def told(text: str, done: int, total: int) -> None:
        measured.note()
        tell(text, done, total)

    claims: list[Any] = []
    files: list[Path] = []
    try:
        given = _with_data(experiment, config, data_root(data))
        with jax.enable_x64(experiment.float64), _compiling_for(scale):
            found = to_plain(experiment.run(given, seed, Report(told, unfinished)))
        # As JSON would give them back, so that figure and claims see no more; where the data lay is nobody's concern.
        records = {"config": to_plain(config), **found}
        files = _write(experiment, records, folder)
        claims = experiment.claims(records)
        files.append(_written(folder / "claims.json", claims))
        status = FINISHED
    except DataError as error:
        status = f"not run: {error}"
    except Exception as error:  # one experiment that fails must not end the others
        status = f"failed: {type(error).__name__}: {error}"
        write_bytes(folder / "traceback.txt", traceback.format_exc().encode())
        files.append(folder / "traceback.txt")
    record = _recorded(
        experiment, out, scale, seed, data, status, measured.record(), to_plain(claims), files
    )
    if status == FINISHED or not any(path.is_dir() for path in unfinished.iterdir()):
        shutil.rmtree(unfinished)
    return record


def _recorded(
    experiment: Experiment,
    out: Path,
    scale: Scale,
    seed: int,
    data: str | Path | None,
    status: str,
    spent: dict[str, Any],
    claims: Sequence[Any] = (),
    files: Sequence[Path] = (),
) -> dict[str, Any]:
    """Write the record of an experiment, and return it."""
    record = {
        "name": experiment.name,
        "title": experiment.title,
        "paper": experiment.paper,
        "scale": scale,
        "seed": seed,
        "status": status,
        "claims": list(claims),
        "files": [path.relative_to(out).as_posix() for path in files],
        **spent,
        "command": _command(experiment, out, scale, seed, data),
    }
    write_json(out / experiment.name / RESULT, record)
    return record


def _whose(config: Any, seed: int) -> dict[str, Any]:
    return {"config": to_plain(config), "seed": seed}


def _unfinished(folder: Path, whose: dict[str, Any]) -> Path:
    """The folder of what a killed run goes on from, emptied if that was another run."""
    try:
        same = read_json(folder / _WHOSE) == whose
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _WHOSE, whose)
    return folder


def _with_data(experiment: Experiment, config: Any, root: Path) -> Any:
    """The configuration with the data root that the experiment reads, if it does."""
    if not experiment.needs:
        return config
    if not (root / experiment.needs).is_dir():
        raise DataError(
            f"there is no folder {experiment.needs} in {root}; run `metastep data fetch "
            f"{experiment.needs}` or give --data"
        )
    return dataclasses.replace(config, data=str(root))


@contextlib.contextmanager
def _compiling_for(scale: Scale) -> Iterator[None]:
    """Compile with little optimisation for a quick run: it spends more time compiling than running."""
    flag = "jax_disable_most_optimizations"
    before = jax.config.read(flag)
    jax.config.update(flag, before or scale == "quick")
    try:
        yield
    finally:
        jax.config.update(flag, before)


def _write(experiment: Experiment, records: dict[str, Any], folder: Path) -> list[Path]:
    written = [_written(folder / "records.json", records)]
    written += save_figure(experiment.plot(records), folder / "figure.png")
    for name, text in tables(records):
        write_bytes(folder / f"{name}.csv", text.encode())
        written.append(folder / f"{name}.csv")
    return written


def _written(path: Path, record: Any) -> Path:
    write_json(path, record)
    return path


def _remove_earlier(out: Path, folder: Path) -> None:
    """Delete what an earlier run listed as its own, so that its files do not pass for new ones."""
    try:
        listed = [out / name for name in read_json(folder / RESULT)["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for path in listed:
        if path.parent == folder:
            path.unlink(missing_ok=True)


def tables(records: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, CSV text) of every entry that is a table: equally long columns, or rows, of numbers and text."""
    for name, entry in records.items():
        rows = entry
        if isinstance(entry, dict) and all(isinstance(one, list) for one in entry.values()):
            if len({len(column) for column in entry.values()}) != 1:
                continue
            rows = [dict(zip(entry, row, strict=True)) for row in zip(*entry.values(), strict=True)]
        if _is_table(rows):
            yield name, _csv(rows)


def _is_table(rows: Any) -> bool:
    if not isinstance(rows, list) or len(rows) < 2:
        return False
    return all(
        isinstance(row, dict)
        and row.keys() == rows[0].keys()
        and not any(isinstance(value, (list, dict)) for value in row.values())
        for row in rows
    )


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _command(
    experiment: Experiment, out: Path, scale: Scale, seed: int, data: str | Path | None
) -> str:
    words = ["metastep", "reproduce", experiment.name, "--scale", scale, "--seed", str(seed)]
    words += ["--data", str(data)] if data and experiment.needs else []
    return shlex.join([*words, "--out", str(out)])


class _Measured:
    """Wall time and peak memory from here on, and of the killed run that this one goes on from, noted in a file.

    Linux can reset its high-water mark of memory, others cannot.
    """

    def __init__(self, file: Path) -> None:
        jax.clear_caches()  # so that neither figure depends on what ran before
        gc.collect()
        with contextlib.suppress(OSError):  # elsewhere the mark covers the whole process so far
            Path("/proc/self/clear_refs").write_text("5")
        self._file, self._before = file, _spent(file)
        self._began, self._busy = time.perf_counter(), time.process_time()
        self._noted = self._began

    def note(self) -> None:
        """Write down what was spent so far, if the last time was a while ago."""
        if time.perf_counter() - self._noted >= _SPENT_SECONDS:
            write_json(self._file, self.record())
            self._noted = time.perf_counter()

    def record(self) -> dict[str, float | None]:
        before, memory = self._before, _peak_memory_mb()
        seconds, busy = time.perf_counter() - self._began, time.process_time() - self._busy
        return {
            "seconds": round(seconds + before["seconds"], 2),
            "cpu_seconds": round(busy + before["cpu_seconds"], 2),
            "peak_memory_mb": memory and max(memory, before["peak_memory_mb"] or 0.0),
        }


def _spent(file: Path) -> dict[str, Any]:
    """What a run noted before it was killed; nothing if it noted nothing."""
    try:
        return read_json(file)
    except (OSError, ValueError):
        return {"seconds": 0.0, "cpu_seconds": 0.0, "peak_memory_mb": None}


def _peak_memory_mb() -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return round(int(peak.split()[1]) * 1024 / 1e6, 1)
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
