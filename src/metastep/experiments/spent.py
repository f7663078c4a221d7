"""What a run of an experiment costs: time and memory, with those of a killed run that it goes on from."""

import contextlib
import gc
import sys
import time
from pathlib import Path
from typing import Any

import jax

from metastep._records import read_json, write_json

_SECONDS_BETWEEN_NOTES = 10.0


class Measured:
    """Wall time and peak memory from here on, and of the killed run that this one goes on from, noted in a file.

    Linux can reset its high-water mark of memory, others cannot.
    """

    def __init__(self, file: Path) -> None:
        jax.clear_caches()  # so that neither figure depends on what ran before
        gc.collect()
        with contextlib.suppress(OSError):  # elsewhere the mark covers the whole process so far
            Path("/proc/self/clear_refs").write_text("5")
        self._file, self._before = file, spent(file)
        self._began, self._busy = time.perf_counter(), time.process_time()
        self._noted = self._began

    def note(self) -> None:
        """Write down what was spent so far, if the last time was a while ago."""
        if time.perf_counter() - self._noted >= _SECONDS_BETWEEN_NOTES:
            write_json(self._file, self.record())
            self._noted = time.perf_counter()

    def record(self) -> dict[str, float | None]:
        before, memory = self._before, _peak_memory_mb()
        seconds, busy = time.perf_counter() - self._began, time.process_time() - self._busy
        return {
            "seconds": round(seconds + before["seconds"], 2),
            "cpu_seconds": round(busy + before["cpu_seconds"], 2),
            "peak_memory_mb": memory and max(memory, before["peak_memory_mb"] or 0.0),
        }


def spent(file: Path) -> dict[str, Any]:
    """What a run noted before it was killed; nothing if it noted nothing."""
    nothing = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_memory_mb": None}
    try:
        return nothing | read_json(file)
    except (OSError, ValueError, TypeError):
        return nothing


def _peak_memory_mb() -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return round(int(peak.split()[1]) * 1024 / 1e6, 1)
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
