"""Figures of numbers against numbers: the alpha curve, learning curves, and plain line figures.

Every function takes records (plain dicts, None where a value was not finite) and returns a
matplotlib `Figure`. No text of a record is drawn, so no name can reach the mathtext parser.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)

from metastep._errors import InputError
from metastep._records import to_plain
from metastep.report import style
from metastep.report._format import as_number

DECADES = 30.0  # a positive series that spans more than this factor is drawn on a log scale


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a figure, with an optional half-width of its error band at each point.

    Attributes
    ----------
    label : text of the legend
    x, y : (points,) finite numbers; NaN leaves a gap
    width : (points,) half-widths of the 95 % band, or None
    color, line, marker : matplotlib's names; color None takes the next of the palette
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    width: Sequence[float] | None = None
    color: str | None = None
    line: str = "-"
    marker: str = ""


def line_figure(
    series: Iterable[Series],
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    title: str = "",
) -> Figure:
    """All series on one panel with the legend below: the ground every other figure stands on."""
    figure, (axes,) = style.new_figure()
    draw(axes, series, x_label, y_label, log_x, log_y, title)
    style.legend_below(figure)
    return figure


@style.styled
def draw(
    axes: Axes,
    series: Iterable[Series],
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    title: str = "",
) -> None:
    """Draw the series on existing axes, for figures of several panels."""
    for index, one in enumerate(series):
        _draw_one(axes, one, one.color or style.PALETTE[index % len(style.PALETTE)])
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    for name, is_log in (("x", log_x), ("y", log_y)):
        if is_log:
            _log_axis(axes, name)


def _draw_one(axes: Axes, one: Series, color: str) -> None:
    x, y = np.asarray(one.x, float), np.asarray(one.y, float)
    # A line through a single finite point would be invisible.
    marker = one.marker or ("o" if np.isfinite(y).sum() == 1 else "")
    axes.plot(x, y, one.line, marker=marker, color=color, label=one.label, gid=_gid(one.label))
    if one.width is not None:
        width = np.nan_to_num(np.asarray(one.width, float))
        axes.fill_between(x, y - width, y + width, color=color, alpha=0.18, linewidth=0)


def _gid(label: str) -> str:
    """An SVG id from a label, so that a reader of the file (or a test) finds the series."""
    return "series-" + "-".join(
        "".join(c if c.isalnum() and c.isascii() else " " for c in label).split()
    )


def _log_axis(axes: Axes, name: str) -> None:
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    # Less than three decades hold too few powers of ten to read a value off.
    steps = (1.0,) if high / low > 1000 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def spans_decades(*values: Iterable[float]) -> bool:
    """Whether the finite values are all positive and spread over more than a factor of DECADES."""
    everything = np.concatenate([np.asarray(list(one), float) for one in values])
    finite = everything[np.isfinite(everything)]
    return bool(finite.size and finite.min() > 0 and finite.max() > DECADES * finite.min())


def column(rows: Iterable[dict[str, Any]], key: str) -> list[float]:
    """One column of the metric rows; a missing or non-finite value is NaN."""
    return [as_number(row.get(key)) for row in rows]


def _columns(
    rows: Sequence[dict[str, Any]], keys: Iterable[tuple[str, str, str, str]]
) -> list[Series]:
    """The columns (key, label, color, line) that hold a finite value, against the iteration."""
    x = column(rows, "iteration")
    candidates = [
        Series(label, x, column(rows, key), color=color, line=line)
        for key, label, color, line in keys
    ]
    return [one for one in candidates if any(map(math.isfinite, one.y))]


def learning_figure(
    rows: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]] = (),
    best: dict[str, Any] | None = None,
    quantity: str = "loss",
) -> Figure:
    """Loss or accuracy before and after adaptation against the outer iteration.

    Parameters
    ----------
    rows : rows of metrics.jsonl with `iteration`, `loss`, `loss_before`, `accuracy`,
        `accuracy_before`
    validation : rows with `iteration` and the same quantities on validation tasks
    best : `iteration` and `loss` of the best checkpoint, marked on the curve; None marks nothing
    quantity : "loss" or "accuracy"

    Raises
    ------
    InputError
        When no row holds a finite value of `quantity`.
    """
    series = _columns(
        rows,
        [
            (f"{quantity}_before", "training tasks, before adaptation", style.BEFORE, "-"),
            (quantity, "training tasks, after adaptation", style.AFTER, "-"),
        ],
    ) + _columns(
        validation,
        [
            (f"{quantity}_before", "validation, before", style.BEFORE, "--"),
            (quantity, "validation, after", style.VALIDATION, "--"),
        ],
    )
    if not series:
        raise InputError(f"no metric row holds a finite {quantity}, so there is nothing to draw")
    log_y = quantity == "loss" and spans_decades(*(one.y for one in series))
    figure, (axes,) = style.new_figure()
    draw(axes, series, "outer iteration", f"query {quantity}", log_y=log_y)
    if quantity == "accuracy":
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    _mark_best(axes, series, best or {})
    _mark_divergence(axes, rows, quantity)
    style.legend_below(figure)
    return figure


@style.styled
def _mark_best(axes: Axes, series: Sequence[Series], best: dict[str, Any]) -> None:
    """A star on the curve the checkpoint was chosen by: validation where there is one."""
    x = as_number(best.get("iteration"))
    chosen = {one.label: one for one in series}
    curve = chosen.get("validation, after") or chosen.get("training tasks, after adaptation")
    if curve is None or not math.isfinite(x):
        return
    nearest = int(np.argmin(np.abs(np.asarray(curve.x, float) - x)))
    axes.plot(
        [x],
        [curve.y[nearest]],
        "*",
        color=style.ORANGE,
        markeredgecolor="black",
        markersize=14,
        label="best checkpoint",
        gid="best-checkpoint",
        zorder=5,
    )


@style.styled
def _mark_divergence(axes: Axes, rows: Sequence[dict[str, Any]], quantity: str) -> None:
    """A vertical line where the training loss first stopped being finite."""
    for row in rows:
        if quantity in row and not math.isfinite(as_number(row[quantity])):
            axes.axvline(
                as_number(row["iteration"]),
                color=style.VERMILLION,
                linestyle=":",
                label=f"{quantity} not finite from here",
                gid="not-finite",
            )
            return


def rate_figure(rows: Sequence[dict[str, Any]]) -> Figure | None:
    """Alpha against the outer iteration, or None when it did not change (or was not logged)."""
    rates = [rate for rate in column(rows, "alpha") if math.isfinite(rate)]
    if not rates or max(rates) - min(rates) <= 1e-9 * max(map(abs, rates)):
        return None
    series = _columns(rows, [("alpha", "adaptation rate α", style.AFTER, "-")])
    return line_figure(series, "outer iteration", "adaptation rate α", log_y=spans_decades(rates))


def steps_figure(curve: Sequence[dict[str, Any]], quantity: str = "loss") -> Figure:
    """Loss or accuracy on held-out tasks against the number of inner steps, with 95 % intervals.

    Raises
    ------
    InputError
        When no point of the curve holds a finite value of `quantity`.
    """
    points = [point for point in curve if math.isfinite(as_number(point.get(quantity)))]
    if not points:
        raise InputError(f"the evaluation holds no finite {quantity}, so there is nothing to draw")
    means = [as_number(point[quantity]) for point in points]
    widths = [_half_width(point[quantity]) for point in points]
    one = Series(
        f"held-out tasks, mean {quantity} and 95 % interval",
        column(points, "steps"),
        means,
        widths,
        color=style.AFTER,
        marker="o",
    )
    log_y = quantity == "loss" and spans_decades(means)
    figure = line_figure([one], "inner steps", f"query {quantity}", log_y=log_y)
    axes = figure.axes[0]
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if quantity == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    return figure


def _half_width(estimate: Any) -> float:
    return as_number(estimate.get("ci95")) if isinstance(estimate, dict) else math.nan


def alpha_figure(rates: dict[str, Any]) -> Figure:
    """The measured loss after one step over alpha, its quadratic prediction, and the best rates.

    Parameters
    ----------
    rates : a rates record with `curve` = {`alpha`, `measured`, `ci95`, `predicted`} and, where
        known, `alpha_chosen`, `alpha`, `alpha_interval`, `label_free_alpha` and
        `label_free_interval`

    Raises
    ------
    InputError
        When the record holds no curve, or a curve whose columns differ in length.
    """
    x, measured, width, predicted = _curve_columns(rates.get("curve"))
    figure, (axes,) = style.new_figure()
    log_x = spans_decades(x)
    draw(
        axes,
        [
            Series("measured, 95 % interval", x, measured, width, style.AFTER, marker="o"),
            Series("quadratic prediction", x, predicted, None, style.PREDICTED, "--"),
        ],
        "adaptation rate α",
        "query loss after one step",
        log_x=log_x,
    )
    axes.set_ylim(_loss_limits(measured, predicted))
    _mark_rates(axes, rates)
    style.legend_below(figure)
    return figure


def _curve_columns(curve: Any) -> list[list[float]]:
    curve = to_plain(curve)  # arrays become lists, as they are in the files
    if not isinstance(curve, dict) or not curve.get("alpha"):
        raise InputError("the rates record holds no curve over alpha, so there is nothing to draw")
    length = len(curve["alpha"])
    columns = []
    for key in ("alpha", "measured", "ci95", "predicted"):
        values = curve.get(key) or [None] * length
        if len(values) != length:
            raise InputError(
                f"curve of the rates record: {key} has {len(values)} values, alpha has {length}"
            )
        columns.append([as_number(value) for value in values])
    return columns


def _loss_limits(measured: Sequence[float], predicted: Sequence[float]) -> tuple[float, float]:
    """Limits that show the minimum: a rate far too large costs so much that it would hide it."""
    values = np.array([*measured, *predicted])
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    start = next((value for value in measured if math.isfinite(value)), finite.max())
    low, high = float(finite.min()), float(finite.max())
    depth = max(start - low, 0.1 * abs(start), 1e-12)
    high = min(high, start + depth)
    pad = 0.06 * max(high - low, depth)
    return low - pad, high + pad


@style.styled
def _mark_rates(axes: Axes, rates: dict[str, Any]) -> None:
    """Vertical lines at the rates, drawn over bands of their intervals."""
    chosen, best = as_number(rates.get("alpha_chosen")), as_number(rates.get("alpha"))
    is_same = math.isclose(chosen, best, rel_tol=1e-3)
    marks = [
        ("label_free", rates.get("label_free_interval"), "label-free α", style.GREEN, ":"),
        (
            "alpha",
            rates.get("alpha_interval"),
            "best α, used" if is_same else "best α",
            style.VERMILLION,
            "-",
        ),
    ]
    for key, bounds, label, color, line in marks:
        value = as_number(rates.get(f"{key}_alpha" if key == "label_free" else key))
        _mark_rate(axes, value, bounds, label, color, line)
    if not is_same:
        _mark_rate(axes, chosen, None, "α used", style.BLACK, "-.")


def _mark_rate(axes: Axes, value: float, bounds: Any, label: str, color: str, line: str) -> None:
    if not math.isfinite(value):
        return
    axes.axvline(value, color=color, linestyle=line, label=label, gid=_gid(label))
    low, high = (as_number(bound) for bound in bounds or (None, None))
    if math.isfinite(low) and math.isfinite(high):
        axes.axvspan(low, high, color=color, alpha=0.12, linewidth=0)
