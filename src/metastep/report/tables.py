"""Terminal tables of records. Values are plain text: rich markup inside a name stays as typed."""

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from metastep.report.rows import (
    curve_rows,
    evaluation_protocol,
    evaluation_rows,
    info_rows,
    rates_rows,
    stationarity_rows,
)

_VERDICT_STYLE = {"holds": "green", "fails": "red", "false": "red", "partly": "yellow"}


def rates_table(record: dict[str, Any]) -> RenderableType:
    """The rates, their 95 % intervals and reasons, followed by any warnings.

    Parameters
    ----------
    record : a rates record, as written to rates.json
    """
    table = _table("", "value", "95 % interval")
    lines: list[RenderableType] = []
    for row in rates_rows(record):
        _add(table, row.label, row.value, row.interval)
        if row.note:
            lines.append(_labelled(row.label, row.note))
    lines += [_labelled("note", str(text)) for text in record.get("notes") or []]
    lines += [_labelled("warning", str(text), "yellow") for text in record.get("warnings") or []]
    return Group(table, *lines)


def evaluation_table(record: dict[str, Any]) -> RenderableType:
    """Query loss and accuracy on held-out tasks, before and after adaptation, mean ± half-width.

    Parameters
    ----------
    record : an evaluation record, as written to evaluation.json
    """
    table = _table("query", "before adaptation", "after adaptation")
    for row in evaluation_rows(record):
        _add(table, row.label, row.before, row.after)
    parts: list[RenderableType] = [table]
    points = curve_rows(record)
    if points:
        headings = ["inner steps", "loss", "accuracy"] if points[0][2] else ["inner steps", "loss"]
        curve = _table(*headings)
        for cells in points:
            _add(curve, *cells[: len(headings)])
        parts.append(curve)
    parts += _stationarity(record)
    protocol = evaluation_protocol(record)
    return Group(*parts, Text(protocol, style="dim")) if protocol else Group(*parts)


def _stationarity(record: dict[str, Any]) -> list[RenderableType]:
    rows = stationarity_rows(record)
    if not rows:
        return []
    table = _table("stationarity", "value", "95 % interval")
    for row in rows:
        if row.value:
            _add(table, row.label, row.value, row.interval)
    return [Text(""), table, *(_labelled(row.label, row.note) for row in rows if row.note)]


def info_table(record: dict[str, Any]) -> Table:
    """Any record as two columns, nested keys joined by dots."""
    table = _table("", "value")
    for label, value in info_rows(record):
        _add(table, label, value)
    return table


def claims_table(claims: Iterable[dict[str, Any]]) -> Table:
    """The claims of a paper, whether each holds, and the evidence.

    Parameters
    ----------
    claims : records with `text`, `verdict` and `evidence`
    """
    table = _table("claim", "verdict", "evidence")
    for claim in claims:
        verdict = str(claim.get("verdict", ""))
        words = verdict.lower().split() or [""]
        color = _VERDICT_STYLE.get(words[0].strip(":,;."), "")
        table.add_row(
            Text(str(claim.get("text", ""))),
            Text(verdict, style=color),
            Text(str(claim.get("evidence", ""))),
        )
    return table


def _table(*headings: str) -> Table:
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(Text, cells))


def _labelled(label: str, text: str, style: str = "dim") -> Text:
    return Text.assemble((f"{label}: ", "bold"), (text, style))
