"""Records as rows of text: what the terminal tables and the HTML report both show."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from metastep.report._format import (
    count,
    estimate,
    interval,
    number,
    percent,
    plain,
    plural,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A label, its value, the 95 % interval where there is one, and why the value is what it is."""

    label: str
    value: str
    interval: str = ""
    note: str = ""


def rates_rows(record: dict[str, Any]) -> list[Row]:
    """The rates used, what they were chosen from and what they promise; absent keys give no row."""
    rows = [
        _rate(record, "alpha_chosen", "α used", note="alpha_reason"),
        _rate(record, "alpha", "α of least query loss", bounds="alpha_interval"),
        _rate(record, "support_alpha", "α of least support loss", bounds="support_interval"),
        _rate(record, "label_free_alpha", "α without labels", bounds="label_free_interval"),
        _rate(record, "alpha_max", "largest stable α", note="alpha_max_reason"),
        _word(record, "rate", "α in training", note="rate_reason"),
        _rate(record, "meta_lr", "meta rate used", note="meta_lr_reason"),
        _word(record, "schedule", "course of the meta rate"),
        _word(record, "optimizer", "outer optimiser"),
        _word(record, "derivative", "derivative of inner steps", note="memory_reason"),
        _rate(record, "beta_max", "largest stable β, for SGD", note="beta_max_reason"),
        _gain(record, "predicted_gain", "predicted gain of one step"),
        _gain(
            record,
            "label_free_gain",
            "gain predicted without labels",
            "holds if task optima are isotropic and labels exact, as (H.6) assumes; optimistic otherwise",
        ),
    ]
    if "num_tasks" in record:
        rows.append(Row("tasks measured on", count(record["num_tasks"])))
    if record.get("rehearsals"):
        rows.append(_rehearsal_row(record["rehearsals"]))
    if record.get("map"):
        rows.append(_map_row(record["map"]))
    return [row for row in rows if row is not None]


def _rehearsal_row(rehearsals: list[dict[str, Any]]) -> Row:
    """How each rate that was rehearsed did."""
    tried = "; ".join(
        f"{number(row.get('alpha'))}: {number(row.get('loss'))}" for row in rehearsals
    )
    return Row(
        "α: loss in short trainings",
        tried,
        note="in the order of trying; what is clearly better is used",
    )


def _map_row(found: dict[str, Any]) -> Row:
    """How much of the (alpha, beta) plane trains, and where its picture is."""
    cells = found["cells"][0] * found["cells"][1]
    return Row(
        "pairs of rates that train",
        f"{found['trained_cells']} of {cells}",
        note=f"after {plural(found['iterations'], 'meta-step')} by {found['optimizer']}; drawn in "
        f"{found['files'][0]}",
    )


def _rate(
    record: dict[str, Any], key: str, label: str, bounds: str = "", note: str = ""
) -> Row | None:
    value, reason = record.get(key), record.get(note) or ""
    if value is None and not reason:
        return None
    return Row(label, number(value), interval(record.get(bounds)), str(reason))


def _word(record: dict[str, Any], key: str, label: str, note: str = "") -> Row | None:
    if record.get(key) is None:
        return None
    return Row(label, str(record[key]), note=str(record.get(note) or ""))


def _gain(record: dict[str, Any], key: str, label: str, note: str = "") -> Row | None:
    if record.get(key) is None:
        return None
    return Row(label, f"{percent(record[key])} of the query loss", note=note)


@dataclasses.dataclass(frozen=True)
class EvaluationRow:
    """One quantity on held-out tasks, before and after adaptation, as mean and 95 % half-width."""

    label: str
    before: str
    after: str


def evaluation_rows(record: dict[str, Any]) -> list[EvaluationRow]:
    """Loss and, for classification, accuracy; `not measured` where the record holds no value."""
    before = record.get("before") or {}
    return [
        EvaluationRow(key, _estimate(before.get(key), key), _estimate(record.get(key), key))
        for key in ("loss", "accuracy")
        if record.get(key) is not None or before.get(key) is not None
    ]


def curve_rows(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Steps, loss and accuracy (empty for regression) for each number of inner steps evaluated.

    Two points are what `evaluation_rows` shows already, and give no rows.
    """
    curve = record.get("curve") or []
    if len(curve) < 3:
        return []
    return [
        (
            plain(point.get("steps")),
            _estimate(point.get("loss"), "loss"),
            _estimate(point["accuracy"], "accuracy") if point.get("accuracy") is not None else "",
        )
        for point in curve
    ]


def _estimate(value: Any, quantity: str) -> str:
    if value is None:
        return "not measured"
    return estimate(value, as_percent=quantity == "accuracy")


def evaluation_protocol(record: dict[str, Any]) -> str:
    """How the numbers were obtained, in one line."""
    parts = []
    if "num_tasks" in record:
        parts.append(f"{count(record['num_tasks'])} {record.get('split', 'held-out')} tasks")
    if "steps" in record:
        parts.append(plural(record["steps"], "inner step"))
    if "seed" in record:
        parts.append(f"seed {plain(record['seed'])}")
    if "transductive" in record:
        parts.append(
            "query examples judged together (transductive if the model has batch norm)"
            if record["transductive"]
            else "query examples judged one by one"
        )
    if record.get("halved"):
        parts.append(_halved(record))
    return ", ".join(parts)


def _halved(record: dict[str, Any]) -> str:
    """How many tasks the rate was too high for."""
    text = f"{plural(record['halved'], 'task')} adapted at a lower rate, as the support loss would have risen"
    unadapted = record.get("unadapted")
    return (
        f"{text} ({count(unadapted)} not at all, as it rose at every rate)" if unadapted else text
    )


def stationarity_rows(record: dict[str, Any]) -> list[Row]:
    """The norm of the meta-gradient, where it began, and what theory promises; absent values give no row."""
    found = record.get("stationarity") or {}
    rows = [
        _rate(found, "norm", "gradient norm |∇F|", bounds="interval"),
        _rate(found, "initial_norm", "the same before training", bounds="initial_interval"),
        _rate(found, "floor", "norm below which theory promises nothing"),
        _rate(found, "iteration_bound", "meta-steps to there, by theory"),
        _rate(found, "bias_bound", "part hidden by finite support sets, at most"),
    ]
    if found:
        tasks = f"{count(found.get('num_tasks'))} {found.get('split', 'train')} tasks"
        rows.append(Row("measured on", tasks))
        rows.append(Row("theory", "", note=str(found.get("reason", ""))))
    return [row for row in rows if row is not None]


def info_rows(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A nested record as (dotted key, text) pairs, in its own order."""
    for key, value in record.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from info_rows(value, f"{name}.")
        else:
            yield name, plain(value)
