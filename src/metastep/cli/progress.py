"""What a user sees of long work: a live bar on a terminal, a line now and then elsewhere. All on stderr."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES = 10.0


def error_console() -> Console:
    """Progress and remarks go to stderr; stdout is for results."""
    return Console(stderr=True, highlight=False)


def console_of_results(errors: Console) -> Console:
    """Where results go while bars move on `errors`: above them on a terminal that shows both, else to stdout."""
    both = sys.stdout.isatty() and errors.is_terminal
    return errors if both else Console(highlight=False)


def describe(figures: dict[str, float]) -> str:
    """loss 0.412  accuracy 87.1 %  alpha 0.03  412 steps/s."""
    parts = [f"loss {figures['loss']:.4g}"]
    if "accuracy" in figures:
        parts.append(f"accuracy {100 * figures['accuracy']:.1f} %")
    parts.append(f"alpha {figures['alpha']:.3g}")
    if figures.get("steps_per_second"):
        parts.append(f"{figures['steps_per_second']:.3g} steps/s")
    return "  ".join(parts)


class BarObserver:
    """A live progress bar with the last validation behind it."""

    def __init__(self, progress: Progress):
        self._progress, self._validation = progress, ""

    def start(self, iteration: int, total: int) -> None:
        self._task = self._progress.add_task(
            "compiling", total=total, completed=iteration, figures=""
        )

    def progress(self, iteration: int, figures: dict[str, float]) -> None:
        self._progress.update(
            self._task,
            completed=iteration,
            description="meta-training",
            figures=describe(figures) + self._validation,
        )

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            if text := remark(row):
                self._progress.console.print(text)
            if "validation" in row:
                self._validation = f"  validation {row['validation']['loss']:.4g}"


def remark(row: dict[str, Any]) -> str:
    """What a row has to say in words: what the guard mended, or what the schedule decided; else nothing."""
    return next((row[kind]["text"] for kind in ("incident", "decision") if kind in row), "")


class LineObserver:
    """A line every few seconds, for logs and pipes."""

    def __init__(self, console: Console):
        self._console, self._total, self._last = console, 0, -_SECONDS_BETWEEN_LINES

    def start(self, iteration: int, total: int) -> None:
        self._total = total

    def progress(self, iteration: int, figures: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES and iteration < self._total:
            return
        self._last = now
        speed = figures.get("steps_per_second")
        left = f"  {(self._total - iteration) / speed:.0f} s left" if speed else ""
        self._console.print(f"{iteration}/{self._total}  {describe(figures)}{left}", soft_wrap=True)

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        for text in filter(None, map(remark, rows)):
            self._console.print(text, soft_wrap=True)


class Fanout:
    """Passes everything on to several observers."""

    def __init__(self, *observers: Any):
        self._observers = observers

    def start(self, iteration: int, total: int) -> None:
        for observer in self._observers:
            observer.start(iteration, total)

    def progress(self, iteration: int, figures: dict[str, float]) -> None:
        for observer in self._observers:
            observer.progress(iteration, figures)

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        for observer in self._observers:
            observer.rows(rows)


class TensorBoardObserver:
    """Metrics as TensorBoard scalars."""

    def __init__(self, folder: str):
        from metastep._errors import InputError

        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError(
                "--tensorboard needs tensorboardX; install it with: pip install 'metastep[tensorboard]'"
            ) from error
        self._open, self._folder = SummaryWriter, folder

    def start(self, iteration: int, total: int) -> None:
        del iteration, total
        self._writer = self._open(self._folder)  # not before the run has claimed its folder

    def progress(self, iteration: int, figures: dict[str, float]) -> None:
        del iteration, figures

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        for row in rows:
            self._write(row)
        self._writer.flush()

    def _write(self, row: dict[str, Any]) -> None:
        if text := remark(row):
            self._writer.add_text("remark", text, row["iteration"])
            return
        prefix = next((name for name in ("validation", "edge") if name in row), "train")
        for name, value in row.get(prefix, row).items():
            if name != "iteration" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{prefix}/{name}", value, row["iteration"])


@contextmanager
def watching(console: Console) -> Iterator[Any]:
    """An observer fit for where stderr goes."""
    if not sys.stderr.isatty():
        yield LineObserver(console)
        return
    with Progress(*_columns(TextColumn("{task.fields[figures]}")), console=console) as progress:
        yield BarObserver(progress)


Tell = Callable[[str, int, int], None]
"""Told what is being done, and how many of how many parts of it are done."""


@contextmanager
def counting(console: Console) -> Iterator["CountedBars | CountedLines"]:
    """Shows what is done and what is left of one thing, or of several that go on at once."""
    if not sys.stderr.isatty():
        yield CountedLines(console)
        return
    with Progress(*_columns(), console=console, transient=True) as progress:
        yield CountedBars(progress)


class CountedBars:
    """A live bar for each thing that goes on."""

    def __init__(self, progress: Progress):
        self._progress, self._tasks = progress, {}

    def of(self, name: str = "") -> Tell:
        """Begin a bar; it says the name before what is being done."""
        task, seen = self._progress.add_task(_titled(name, "starting"), total=None), "starting"
        self._tasks[name] = task

        def told(text: str, done: int, total: int) -> None:
            nonlocal seen
            if text != seen:  # what another part took says nothing about this one
                title = _titled(name, text)
                self._progress.reset(task, total=total, completed=done, description=title)
                seen = text
            self._progress.update(task, completed=done, total=total)

        return told

    def end(self, name: str = "") -> None:
        """Take the bar away."""
        self._progress.remove_task(self._tasks.pop(name))


class CountedLines:
    """What is done and what is left, every few seconds and whenever something new begins."""

    def __init__(self, console: Console):
        self._console = console

    def of(self, name: str = "") -> Tell:
        """Begin to speak of this; lines begin with its name."""
        seen, last, began = "", 0.0, (0.0, 0)

        def told(text: str, done: int, total: int) -> None:
            nonlocal seen, last, began
            now = time.monotonic()
            if text != seen:
                seen, began = text, (now, done)
            elif now - last < _SECONDS_BETWEEN_LINES and done < total:
                return
            last = now
            since, before = began
            left = (now - since) * (total - done) / (done - before) if done > before else None
            figures = "" if left is None else f"  {left:.0f} s left"
            self._console.print(f"{_titled(name, text)}  {done}/{total}{figures}", soft_wrap=True)

        return told

    def end(self, name: str = "") -> None:
        """Nothing to take away."""


def _titled(name: str, text: str) -> str:
    return f"{name}: {text}" if name else text


def _columns(*figures: ProgressColumn) -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *figures,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
