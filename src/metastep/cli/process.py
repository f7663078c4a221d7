"""What a process of the command line settles before anything else: memory, and compiled programs."""

import os
from collections.abc import Sequence
from pathlib import Path

from metastep._allocator import keep_freed_memory

# What does not change which programs a start needs, and mostly differs from one start to the next.
_OF_NO_ACCOUNT = ("--out", "--seed")
# These decide which devices there are, so nothing may look at devices before they are heeded.
_OF_DEVICES = ("--devices", "--distributed", "--coordinator")


def settle_process(command: Sequence[str] = ()) -> None:
    """What a process of ours keeps: freed memory, and compiled programs, from one start to the next.

    JAX's own environment variables win, and so do the allocator's. METASTEP_KEEP_PROGRAMS=0 has all traced anew, and
    compiled unless JAX has cached it. What the last start of the same command used is read ahead.
    """
    keep_freed_memory()  # before JAX has any threads
    import jax

    from metastep._kept import keep_programs, read_ahead
    from metastep.datasets.paths import cache_root

    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if compiled is None:
        compiled = str(cache_root() / "compiled")
        jax.config.update("jax_compilation_cache_dir", compiled)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Much of a start's compiling is programs of hundredths of a second, which JAX would not keep.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if compiled and "://" not in compiled and os.environ.get("METASTEP_KEEP_PROGRAMS") != "0":
        keep_programs(Path(compiled) / "programs")
        if command and not any(word.startswith(_OF_DEVICES) for word in command):
            read_ahead("\n".join(_counting(command)))


def _counting(command: Sequence[str]) -> list[str]:
    """The words of a command that say which programs it needs."""
    words, before = [], ""
    for word in command:
        if before not in _OF_NO_ACCOUNT and word.partition("=")[0] not in _OF_NO_ACCOUNT:
            words.append(word)
        before = word
    return words
