"""The page of the documentation that says what holds and what it costs, written from the results of runs.

python -m metastep.experiments.page DIR... writes docs/reproduce.md and its figures. The folders are those of runs at
the scale `quick` and at that of the papers: of an experiment that was run at both, the page shows the latter and
names the verdicts that differ. Where several folders hold the same experiment at the same scale, the last one counts.

Results are kept in docs/reproduce.json. So what no folder holds stays as it was, and a run that took a day does not
have to be made again because another one was.
"""

import io
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from metastep._records import read_json, write_bytes, write_json
from metastep.experiments import summaries
from metastep.experiments.core import SCALES, VERDICTS
from metastep.experiments.run_one import FINISHED
from metastep.report.gallery import in_order, read_results, verdict_counts

DOCS = Path("docs")
KEPT = "reproduce.json"
_SHOWN = ("name", "title", "scale", "status", "claims", "files", "cpu_seconds", "peak_memory_mb")
FIGURES = "figures/reproduce"
# The scales that have columns; what a reduced run took stands where it is shown.
_COSTS = ("quick", "paper")
_WIDTH = 900  # pixels: what a column of text shows
_COLOURS = 64  # lines and text need no more, and the files stay small

_HEAD = """\
<!-- Written by `python -m metastep.experiments.page QUICK PAPER`; run experiments again instead of editing it. -->

# Reproduce the papers

Every figure and table of the papers behind metastep is one command, and every claim made about it is tested:

```bash
metastep reproduce --list
metastep reproduce zou-fig8 --out reproduced
metastep reproduce all --out reproduced --scale paper
```

Each experiment writes a folder with the figure (`figure.png`, `figure.svg`), the numbers behind it
(`records.json`, and its series as `.csv`) and the claims (`claims.json`); `gallery.html` shows all of them on
one self-contained page. The scale `quick` takes seconds each; `paper` takes the paper's own sizes, and
`reduced` the same, but fewer meta-steps, tasks, ways or arms where those would take a day. With `--json` the
results come as one JSON object on stdout. The exit status is 1 if an experiment failed; one whose data are missing
counts as not run. Experiments that take hours save what they have once a minute; the same command goes on from
there after a kill, and ends with the same numbers. Several run in processes of their own, so that the memory of
each is its own: quick ones as many at a time as there are cores, others one, unless `--jobs` says how many.

Processor seconds do not depend on what else a machine is doing; those of `quick` are mostly compilation, which
it does with little optimisation.

A verdict is computed from the numbers by a rule in the code of the experiment. **Holds** and **does not
hold** speak of the claim as the paper makes it. **Holds with a condition** names the condition in the
evidence. **Not tested** says that this scale cannot tell, and why. A claim that does not hold is a
finding; the [errata](errata.md) say where a formula is to blame.
"""


Run = dict[str, dict[str, Any]]
"""The results of one experiment: scale -> record."""


def render(runs: list[Run]) -> str:
    """The page as Markdown: one table of all experiments, then each with its figure and claims."""
    total = verdict_counts([claim for run in runs for claim in _shown(run)["claims"]])
    counted = ", ".join(f"{count} {verdict}" for verdict, count in total.items() if count)
    verdicts = " | ".join(verdict.capitalize() for verdict in VERDICTS)
    costs = " | ".join(f"{scale}: CPU s | MB" for scale in _COSTS)
    quick = sum(run["quick"]["cpu_seconds"] for run in runs if "quick" in run)
    head = (
        f"## All experiments\n\nClaims: {counted}; of an experiment that was run at the scale of its paper or a "
        "reduced one, as found there. Processor seconds and the peak memory of the whole process come from the runs "
        f"this page was made of, compilation included. All of `quick` took {quick:.0f} processor seconds.\n\n"
        f"| Experiment | Shows | {verdicts} | {costs} |\n"
        f"| --- | --- |{' --- |' * (len(VERDICTS) + 2 * len(_COSTS))}\n"
    )
    sections = [_section(run) for run in runs]
    return "\n".join([_HEAD, head + "\n".join(map(_row, runs)) + "\n", *sections])


