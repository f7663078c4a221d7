"""Adaptation at work on single tasks: fitted curves, classified images, predicted values."""

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metastep.report import style
from metastep.report.folder import Examples, check_examples

MAX_QUERIES = 8  # rows of an image figure; more do not stay legible


def example_figures(examples: Examples, tasks: int = 6) -> Iterator[Figure]:
    """One figure for each of the first `tasks` tasks, drawn the way the kind of example asks for.

    Raises
    ------
    InputError
        When the examples do not hold the arrays of their kind.
    """
    check_examples(examples)
    draw_task = {"curves": curves_figure, "images": images_figure, "scatter": scatter_figure}
    for task in range(min(tasks, len(examples["before"]))):
        yield draw_task[examples["kind"]](examples, task)


@style.styled
def curves_figure(examples: Examples, task: int) -> Figure:
    """A function of one variable: truth, prediction before and after, and support points."""
    figure, (axes,) = style.new_figure(panel=(4.6, 3.2))
    order = np.argsort(examples["grid"][task])
    grid = examples["grid"][task][order]
    for name, color, line in (
        ("truth", style.TRUTH, "-"),
        ("before", style.BEFORE, "--"),
        ("after", style.AFTER, "-"),
    ):
        values = examples[name][task][order]
        width = 3.2 if name == "truth" else 1.8
        alpha = 0.35 if name == "truth" else 1.0
        axes.plot(
            grid,
            values,
            line,
            color=color,
            label=name,
            gid=f"series-{name}",
            linewidth=width,
            alpha=alpha,
        )
    axes.plot(
        examples["support_x"][task],
        examples["support_y"][task],
        "o",
        color=style.VERMILLION,
        label="support",
        gid="series-support",
        zorder=4,
    )
    axes.set(xlabel="x", ylabel="y")
    style.legend_below(figure, columns=4)
    return figure


@style.styled
def scatter_figure(examples: Examples, task: int) -> Figure:
    """Predicted against true query values; a perfect prediction lies on the diagonal."""
    figure, (axes,) = style.new_figure(panel=(4.2, 3.6))
    truth = examples["query_y"][task]
    for name, color, marker in (("before", style.BEFORE, "x"), ("after", style.AFTER, "o")):
        axes.plot(
            truth,
            examples[name][task],
            marker,
            color=color,
            alpha=0.75,
            label=name,
            gid=f"series-{name}",
        )
    low, high = float(np.nanmin(truth)), float(np.nanmax(truth))
    axes.plot([low, high], [low, high], "-", color=style.TRUTH, linewidth=1, label="perfect")
    axes.set(xlabel="true value", ylabel="predicted value")
    style.legend_below(figure, columns=3)
    return figure


@style.styled
def images_figure(examples: Examples, task: int) -> Figure:
    """Query images against classes: the probability of each class, before and after adaptation.

    A column is headed by a support image of its class, a row by a query image; the true class has a
    frame. Up to MAX_QUERIES rows, spread over the classes.
    """
    queries = _spread_over_classes(examples["query_y"][task])
    ways = examples["after"].shape[-1]
    rows = len(queries)
    cell = 0.44 if ways <= 8 else 0.34
    figure = Figure(figsize=(cell * (2 * ways + 2.2) + 0.3, cell * (rows + 1) + 0.75))
    widths = [1.0, float(ways), 0.5, float(ways)]
    grid = figure.add_gridspec(2, 4, height_ratios=[1, rows], width_ratios=widths)
    _draw_strip(figure.add_subplot(grid[1, 0]), examples["query_x"][task][queries], vertical=True)
    headers = _one_per_class(examples["support_x"][task], examples["support_y"][task], ways)
    for place, name in ((1, "before"), (3, "after")):
        header = figure.add_subplot(grid[0, place])
        header.set_title(f"{name} adaptation")
        _draw_strip(header, headers, vertical=False)
        table = figure.add_subplot(grid[1, place])
        table.set_gid(f"series-{name}")
        truth = examples["query_y"][task][queries]
        _draw_probabilities(table, examples[name][task][queries], truth)
    return figure


def _spread_over_classes(labels: np.ndarray) -> np.ndarray:
    """Up to MAX_QUERIES positions: the first query of every class, then the second ones, ..."""
    rank = np.zeros(len(labels), int)
    for index, label in enumerate(labels):
        rank[index] = int((labels[:index] == label).sum())
    order = np.lexsort((labels, rank))[:MAX_QUERIES]
    return order[np.lexsort((order, labels[order]))]


def _one_per_class(images: np.ndarray, labels: np.ndarray, ways: int) -> np.ndarray:
    """The first support image of each class; a class without one gets an empty image."""
    empty = np.ones(images.shape[1:])
    found = [np.flatnonzero(labels == label) for label in range(ways)]
    return np.stack([images[index[0]] if len(index) else empty for index in found])


def _draw_strip(axes: Axes, images: np.ndarray, vertical: bool) -> None:
    """Images side by side (or stacked) as one picture, a thin white border around each."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0)
    strip = np.concatenate(list(padded), axis=0 if vertical else 1)
    if strip.shape[-1] == 1:
        axes.imshow(strip[..., 0], cmap="gray", vmin=0, vmax=1, aspect="auto")
    else:
        axes.imshow(np.clip(strip[..., :3], 0, 1), aspect="auto")
    axes.axis("off")


def _draw_probabilities(axes: Axes, probabilities: np.ndarray, truth: np.ndarray) -> None:
    """A table of shaded cells with the percentage in each, a frame around the true class."""
    rows, ways = probabilities.shape
    axes.imshow(probabilities, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row in range(rows):
        _frame(axes, row, int(truth[row]))
        for way in range(ways) if ways <= 8 else ():
            _write_percent(axes, row, way, float(probabilities[row, way]))
    axes.set(xticks=[], yticks=[])
    axes.grid(False)


def _frame(axes: Axes, row: int, way: int) -> None:
    x, y = (
        np.array([-0.5, 0.5, 0.5, -0.5, -0.5]) * 0.92,
        np.array([-0.5, -0.5, 0.5, 0.5, -0.5]) * 0.92,
    )
    axes.plot(way + x, row + y, color=style.VERMILLION, linewidth=1.6)


def _write_percent(axes: Axes, row: int, way: int, probability: float) -> None:
    if not math.isfinite(probability):
        return
    color = "white" if probability > 0.6 else "black"
    axes.text(way, row, f"{100 * probability:.0f}", color=color, size=8, ha="center", va="center")
