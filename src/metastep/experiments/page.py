"""The page of the documentation that says what holds, written from the results of a run.

python -m metastep.experiments.page DIR... writes docs/reproduce.md and its figures; of an experiment that several
folders hold, the last one counts.
"""

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from metastep._records import write_bytes
from metastep.experiments.core import VERDICTS
from metastep.report.gallery import read_results, verdict_counts

DOCS = Path("docs")
FIGURES = "figures/reproduce"
_WIDTH = 900  # pixels: what a column of text shows
_COLOURS = 64  # lines and text need no more, and the files stay small

_HEAD = """\
<!-- Written by `python -m metastep.experiments.page DIR`; run the experiments again instead of editing this page. -->

# Reproduce the papers

Every figure and table of the papers behind metastep is one command, and every claim made about it is tested:

```bash
metastep reproduce --list
metastep reproduce zou-fig8 --out reproduced
metastep reproduce all --out reproduced --scale paper
```

Each experiment writes a folder with the figure (`figure.png`, `figure.svg`), the numbers behind it
(`records.json`, and its series as `.csv`) and the claims (`claims.json`); `gallery.html` shows all of
them on one self-contained page. The scale `quick` takes seconds each; `paper` takes the paper's own
sizes. With `--json` the results come as one JSON object on stdout. The exit status is 1 if an
experiment failed; one whose data are missing counts as not run.

A verdict is computed from the numbers by a rule in the code of the experiment. **Holds** and **does not
hold** speak of the claim as the paper makes it. **Holds with a condition** names the condition in the
evidence. **Not tested** says that this scale cannot tell, and why. A claim that does not hold is a
finding; the [errata](errata.md) say where a formula is to blame.
"""


def render(results: list[dict[str, Any]]) -> str:
    """The page as Markdown: one table of all experiments, then each with its figure and claims."""
    rows = [_row(result) for result in results]
    total = verdict_counts([claim for result in results for claim in result["claims"]])
    counted = ", ".join(f"{count} {verdict}" for verdict, count in total.items() if count)
    verdicts = " | ".join(verdict.capitalize() for verdict in VERDICTS)
    head = (
        f"## All experiments\n\nClaims: {counted}. Processor time and peak memory of the whole process come "
        "from the run this page was made of, compilation included.\n\n"
        f"| Experiment | Shows | {verdicts} | Scale | CPU s | MB |\n"
        f"| --- | --- |{' --- |' * (len(VERDICTS) + 3)}\n"
    )
    return "\n".join([_HEAD, head + "\n".join(rows) + "\n", *map(_section, results)])


def _row(result: dict[str, Any]) -> str:
    counts = verdict_counts(result["claims"])
    memory = result["peak_memory_mb"]
    cells = [
        f"[{result['name']}](#{result['name']})",
        _cell(result["title"]),
        *(str(count or "") for count in counts.values()),
        result["scale"],
        f"{result['cpu_seconds']:.0f}",
        "" if memory is None else f"{memory:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _section(result: dict[str, Any]) -> str:
    name = result["name"]
    parts = [f"## {name}\n\n{_cell(result['title'])}.\n"]
    if result["status"] != "finished":
        parts.append(f"{result['status'].split(':')[0].capitalize()}.\n")
    if figure_of(result):
        parts.append(f"![{_cell(result['title'])}]({FIGURES}/{name}.png)\n")
    if result["claims"]:
        rows = [
            f"| {_cell(claim['text'])} ({_cell(claim['source'])}) | **{claim['verdict']}** | "
            f"{_cell(claim['evidence'])} |"
            for claim in result["claims"]
        ]
        parts.append(
            "| Claim | Verdict | Evidence |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
        )
    return "\n".join(parts)


def _cell(text: str) -> str:
    """Text that Markdown leaves as it is."""
    for sign in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(sign, f"\\{sign}")
    return text


def figure_of(result: dict[str, Any]) -> str:
    """The PNG of an experiment, relative to its folder, or nothing."""
    return next((file for file in result["files"] if file.endswith("/figure.png")), "")


def small_png(path: Path) -> bytes:
    """The picture at the width of a column, in few colours."""
    with Image.open(path) as image:
        height = round(image.height * _WIDTH / image.width)
        shrunk = image.convert("RGB").resize((_WIDTH, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shrunk.quantize(_COLOURS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write(folders: list[Path], docs: Path = DOCS) -> list[Path]:
    """Write the page and its figures, and return their paths."""
    results = {
        result["name"]: (folder, result) for folder in folders for result in read_results(folder)
    }
    ordered = [results[name] for name in results]
    written = []
    for folder, result in ordered:
        if figure_of(result):
            written.append(docs / FIGURES / f"{result['name']}.png")
            write_bytes(written[-1], small_png(folder / figure_of(result)))
    write_bytes(docs / "reproduce.md", render([result for _, result in ordered]).encode())
    return [*written, docs / "reproduce.md"]


if __name__ == "__main__":
    for target in write([Path(argument) for argument in sys.argv[1:]]):
        print(target)
