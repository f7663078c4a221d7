"""Shared test set-up: float64 and strict promotion everywhere, seeds that are printed, the real data if present."""

import os
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiling is most of the suite's time: little of it is spent on programs that run for a moment, the newer way of
# fusing would double it on CPU, and a program in one piece, with no trace of where it comes from, takes less still.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS", "0")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

# Commands run in the suite's own processes, whose allocator is not theirs to set: they see that somebody has.
os.environ.setdefault("MALLOC_ARENA_TEST", "8")

# Programs compile once for all workers and tests; most of the suite's time would be spent on that.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Tests replace functions of ours, of which programs that were kept know nothing.
os.environ.setdefault("METASTEP_KEEP_PROGRAMS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")

import hypothesis
import jax
import numpy as np
import pytest

SEED = int(os.environ.get("METASTEP_TEST_SEED", "20"))

# Examples are derandomised so that CI is repeatable; METASTEP_TEST_SEED moves the other draws.
hypothesis.settings.register_profile("metastep", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("metastep")


def pytest_report_header() -> str:
    return f"METASTEP_TEST_SEED={SEED}"


_MOST_RESIDENT_BYTES = 4_000_000_000


@pytest.fixture(autouse=True, scope="module")
def few_programs_in_memory():
    """Forget compiled programs between modules once they fill a worker's memory; the cache on disk still has them."""
    yield
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc").exists() else 0
    if pages * os.sysconf("SC_PAGE_SIZE") > _MOST_RESIDENT_BYTES:
        jax.clear_caches()


@pytest.fixture(autouse=True)
def settings_stay():
    """Fail a test that leaves JAX set otherwise than it found it: those after it would compile other programs."""
    before = dict(jax.config.values)
    yield
    changed = {k: v for k, v in jax.config.values.items() if before[k] != v}
    for name in changed:
        jax.config.update(name, before[name])
    assert not changed, f"left changed: {changed}"


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator seeded by METASTEP_TEST_SEED."""
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def omniglot_root() -> Path:
    """The data root that holds omniglot/, or a skip that says where it was looked for."""
    candidates = [Path(__file__).parents[1] / ".." / "shared" / "data"]
    if "METASTEP_DATA" in os.environ:
        candidates.insert(0, Path(os.environ["METASTEP_DATA"]))
    for root in candidates:
        if (root / "omniglot").is_dir():
            return root.resolve()
    pytest.skip(f"no omniglot folder under {' or '.join(map(str, candidates))}")
