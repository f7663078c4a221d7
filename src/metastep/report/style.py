"""How every figure of metastep looks and is written: one palette, one set of sizes, same bytes.

Figures are `matplotlib.figure.Figure` objects made without pyplot, so drawing one neither opens a
window nor touches the caller's global state.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from metastep._errors import check_choice
from metastep._records import write_bytes

# Okabe and Ito's eight colours stay apart under every common form of colour blindness.
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
SKY, PURPLE, BLACK, GREY = "#56B4E9", "#CC79A7", "#000000", "#767676"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)

# What a colour stands for is the same in every figure.
BEFORE, AFTER, VALIDATION, TRUTH, PREDICTED = GREY, BLUE, VERMILLION, BLACK, PURPLE

PANEL = (5.4, 3.7)
"""Width and height in inches of one panel: still legible when scaled to the width of a phone."""

STYLE: Mapping[str, Any] = MappingProxyType(
    {
        "figure.figsize": PANEL,
        "figure.facecolor": "white",
        "figure.constrained_layout.use": True,
        "font.family": "DejaVu Sans",  # ships with matplotlib, so text has the same size everywhere
        "font.size": 11,
        "axes.titlesize": 11,
        "axes.labelsize": 11,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "legend.fontsize": 10,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#444444",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e3e3e3",
        "grid.linewidth": 0.8,
        "lines.linewidth": 1.8,
        "lines.markersize": 5,
        "axes.formatter.useoffset": False,
        "svg.fonttype": "path",
        "svg.hashsalt": "metastep",  # element ids would be random otherwise
        "savefig.dpi": 160,
    }
)

styled = matplotlib.style.context(["default", dict(STYLE)])
"""Decorator and context manager: the style above, whatever the user's matplotlibrc says."""

_UNDATED: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


@styled
def new_figure(
    rows: int = 1, columns: int = 1, panel: tuple[float, float] = PANEL
) -> tuple[Figure, list[Axes]]:
    """An empty figure of `rows` x `columns` panels and its axes, row by row."""
    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


@styled
def render(figure: Figure, kind: str) -> bytes:
    """The figure as "svg" or "png" bytes; the same figure gives the same bytes.

    The first call fixes the layout: what is added to the figure later no longer moves its axes.

    Raises
    ------
    InputError
        When `kind` is neither.
    """
    check_choice("figure kind", kind, _UNDATED)
    _fix_layout(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=_UNDATED[kind])
    return buffer.getvalue()


def _fix_layout(figure: Figure) -> None:
    """Lay the figure out once and round off the last digits of where its axes came to lie.

    The solver behind constrained layout sums in the order of memory addresses, so those digits, and
    the ids that matplotlib derives from them, would differ from one call to the next.
    """
    if not isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        left, bottom, width, height = (round(side, 5) for side in axes.get_position().bounds)
        axes.set_position((left, bottom, width, height))


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write `path` as .png and as .svg, whichever of them it names, and return the two paths."""
    stem = path.with_suffix("") if path.suffix in (".png", ".svg") else path
    written = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for target in written:
        write_bytes(target, render(figure, target.suffix[1:]))
    return written


@styled
def legend_below(figure: Figure, columns: int = 2) -> None:
    """One legend for all panels, under the axes where it hides no data; labels are listed once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside lower center", ncols=columns
        )