def _shown(run: Run) -> dict[str, Any]:
    """The result at the largest scale that finished, or at any."""
    finished = [run[scale] for scale in SCALES if scale in run and run[scale]["status"] == FINISHED]
    return finished[-1] if finished else next(iter(run.values()))


def _row(run: Run) -> str:
    shown = _shown(run)
    cells = [
        f"[{shown['name']}](#{shown['name']})",
        _cell(shown["title"]),
        *(str(count or "") for count in verdict_counts(shown["claims"]).values()),
    ]
    for scale in _COSTS:
        result = run.get(scale, {"cpu_seconds": None, "peak_memory_mb": None})
        costs = (result.get("cpu_seconds"), result["peak_memory_mb"])
        cells += ["" if cost is None else f"{cost:.0f}" for cost in costs]
    return f"| {' | '.join(cells)} |"


def _section(run: Run) -> str:
    shown = _shown(run)
    name = shown["name"]
    parts = [f"## {name}\n\n{_cell(shown['title'])}; scale `{shown['scale']}`.{_not_run(run)}\n"]
    if shown["status"] != FINISHED:
        parts.append(f"{shown['status'].split(':')[0].capitalize()}.\n")
    if figure_of(shown):
        parts.append(f"![{_cell(shown['title'])}]({FIGURES}/{name}.png)\n")
    if shown["claims"]:
        rows = [
            f"| {_cell(claim['text'])} ({_cell(claim['source'])}) | **{claim['verdict']}** | "
            f"{_cell(claim['evidence'])} |"
            for claim in shown["claims"]
        ]
        parts.append(
            "| Claim | Verdict | Evidence |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
        )
    changed = _changed(run)
    if changed:
        parts.append("Other verdicts at the scale `quick`:\n\n" + "\n".join(changed) + "\n")
    return "\n".join(parts)


def _not_run(run: Run) -> str:
    """That the scale of the paper was not run, and what it would cost."""
    if "paper" in run:
        return ""
    reduced = run.get("reduced")
    spent = f" {reduced['cpu_seconds']:,.0f} processor seconds." if reduced else ""
    costs = {summary.name: summary.cost for summary in summaries()}
    cost = costs.get(_shown(run)["name"], "")
    return f"{spent} The scale of the paper was not run" + (f": it takes {cost}." if cost else ".")


def _changed(run: Run) -> list[str]:
    """The claims that got another verdict at the quick scale, each as an item of a list."""
    if "quick" not in run or _shown(run)["scale"] == "quick":
        return []
    verdicts = {
        (claim["text"], claim["source"]): claim["verdict"] for claim in _shown(run)["claims"]
    }
    return [
        f"- {_cell(claim['text'])}: **{claim['verdict']}**, {_cell(claim['evidence'])}"
        for claim in run["quick"]["claims"]
        if verdicts.get((claim["text"], claim["source"]), claim["verdict"]) != claim["verdict"]
    ]


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
    """Take over the results in these folders, write the page and the figures that are new; return their paths."""
    kept, written = docs / KEPT, []
    runs: dict[str, Run] = read_json(kept) if kept.exists() else {}
    places: dict[tuple[str, str], Path] = {}
    for folder in folders:
        for result in read_results(folder):
            record = {key: result[key] for key in _SHOWN if key in result}
            runs.setdefault(result["name"], {})[result["scale"]] = record
            places[result["name"], result["scale"]] = folder
    runs = {name: runs[name] for name in in_order(runs)}
    for name, run in runs.items():
        shown = _shown(run)
        folder = places.get((name, shown["scale"]))
        if folder and figure_of(shown):
            written.append(docs / FIGURES / f"{name}.png")
            write_bytes(written[-1], small_png(folder / figure_of(shown)))
    write_json(kept, runs)
    write_bytes(docs / "reproduce.md", render(list(runs.values())).encode())
    return [*written, kept, docs / "reproduce.md"]


if __name__ == "__main__":
    for target in write([Path(argument) for argument in sys.argv[1:]]):
        print(target)
