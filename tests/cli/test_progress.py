"""What is said of long work where nobody watches a terminal."""

import io

from rich.console import Console

from metastep.cli import progress


def test_counted_lines_come_now_and_then_with_what_is_left(monkeypatch):
    clock = iter([0.0, 1.0, 12.0, 13.0, 14.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    tell = progress.CountedLines(Console(file=out, width=80))
    for text, done in (("plane", 3), ("plane", 4), ("plane", 6), ("plane", 9), ("edge", 0)):
        tell(text, done, 9)
    # The second is too early; the third had 3 parts in 12 seconds; the last part and a new text are always told.
    assert out.getvalue().splitlines() == [
        "plane  3/9",
        "plane  6/9  12 s left",
        "plane  9/9  0 s left",
        "edge  0/9",
    ]
