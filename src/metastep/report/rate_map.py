"""The (alpha, beta) plane as a picture: where training works, and where curvature predicts that it should."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metastep._errors import InputError
from metastep.report import style

__all__ = ["largest_betas", "map_figure", "trained_cells"]

_DIVERGED = "0.75"


def trained_cells(records: dict[str, Any]) -> np.ndarray:
    """(alphas, betas) whether the training ended below the loss of one that works, `highest_loss`."""
    loss = np.array(records["train_loss"], float)
    return np.nan_to_num(loss, nan=np.inf) < records["highest_loss"]


def largest_betas(records: dict[str, Any]) -> np.ndarray:
    """(alphas,) the largest beta that trains; NaN where none does."""
    betas = np.array(records["betas"])
    return np.array([betas[row].max() if row.any() else np.nan for row in trained_cells(records)])


@style.styled
def map_figure(records: dict[str, Any], unit: str) -> Figure:
    """Training loss over the plane; grey cells diverged, lines are predicted limits.

    Parameters
    ----------
    records : as `metastep.train.rate_map` returns them, or read back from their file: `alphas`, `betas`,
        `train_loss` (alphas, betas) with None or NaN where training diverged, `highest_loss`, `predicted`
        {place: {`alpha_c`, `beta_c`}}, and perhaps `chosen` {`alpha`, `beta`}
    unit : of the loss

    Raises
    ------
    InputError
        When the plane is less than two rates wide or high.
    """
    loss = np.array(records["train_loss"], float)
    alphas, betas = np.array(records["alphas"]), np.array(records["betas"])
    if min(alphas.size, betas.size) < 2:
        raise InputError(
            f"a map needs at least two alphas and two betas, but has {alphas.size} and {betas.size}"
        )
    figure, (axes,) = style.new_figure(panel=(7.2, 5.4))
    axes.set_facecolor(_DIVERGED)
    low, high = _loss_range(loss, records["highest_loss"])
    mesh = axes.pcolormesh(
        _edges(alphas), _edges(betas), np.ma.masked_invalid(loss.T), cmap="viridis",
        vmin=low, vmax=high, rasterized=True,
    )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="adaptation rate α", ylabel="meta rate β")
    axes.set(xlim=_edges(alphas)[[0, -1]], ylim=_edges(betas)[[0, -1]])
    axes.grid(False)
    figure.colorbar(mesh, ax=axes, extend="max").set_label(
        f"training loss after adaptation ({unit})"
    )
    axes.plot(alphas, largest_betas(records), "o", color="white", markeredgecolor="black",
              label="largest β that trains", gid="largest-beta")  # fmt: skip
    _draw_predictions(axes, alphas, records["predicted"])
    _draw_chosen(axes, records.get("chosen"))
    axes.plot([], [], "s", color=_DIVERGED, markersize=9, label="diverged")
    style.legend_below(figure, columns=3)
    return figure


def _loss_range(loss: np.ndarray, highest: float) -> tuple[float, float]:
    """From the best cell to a quarter beyond what works; all that is worse has the last colour."""
    finite = loss[np.isfinite(loss)]
    low = float(finite.min()) if finite.size else 0.0
    return min(low, highest), highest + 0.25 * abs(highest)


def _draw_predictions(axes: Axes, alphas: np.ndarray, predicted: dict[str, Any]) -> None:
    for name, color in (("start", style.VERMILLION), ("trained", style.PURPLE)):
        if name not in predicted:
            continue
        where = "at the start" if name == "start" else "after training"
        beta_c = np.array(predicted[name]["beta_c"], float)
        axes.plot(alphas, beta_c, "-", color=color, label=f"β_c {where}", gid=f"beta-c-{name}")
        if predicted[name]["alpha_c"] is not None:  # infinite without curvature
            axes.axvline(predicted[name]["alpha_c"], color=color, linestyle=":",
                         label=f"α_c = 1/λ_max {where}", gid=f"alpha-c-{name}")  # fmt: skip


def _draw_chosen(axes: Axes, chosen: dict[str, float] | None) -> None:
    if chosen is not None:
        axes.plot([chosen["alpha"]], [chosen["beta"]], "*", color=style.ORANGE, markersize=16,
                  markeredgecolor="black", label="chosen rates", gid="chosen", zorder=5)  # fmt: skip


def _edges(centres: Sequence[float] | np.ndarray) -> np.ndarray:
    """Borders of the cells of a log axis."""
    logs = np.log(np.asarray(centres))
    middles = (logs[1:] + logs[:-1]) / 2
    ends = (2 * logs[0] - middles[0], 2 * logs[-1] - middles[-1])
    return np.exp(np.concatenate([ends[:1], middles, ends[1:]]))
