"""Run one experiment and write what it found: figure, records, tables, claims, and what it cost."""

import contextlib
import csv
import dataclasses
import io
import shlex
import shutil
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from metastep._errors import DataError
from metastep._records import read_json, to_plain, write_bytes, write_json
from metastep.datasets.paths import data_root
from metastep.experiments.core import Experiment, Report, Scale, Tell
from metastep.experiments.spent import Measured, spent
from metastep.report.style import save_figure

FINISHED = "finished"
RESULT = "result.json"
_UNFINISHED, _WHOSE, _SPENT = "unfinished", "run.json", "spent.json"


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
    measured = Measured(unfinished / _SPENT)

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


def record_of_dead(
    experiment: Experiment,
    out: Path,
    how: object,
    *,
    scale: Scale,
    seed: int,
    data: str | Path | None,
) -> dict[str, Any]:
    """The record of an experiment whose process did not live to write it, and of how it ended. What it kept stays."""
    config, scale = experiment.at(scale)
    unfinished = _unfinished(out / experiment.name / _UNFINISHED, _whose(config, seed))
    cost = spent(unfinished / _SPENT)
    return _recorded(experiment, out, scale, seed, data, f"failed: {how}", cost)


def _recorded(
    experiment: Experiment,
    out: Path,
    scale: Scale,
    seed: int,
    data: str | Path | None,
    status: str,
    cost: dict[str, Any],
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
        **cost,
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
