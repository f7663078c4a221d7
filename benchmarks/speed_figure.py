"""The figure of the speed benchmark: each contender's time of a meta-step, one line for each row."""

from pathlib import Path
from typing import Any

from metastep._records import write_bytes
from metastep.report.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    legend_below,
    new_figure,
    render,
)

MARKS = {
    "metastep": (BLUE, "o"),
    "bare JAX": (BLACK, "|"),
    "torch.func compiled": (ORANGE, "s"),
    "torch.func": (SKY, "^"),
    "TorchOpt": (PURPLE, "D"),
    "higher": (VERMILLION, "v"),
    "learn2learn": (GREEN, "P"),
}


def draw(record: dict[str, Any], out: Path) -> None:
    """Times over metastep's, on a logarithmic axis; right of 1 is slower."""
    rows = [row for row in record["rows"] if "seconds" in row["contenders"].get("metastep", {})]
    if not rows:
        return
    figure, (axes,) = new_figure(1, 1, (8.2, 1.6 + 0.5 * len(rows)))
    for place, row in enumerate(reversed(rows)):
        ours = row["contenders"]["metastep"]["seconds"]
        axes.axhline(place, color="#e3e3e3", linewidth=0.8, zorder=0)
        for name, facts in row["contenders"].items():
            if "seconds" in facts:
                colour, marker = MARKS[name]
                label = name if place == len(rows) - 1 else None
                size = 13 if marker == "|" else 7
                axes.plot(
                    facts["seconds"] / ours, place, marker, color=colour, markersize=size,
                    label=label, linestyle="none", zorder=3 if name == "metastep" else 2,
                )  # fmt: skip
    own = [1000 * row["contenders"]["metastep"]["seconds"] for row in rows]
    shown = [f"{ms:,.0f}" if ms >= 100 else f"{ms:.2g}" for ms in own]
    labels = [f"{row['name']}: {ms} ms" for row, ms in zip(rows, shown, strict=True)]
    axes.set_yticks(range(len(rows)), list(reversed(labels)))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xscale("log")
    ticks = [0.8, 1, 2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("time over metastep's (its own: at the left)")
    cores = "one CPU core" if record["cores"] == 1 else f"{record['cores']} CPU cores"
    axes.set_title(f"On {cores}: right of 1 is slower")
    legend_below(figure, columns=4)
    write_bytes(out / "speed.png", render(figure, "png"))
