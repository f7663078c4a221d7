"""The allocator's setting: what a compiled program gives back is there for its next call."""

import os
import platform
import subprocess
import sys

import pytest

from metastep.train import keep_freed_memory

# Page faults when a large block is asked for and filled a second time, after an optional setting. Asked for as a
# compiled program does, but by a single thread: XLA's may ask again before the others have given back.
FAULTS = """
import ctypes, resource, sys
if sys.argv[1] == "keep":
    from metastep.train import keep_freed_memory
    assert keep_freed_memory()
library, size = ctypes.CDLL(None), int(sys.argv[2])
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(size)
    library.memset(block, 1, size)
    library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
SIZE = 72_000_000  # blocks above 32 MB are never kept by default


def faults_of_a_second_block(setting: str) -> int:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    command = [sys.executable, "-c", FAULTS, setting, str(SIZE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_second_block_meets_no_new_pages():
    pages = SIZE // os.sysconf("SC_PAGE_SIZE")
    assert faults_of_a_second_block("keep") < pages / 100
    assert faults_of_a_second_block("leave") > pages / 2  # or there is nothing to do for it


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_stays(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    for name in [n for n in os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
