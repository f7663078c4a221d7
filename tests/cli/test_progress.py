"""What is said of long work where nobody watches a terminal."""

import io
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from metastep.cli import progress


def test_counted_lines_come_now_and_then_with_what_is_left(monkeypatch):
    clock = iter([0.0, 1.0, 12.0, 13.0, 14.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    tell = progress.CountedLines(Console(file=out, width=80)).of()
    for text, done in (("plane", 3), ("plane", 4), ("plane", 6), ("plane", 9), ("edge", 0)):
        tell(text, done, 9)
    # The second is too early; the third had 3 parts in 12 seconds; the last part and a new text are always told.
    assert out.getvalue().splitlines() == [
        "plane  3/9",
        "plane  6/9  12 s left",
        "plane  9/9  0 s left",
        "edge  0/9",
    ]


def test_what_goes_on_at_once_has_lines_of_its_own(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 3.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    out = io.StringIO()
    lines = progress.CountedLines(Console(file=out, width=80))
    one, other = lines.of("one"), lines.of("other")
    for tell, done in ((one, 0), (other, 0), (one, 1), (other, 1), (one, 3)):
        tell("training", done, 4)
    # Neither interrupts the other: the third and fourth are too early.
    assert out.getvalue().splitlines() == [
        "one: training  0/4",
        "other: training  0/4",
        "one: training  3/4  4 s left",
    ]


def test_what_goes_on_at_once_has_bars_of_its_own_until_it_ends():
    with Progress(console=Console(file=io.StringIO()), disable=True) as live:
        bars = progress.CountedBars(live)
        bars.of("one")("training", 1, 4)
        bars.of("other")("measuring", 2, 5)
        seen = [(task.description, task.completed, task.total) for task in live.tasks]
        assert seen == [("one: training", 1, 4), ("other: measuring", 2, 5)]
        bars.end("one")
        assert [task.description for task in live.tasks] == ["other: measuring"]


@pytest.mark.parametrize(("to_a_terminal", "above_the_bars"), [(True, True), (False, False)])
def test_results_do_not_write_into_bars_and_reach_a_file(
    monkeypatch, to_a_terminal, above_the_bars
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: to_a_terminal, raising=False)
    errors = Console(file=io.StringIO(), force_terminal=True)
    found = progress.console_of_results(errors)
    assert (found is errors) == above_the_bars
    assert above_the_bars or found.file is sys.stdout
