"""The plain line figure every other figure stands on: series, error bands, readable log axes."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from metastep.report import style

DECADES = 30.0  # a positive series that spans more than this factor is drawn on a log scale


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a figure, with an optional half-width of its error band at each point.

    Attributes
    ----------
    label : text of the legend
    x, y : (points,) numbers; NaN leaves a gap
    width : (points,) half-widths of the 95 % band, or None
    color, line, marker : matplotlib's names; color None takes the next of the palette
    """

    label: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    width: Sequence[float] | np.ndarray | None = None
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
    series = list(series)
    for index, one in enumerate(series):
        _draw_one(axes, one, one.color or style.PALETTE[index % len(style.PALETTE)], log_y)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    for name, is_log in (("x", log_x), ("y", log_y)):
        if is_log:
            _log_axis(axes, name)
    if not log_x and series and all(_whole(one.x) for one in series):
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))


def _whole(values: Sequence[float] | np.ndarray) -> bool:
    """Whether they are counts, which have nothing between them."""
    numbers = np.asarray(values, float)
    return bool(np.all(numbers == np.round(numbers)))


def _draw_one(axes: Axes, one: Series, color: str, log_y: bool) -> None:
    x, y = np.asarray(one.x, float), np.asarray(one.y, float)
    # A line through a single finite point would be invisible.
    marker = one.marker or ("o" if np.isfinite(y).sum() == 1 else "")
    axes.plot(x, y, one.line, marker=marker, color=color, label=one.label, gid=series_id(one.label))
    if one.width is not None:
        width = np.nan_to_num(np.asarray(one.width, float))
        low = y - width
        if log_y:  # a band that reaches 0 would fill a logarithmic panel down to its edge
            low = np.where(low > 0, low, y / 10)
        axes.fill_between(x, low, y + width, color=color, alpha=0.18, linewidth=0)


@style.styled
def draw_star(
    axes: Axes, x: float, y: float, color: str | None = style.ORANGE, **more: Any
) -> None:
    """A star on what is best; `more` are its label and id."""
    axes.plot([x], [y], "*", color=color, markeredgecolor="black", markersize=14, zorder=5, **more)


def series_id(label: str) -> str:
    """An SVG id from a label, so that a reader of the file (or a test) finds the series."""
    return "series-" + "-".join(
        "".join(c if c.isalnum() and c.isascii() else " " for c in label).split()
    )


def _log_axis(axes: Axes, name: str) -> None:
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    # Less than three decades hold too few powers of ten to read a value off.
    steps = (1.0,) if high > 1000 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def spans_decades(*values: Iterable[float]) -> bool:
    """Whether the finite values are all positive and spread over more than a factor of DECADES."""
    everything = np.concatenate([np.asarray(list(one), float) for one in values])
    finite = everything[np.isfinite(everything)]
    return bool(finite.size and finite.min() > 0 and finite.max() > DECADES * finite.min())
