"""The allocator's setting: what a compiled program gives back is there for its next call."""

import os
import platform
import subprocess
import sys

import pytest

from metastep.train import keep_freed_memory

# Page faults of the later calls of a program with large intermediate values, after an optional setting.
FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
if sys.argv[1] == "keep":
    from metastep.train import keep_freed_memory
    assert keep_freed_memory()
program = jax.jit(lambda x: jnp.sum(jnp.sort(jnp.outer(x, x), axis=1)[:, ::7]))
x = jnp.linspace(0, 1, 2000)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults()
    program(x).block_until_ready()
print(faults() - before)
"""


def faults_of_a_call(setting: str) -> int:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    command = [sys.executable, "-c", FAULTS, setting]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_a_program_meets_no_new_pages_when_it_is_called_again():
    pages = 2000 * 2000 * 8 // os.sysconf("SC_PAGE_SIZE")
    assert faults_of_a_call("keep") < pages / 100
    assert faults_of_a_call("leave") > pages / 2  # or there is nothing to do for it any more


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_stays(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    for name in [n for n in os.environ if n.startswith("MALLOC_") or n == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
