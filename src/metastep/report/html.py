"""A run folder to one self-contained report.html: no scripts, no other files, same bytes."""

import base64
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from metastep._errors import InputError
from metastep._records import write_bytes
from metastep.report import figures, style, summary
from metastep.report._format import command_line, number
from metastep.report.folder import Run, read_run
from metastep.report.pictures import example_figures
from metastep.report.rows import (
    curve_rows,
    evaluation_protocol,
    evaluation_rows,
    info_rows,
    rates_rows,
)

REPORT = "report.html"

_CAPTIONS = {
    "curves": "Each panel is one held-out task: the true function (wide grey), the prediction "
    "before (dashed) and after (blue) adaptation to the support points (red).",
    "images": "Each panel is one held-out task. Columns are classes, headed by one of their "
    "support images; rows are query images. A cell is the probability of that class in per "
    "cent, framed where it is the true one.",
    "scatter": "Each panel is one held-out task: predicted against true query values before "
    "(crosses) and after (dots) adaptation.",
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure as an image that needs no other file, and the words for who cannot see it."""

    source: str
    text: str
    width: int


def write_report(run: Path) -> Path:
    """Draw `run`/report.html from whatever the run folder holds, and return its path.

    A run that was interrupted, diverged or never evaluated still gets its report, which says so.

    Parameters
    ----------
    run : folder with config.json, rates.json, metrics.jsonl, status.json, evaluation.json and
        examples.npz, any of which may be missing

    Raises
    ------
    InputError
        When `run` is not a folder, or holds none of these files.
    """
    text = render_report(read_run(run))
    write_bytes(run / REPORT, text.encode())
    return run / REPORT


def render_report(run: Run) -> str:
    """The report as HTML text; every value of the run is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("metastep.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(**_context(run))


def _context(run: Run) -> dict[str, Any]:
    """All the template shows, as text, rows and pictures."""
    status, ending = summary.how_it_ended(run)
    return {
        "title": summary.task_name(run),
        "sentence": summary.sentence(run),
        "status": status,
        "ending": ending,
        "notes": run.notes,
        "version": str(run.config.get("metastep", "")),
        "rates": rates_rows(run.rates),
        "remarks": [
            str(text) for name in ("notes", "warnings") for text in run.rates.get(name) or []
        ],
        "alpha_picture": _alpha_picture(run),
        "rows": len(run.rows) + len(run.validation),
        "learning": list(_learning_pictures(run)),
        "best": _best(run),
        "decisions": [str(decision.get("text", "")) for decision in run.decisions],
        "incidents": [str(incident.get("text", "")) for incident in run.incidents],
        "left_out": sum(row.get("left_out", 0) for row in run.rows),
        "examples": _example_pictures(run),
        "examples_kind": run.examples["kind"] if run.examples else "",
        "examples_caption": _CAPTIONS[run.examples["kind"]] if run.examples else "",
        "evaluation": evaluation_rows(run.evaluation),
        "protocol": evaluation_protocol(run.evaluation),
        "curve": curve_rows(run.evaluation),
        "steps": list(_steps_pictures(run)),
        "configuration": list(info_rows(_options(run.config))),
        "command": command_line(run.config.get("command")),
    }


def _options(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "command"}


def picture(figure: Figure, text: str) -> Picture:
    """A figure as a data URI, with its alternative text and its width in CSS pixels."""
    encoded = base64.b64encode(style.render(figure, "svg")).decode()
    width = round(96 * figure.get_size_inches()[0])
    return Picture(f"data:image/svg+xml;base64,{encoded}", text, width)


def _alpha_picture(run: Run) -> Picture | None:
    try:
        figure = figures.alpha_figure(run.rates)
    except InputError:
        return None
    rates = (
        f"best rate {number(run.rates.get('alpha'))}, used {number(run.rates.get('alpha_chosen'))}"
    )
    return picture(figure, f"Query loss after one step against the adaptation rate: {rates}")


def _learning_pictures(run: Run) -> Iterator[Picture]:
    best = run.status.get("best")
    for quantity in ("loss", "accuracy"):
        try:
            figure = figures.learning_figure(
                run.rows, run.validation, best if isinstance(best, dict) else None, quantity
            )
        except InputError:
            continue
        yield picture(
            figure, f"{quantity.capitalize()} before and after adaptation against the iteration"
        )
    rate = figures.rate_figure(run.rows)
    if rate is not None:
        yield picture(rate, "Adaptation rate against the iteration")
    edge = figures.edge_figure(run.rows, run.edges)
    if edge is not None:
        yield picture(edge, "Meta rate and the largest stable one against the iteration")


def _best(run: Run) -> str:
    best = run.status.get("best")
    if not isinstance(best, dict) or best.get("iteration") is None:
        return ""
    return f"Best checkpoint: iteration {best['iteration']}, validation loss {number(best.get('loss'))}."


def _example_pictures(run: Run) -> list[Picture]:
    if run.examples is None:
        return []
    drawn = enumerate(example_figures(run.examples), start=1)
    return [picture(figure, f"Task {index} before and after adaptation") for index, figure in drawn]


def _steps_pictures(run: Run) -> Iterator[Picture]:
    curve = run.evaluation.get("curve") or []
    if not curve_rows(run.evaluation):
        return
    for quantity in ("loss", "accuracy"):
        try:
            figure = figures.steps_figure(curve, quantity)
        except InputError:
            continue
        yield picture(
            figure, f"Query {quantity} on held-out tasks against the number of inner steps"
        )
