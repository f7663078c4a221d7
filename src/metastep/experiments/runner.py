"""Run experiments: those that are named, one after the other or side by side."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from metastep import experiments
from metastep._errors import InputError, check_choice, check_count
from metastep._records import write_bytes
from metastep.experiments.core import SCALES, Report, Scale, Tell
from metastep.experiments.run_one import record_of_dead, run_experiment
from metastep.experiments.side_by_side import Died, side_by_side


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
    jobs : how many at a time, each in a process of its own, so that its memory is its own too; one alone runs here
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
    if len(chosen) == 1:
        yield work(chosen[0], tell(chosen[0]))
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
        return record_of_dead(
            experiments.load(name), self.out, how, scale=self.scale, seed=self.seed, data=self.data
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
