"""`metastep reproduce`: run experiments, show their claims, write the gallery."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metastep import experiments
from metastep._records import to_plain
from metastep.cli.progress import Tell, console_of_results, counting, error_console
from metastep.report.gallery import verdict_counts, write_gallery

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]

_VERDICT_STYLES = {
    "holds": "green",
    "holds with a condition": "yellow",
    "does not hold": "bold red",
    "not tested": "dim",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Reproduce figures and tables of the papers, and test each claim made about them.

    Example: metastep reproduce zou-fig8 takagi-linear --out reproduced

    Every experiment writes OUT/NAME with figure.png, figure.svg, records.json, its series as .csv and
    claims.json; OUT/gallery.html shows all of them. The long ones are saved once a minute: the same command goes on
    where it was stopped. Exit status 1: an experiment failed.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Experiments, or all; see --list."""
    out: Path = Path("reproduced")
    """Folder to write to."""
    scale: Literal["quick", "reduced", "paper"] = "quick"
    """quick: seconds each; paper: the papers' own sizes, up to a day; reduced: those, cut where over two hours."""
    data: Path | None = None
    """Data root that holds omniglot/. Default: METASTEP_DATA, else the user cache directory."""
    seed: int = 0
    """Seed of everything random."""
    jobs: int | None = None
    """Experiments at a time, each in a process of its own. Default: as many as cores at the quick scale, else 1, as
    memory adds up."""
    list: Flag = False
    """List the experiments and stop."""
    json: Flag = False
    """Print one JSON object instead of tables."""


def reproduce(arguments: list[str]) -> None:
    """`metastep reproduce NAME ... | all`."""
    options = tyro.cli(ReproduceOptions, prog="metastep reproduce", args=arguments)
    if options.list:
        _show_list(options.json)
        return
    from metastep.cli.process import settle_process

    settle_process()
    console, records = error_console(), {}
    results = console_of_results(console)
    for record in _run(options, console):
        records[record["name"]] = record
        if not options.json:
            results.print(claims_table(record))
    gallery = write_gallery(options.out)
    console.print(f"gallery: {gallery}", soft_wrap=True)
    if options.json:
        print(json.dumps(to_plain(records), allow_nan=False))
    failed = [name for name, record in records.items() if record["status"].startswith("failed")]
    if failed:
        print(f"metastep: failed: {', '.join(failed)}; see their traceback.txt", file=sys.stderr)
        sys.exit(1)


def _run(options: ReproduceOptions, console: Console) -> Iterator[dict[str, Any]]:
    """Run and say on stderr what is going on and what came of it."""
    from metastep.cli.process import settle_process
    from metastep.experiments.runner import run_experiments

    with counting(console) as shown:

        def tell(name: str) -> Tell:
            told = shown.of(name)
            told("starting", 0, 1)
            return told

        for record in run_experiments(
            options.names,
            options.out,
            scale=options.scale,
            seed=options.seed,
            data=options.data,
            jobs=_jobs(options),
            settle=settle_process,
            tell=tell,
        ):
            shown.end(record["name"])
            console.print(Text(_line(record)), soft_wrap=True)
            yield record


def _jobs(options: ReproduceOptions) -> int:
    if options.jobs is not None:
        return options.jobs
    if options.scale != "quick":
        return 1
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _line(record: dict[str, Any]) -> str:
    """zou-fig8  finished  3.2 s  412 MB  4 holds, 1 does not hold."""
    memory = record["peak_memory_mb"]
    parts = [f"{record['name']:<20}", record["status"], f"{record['seconds']:.1f} s"]
    parts += [f"{memory:.0f} MB"] if memory is not None else []
    counts = verdict_counts(record["claims"]).items()
    parts.append(", ".join(f"{count} {verdict}" for verdict, count in counts if count))
    return "  ".join(part for part in parts if part)


def claims_table(record: dict[str, Any]) -> Table:
    """The claims of one experiment, their verdicts and the evidence."""
    title = Text(f"{record['name']}: {record['title']}", style="bold")
    table = Table(
        title=title, title_justify="left", show_edge=False, pad_edge=False, show_lines=True
    )
    for heading in ("claim", "verdict", "evidence"):
        table.add_column(heading, overflow="fold")
    for claim in record["claims"]:
        table.add_row(
            Text(claim["text"]),
            Text(claim["verdict"], style=_VERDICT_STYLES[claim["verdict"]]),
            Text(claim["evidence"]),
        )
    return table


def _show_list(as_json: bool) -> None:
    found = experiments.summaries()
    if as_json:
        print(json.dumps(to_plain(found)))
        return
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("name", "shows", "paper", "needs"):
        table.add_column(heading, overflow="fold")
    for one in found:
        table.add_row(*map(Text, (one.name, one.title, one.paper, one.needs)))
    Console(highlight=False).print(table)
