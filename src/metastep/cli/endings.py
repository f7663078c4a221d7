"""What a verb prints and writes at its end. Drawing is loaded only then: a verb begins a second sooner without it."""

import json
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from metastep._records import to_plain


def show(
    record: dict[str, Any], kind: Literal["rates", "evaluation", "info"], *, as_json: bool
) -> None:
    """Print a record as a table of its kind, or as one JSON object."""
    if as_json:
        print(json.dumps(to_plain(record), allow_nan=False))
        return
    from metastep.report import tables

    draw = {
        "rates": tables.rates_table,
        "evaluation": tables.evaluation_table,
        "info": tables.info_table,
    }[kind]
    Console(highlight=False).print(draw(record))


def write_report(folder: Path) -> Path:
    """Write or renew report.html of a run."""
    from metastep.report import write_report

    return write_report(folder)
