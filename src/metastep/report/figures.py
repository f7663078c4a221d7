"""Figures of a run: the alpha curve, learning curves, and the evaluation over inner steps.

Every function takes records (plain dicts, None where a value was not finite) and returns a
matplotlib `Figure`. No text of a record is drawn, so no name can reach the mathtext parser.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from metastep._errors import InputError
from metastep._records import to_plain
from metastep.report import style
from metastep.report._format import as_number
from metastep.report.lines import Series, draw, draw_star, line_figure, series_id, spans_decades

__all__ = [
    "Series",
    "alpha_figure",
    "column",
    "draw",
    "edge_figure",
    "learning_figure",
    "line_figure",
    "rate_figure",
    "spans_decades",
    "steps_figure",
]


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
    draw(axes, series, "outer iteration", quantity, log_y=log_y)
    if quantity == "accuracy":
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    _mark_best(axes, series, best or {})
    _mark_divergence(axes, rows, quantity)
    style.legend_below(figure)
    return figure


def _mark_best(axes: Axes, series: Sequence[Series], best: dict[str, Any]) -> None:
    """A star on the curve the checkpoint was chosen by: validation where there is one."""
    x = as_number(best.get("iteration"))
    chosen = {one.label: one for one in series}
    curve = chosen.get("validation, after") or chosen.get("training tasks, after adaptation")
    if curve is None or not math.isfinite(x):
        return
    nearest = int(np.argmin(np.abs(np.asarray(curve.x, float) - x)))
    draw_star(axes, x, curve.y[nearest], label="best checkpoint", gid="best-checkpoint")


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
    """Alpha against the outer iteration, or None when it did not change (or was not logged).

    Logged rates are means over a window, so a constant one differs in its last digits.
    """
    rates = [rate for rate in column(rows, "alpha") if math.isfinite(rate)]
    if not rates or max(rates) - min(rates) <= 1e-5 * max(map(abs, rates)):
        return None
    series = _columns(rows, [("alpha", "adaptation rate α", style.AFTER, "-")])
    return line_figure(series, "outer iteration", "adaptation rate α", log_y=spans_decades(rates))


def edge_figure(rows: Sequence[dict[str, Any]], edges: Sequence[dict[str, Any]]) -> Figure | None:
    """The meta rate in force beside the largest stable one, or None where that was not measured.

    Parameters
    ----------
    rows : rows of metrics.jsonl with `iteration` and `meta_lr`
    edges : measurements with `iteration` and `beta_max`
    """
    measured = _columns(edges, [("beta_max", "largest stable meta rate", style.VERMILLION, "--")])
    if not measured:
        return None
    in_force = _columns(rows, [("meta_lr", "meta rate β", style.AFTER, "-")])
    values = [value for one in (*measured, *in_force) for value in one.y]
    log_y = spans_decades(value for value in values if value > 0)
    return line_figure([*in_force, *measured], "outer iteration", "meta rate β", log_y=log_y)


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
    curve = _curve_columns(rates.get("curve"))
    x, measured, width, predicted = curve
    start = measured[x == 0]
    limits = _loss_limits(measured, predicted)
    log_x = spans_decades(x[x > 0])
    if log_x:  # a log axis has no 0: the loss there becomes a level to compare with
        x, measured, width, predicted = curve[:, x > 0]
    figure, (axes,) = style.new_figure()
    if log_x and start.size:
        axes.axhline(
            start[0], color=style.BEFORE, linestyle="--", label="without adaptation, α = 0"
        )
    series = [
        Series("measured, 95 % interval", x, measured, width, style.AFTER, marker="o"),
        Series("quadratic prediction", *_dense(x, predicted), None, style.PREDICTED, "--"),
    ]
    draw(axes, series, "adaptation rate α", "query loss after adaptation", log_x=log_x)
    axes.set_ylim(limits)
    _mark_rates(axes, rates)
    style.legend_below(figure)
    return figure


def _curve_columns(curve: Any) -> np.ndarray:
    """The columns alpha, measured, ci95 and predicted of a curve as (4, points)."""
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
    return np.array(columns)


def _dense(x: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The prediction on a fine grid: on the rates tried, its minimum could fall between two of them.

    What is not the quadratic it should be stays as it is.
    """
    known = np.isfinite(predicted)
    if known.sum() < 4:
        return x, predicted
    quadratic = np.polynomial.Polynomial.fit(x[known], predicted[known], 2)
    if not np.allclose(quadratic(x[known]), predicted[known], rtol=1e-3):
        return x, predicted
    low, high = x[known].min(), x[known].max()
    fine = np.geomspace(low, high, 300) if low > 0 else np.linspace(low, high, 300)
    return fine, quadratic(fine)


def _loss_limits(measured: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Limits that show the minimum: a rate far too large costs so much that it would hide it."""
    values = np.concatenate([measured, predicted])
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    known = measured[np.isfinite(measured)]
    start = float(known[0] if known.size else finite.max())
    floor = 0.0 if (known >= 0).all() else -math.inf  # a quadratic may dip below any loss
    low, high = max(float(finite.min()), floor), float(finite.max())
    depth = max(start - low, 0.1 * abs(start), 1e-12)
    high = min(high, start + depth)
    pad = 0.06 * max(high - low, depth)
    return low - pad, high + pad


@style.styled
def _mark_rates(axes: Axes, rates: dict[str, Any]) -> None:
    """Vertical lines at the rates, drawn over bands of their intervals."""
    chosen, best = as_number(rates.get("alpha_chosen")), as_number(rates.get("alpha"))
    is_same = math.isclose(chosen, best, rel_tol=1e-3)
    bounds, free_bounds = rates.get("alpha_interval"), rates.get("label_free_interval")
    free = as_number(rates.get("label_free_alpha"))
    _mark_rate(axes, free, free_bounds, "label-free α", style.GREEN, ":")
    label = "best α, used" if is_same else "best α"
    _mark_rate(axes, best, bounds, label, style.VERMILLION, "-")
    if not is_same:
        _mark_rate(axes, chosen, None, "α used", style.BLACK, "-.")


def _mark_rate(axes: Axes, value: float, bounds: Any, label: str, color: str, line: str) -> None:
    left = axes.get_xlim()[0]
    if not math.isfinite(value) or (axes.get_xscale() == "log" and value <= 0):
        return
    axes.axvline(value, color=color, linestyle=line, label=label, gid=series_id(label))
    low, high = (as_number(bound) for bound in bounds or (None, None))
    if math.isfinite(low) and math.isfinite(high):
        axes.axvspan(max(low, left), high, color=color, alpha=0.12, linewidth=0)
