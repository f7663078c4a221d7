"""A folder of reproduced experiments to one self-contained gallery.html: no scripts, no other files."""

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2

from metastep._errors import DataError
from metastep._records import read_json, write_bytes
from metastep.report._format import as_number, command_line

GALLERY = "gallery.html"

VERDICTS = ("holds", "holds with a condition", "does not hold", "not tested")
_CLASSES = dict(zip(VERDICTS, ("holds", "condition", "fails", "untested"), strict=True))

# A drawing with many points is smaller as pixels.
_LARGEST_SVG = 600_000


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The records that `metastep reproduce` left in `folder`, in the order of the names.

    Raises
    ------
    DataError
        When there is none, or one is damaged.
    """
    results = []
    for name in in_order(path.parent.name for path in folder.glob("*/result.json")):
        path = folder / name / "result.json"
        try:
            result = read_json(path)
            results.append(
                {key: result[key] for key in ("name", "status", "claims", "files")} | result
            )
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is damaged ({error}); delete it or run `metastep reproduce` again"
            ) from error
    if not results:
        raise DataError(
            f"{folder} holds no reproduced experiment; run `metastep reproduce NAME --out {folder}`"
        )
    return results


def in_order(names: Iterable[str]) -> list[str]:
    """Names of experiments, sorted as one counts."""
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    """fig2 before fig10."""
    text = "".join(c if c.isdigit() else " " for c in name).split()
    letters = "".join(c for c in name if not c.isdigit())
    return [(0, letters), *((int(number), "") for number in text)]


def verdict_counts(claims: list[dict[str, Any]]) -> dict[str, int]:
    """How many claims got each verdict, in the order of `VERDICTS`."""
    return {verdict: sum(one.get("verdict") == verdict for one in claims) for verdict in VERDICTS}


def write_gallery(folder: Path) -> Path:
    """Draw `folder`/gallery.html from the experiments in it, and return its path.

    Parameters
    ----------
    folder : the --out of `metastep reproduce`, with NAME/result.json and NAME/figure.svg

    Raises
    ------
    DataError
        When the folder holds no experiment, or a damaged one.
    """
    results = read_results(folder)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("metastep.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    entries = [_entry(folder, result) for result in results]
    total = verdict_counts([claim for result in results for claim in result["claims"]])
    text = environment.get_template("gallery.html.jinja").render(
        entries=entries, total=total, classes=_CLASSES
    )
    write_bytes(folder / GALLERY, text.encode())
    return folder / GALLERY


def _entry(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """All the template shows of one experiment."""
    return {
        "name": str(result["name"]),
        "title": str(result.get("title", "")),
        "paper": str(result.get("paper", "")),
        "status": str(result["status"]),
        "figure": _figure(folder, result["files"]),
        "claims": result["claims"],
        "counts": {k: v for k, v in verdict_counts(result["claims"]).items() if v},
        "cost": cost(result),
        "command": command_line(result.get("command")),
        "files": result["files"],
    }


def cost(result: dict[str, Any]) -> str:
    """quick scale, seed 0, 3.2 s, 412 MB."""
    parts = [f"{result.get('scale', 'unknown')} scale", f"seed {result.get('seed', 'unknown')}"]
    parts.append(f"{as_number(result.get('seconds')):.1f} s")
    memory = result.get("peak_memory_mb")
    return ", ".join([*parts, f"{memory:.0f} MB"] if isinstance(memory, float) else parts)


def _figure(folder: Path, files: list[str]) -> str:
    """The figure as a data URI, or an empty string when there is none."""
    for name, kind in (("figure.svg", "svg+xml"), ("figure.png", "png")):
        path = next((folder / file for file in files if file.endswith(f"/{name}")), None)
        if path is None or not path.is_file():
            continue
        content = path.read_bytes()
        if kind == "png" or len(content) <= _LARGEST_SVG:
            return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return ""
