"""Kept programs: read again they give the same bits, what is changed is another one, files may be in any state."""

import dataclasses
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from metastep import _kept
from metastep._kept import keep_programs, kept_jit
from metastep.train import RunFolder, TrainConfig, learner, load_tasks, problem, step, train
from metastep.train.rehearse import rehearsal


@pytest.fixture
def folder(tmp_path):
    keep_programs(tmp_path / "programs")
    yield tmp_path / "programs"
    keep_programs(None)


@pytest.fixture
def read_only(monkeypatch):
    """Whatever would have to be compiled now and kept is not: `jax.jit` itself runs it."""

    def forbid():
        monkeypatch.setattr(_kept, "_write", lambda *arguments: None)

    return forbid


X = jnp.linspace(0.1, 1.0, 5)
total = partial(jnp.sum, axis=0)


def files(folder):
    return sorted(folder.glob("*.program"))


def test_a_program_is_written_once_and_read_by_the_next_that_is_made_the_same(folder):
    expected = jax.jit(total)(X)
    assert kept_jit(total)(X) == expected
    (written,) = files(folder)
    before = written.stat().st_mtime_ns
    assert kept_jit(partial(jnp.sum, axis=0))(X) == expected
    assert files(folder) == [written]
    assert written.stat().st_mtime_ns == before


def test_what_is_read_is_the_program_and_not_the_function(folder):
    # The file of one program under the name of another: the other's results show that it is used.
    kept_jit(total)(X)
    (sums,) = files(folder)
    kept_jit(partial(jnp.prod, axis=0))(X)
    (products,) = set(files(folder)) - {sums}
    products.write_bytes(sums.read_bytes())
    assert kept_jit(partial(jnp.prod, axis=0))(X) == jnp.sum(X)


@pytest.mark.parametrize(
    "other", [X[:3], X.astype(jnp.float32), np.arange(5), X[None]], ids=["size", "dtype", "int", "rank"]
)  # fmt: skip
def test_other_shapes_and_types_are_other_programs(folder, other):
    program = kept_jit(total)
    program(X)
    np.testing.assert_array_equal(program(other), jax.jit(total)(other))
    assert len(files(folder)) == 2


@pytest.mark.parametrize("what", ["_surroundings", "_settings"])
def test_other_sources_or_settings_are_other_programs(folder, monkeypatch, what):
    kept_jit(total)(X)
    monkeypatch.setattr(_kept, what, lambda: "changed")
    kept_jit(total)(X)
    assert len(files(folder)) == 2


def test_settings_of_jax_count():
    before = _kept._settings()
    with jax.default_matmul_precision("highest"):
        assert _kept._settings() != before
    assert _kept._settings() == before


def test_a_change_in_our_sources_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(_kept, "__file__", str(tmp_path / "_kept.py"))
    told = []
    for content in ("x = 1", "x = 2"):
        (tmp_path / "one.py").write_text(content)
        told.append(_kept._surroundings.__wrapped__())
    assert told[0] != told[1]


@pytest.mark.parametrize("what", ["processor", "flags"])
def test_what_the_compiler_compiles_for_and_is_told_counts(monkeypatch, what):
    before = _kept._surroundings.__wrapped__()
    if what == "processor":
        monkeypatch.setattr(_kept, "_machine", lambda: 0)
    else:
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert _kept._surroundings.__wrapped__() != before


def test_functions_of_the_users_own_are_not_kept(folder):
    assert kept_jit(lambda x: 2 * x)(1.5) == 3.0
    assert not folder.exists()


def test_nothing_is_kept_for_a_device_that_jax_says_nothing_of(folder, monkeypatch):
    _kept._surroundings.cache_clear()
    monkeypatch.delattr("jaxlib.xla_client.get_topology_for_devices")
    assert kept_jit(total)(X) == jnp.sum(X)
    assert not folder.exists()


def test_a_damaged_file_is_written_anew(folder):
    kept_jit(total)(X)
    (path,) = files(folder)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for damage in (b"", whole[:middle], b"no program", flipped):
        path.write_bytes(damage)
        assert _kept._read(path) is None
        assert kept_jit(total)(X) == jax.jit(total)(X)
        assert _kept._read(path) is not None


def test_where_nothing_can_be_written_everything_runs(tmp_path):
    (tmp_path / "file").write_text("in the way")
    keep_programs(tmp_path / "file" / "programs")
    try:
        assert kept_jit(total)(X) == jax.jit(total)(X)
    finally:
        keep_programs(None)


def test_what_cannot_be_serialised_runs(folder, monkeypatch):
    def refuse(compiled):
        raise ValueError("no serialisation")

    monkeypatch.setattr("jax.experimental.serialize_executable.serialize", refuse)
    assert kept_jit(total)(X) == jax.jit(total)(X)
    assert not files(folder)


def test_what_jax_has_cached_is_compiled_anew_to_be_kept(folder, tmp_path):
    # XLA loses functions of a program that it has read itself when that is written again.
    cached = tmp_path / "cached"
    with _caching(cached):
        function = partial(jnp.linspace, 0.0, num=5)
        expected = jax.jit(function)(2.0)
        for _ in range(2):
            for path in files(folder):
                path.unlink()
            kept_jit(function)(2.0)
            np.testing.assert_array_equal(kept_jit(function)(2.0), expected)
        assert len(list(cached.glob("*-cache"))) == 1


@contextmanager
def _caching(folder):
    """JAX's own cache, of everything, in this folder."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_programs_that_call_back_into_python_are_not_kept(folder, capfd):
    # What they call lies in this process.
    for _ in range(2):
        kept_jit(partial(jax.debug.print, "called"))()
    jax.effects_barrier()
    assert capfd.readouterr().out == "called\n" * 2
    assert not folder.exists()


def test_within_a_traced_function_it_is_a_jitted_one(folder):
    assert jax.jit(lambda x: kept_jit(total)(x) + 1)(X) == jnp.sum(X) + 1
    assert not folder.exists()


def test_lowered_from_shapes_it_is_the_program_that_a_call_runs(folder):
    program = kept_jit(total)
    lowered = program.lower(jax.ShapeDtypeStruct(X.shape, X.dtype))
    assert lowered.compile().memory_analysis().argument_size_in_bytes == X.nbytes
    assert program(X) == jnp.sum(X)
    assert len(program.programs) == 1


def test_results_host_arrays_and_numbers_are_arguments(folder):
    program = kept_jit(jnp.sin)
    expected = np.asarray(jax.jit(jnp.sin)(X))
    for given in (X, np.asarray(X), jax.device_put(X, jax.devices()[0]), program(jnp.arcsin(X))):
        np.testing.assert_array_equal(program(given)[0], jnp.sin(given[0]))
    np.testing.assert_array_equal(program(X), expected)
    assert len(files(folder)) == 1
    assert program(0.5) == jax.jit(jnp.sin)(0.5)


_CHOLESKY = """
import sys, pathlib, jax, jax.numpy as jnp
from metastep._kept import keep_programs, kept_jit
keep_programs(pathlib.Path(sys.argv[1]))
program = kept_jit(jnp.linalg.cholesky)
print(program(jnp.diag(jnp.linspace(1.0, 4.0, 2))).sum().item())
"""


def test_linear_algebra_is_there_in_a_process_that_only_reads(tmp_path):
    told, times = [], []
    for _ in range(2):
        command = [sys.executable, "-c", _CHOLESKY, str(tmp_path)]
        told.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        (one,) = files(tmp_path)
        times.append(one.stat().st_mtime_ns)
    assert told == ["3.0\n"] * 2
    assert times[0] == times[1]


def start_again(folder, name):
    """As a new process with this command."""
    keep_programs(folder)
    _kept.read_ahead(name)


def test_a_start_reads_ahead_what_the_last_of_its_name_used(folder, monkeypatch):
    threads, read = [], _kept._read

    def noting(path):
        threads.append(threading.current_thread())
        return read(path)

    start_again(folder, "a")
    assert kept_jit(total)(X) == kept_jit(total)(X) == jnp.sum(X)
    (note,) = folder.glob("*.start")
    before = note.stat().st_mtime_ns
    monkeypatch.setattr(_kept, "_read", noting)

    start_again(folder, "a")
    program = kept_jit(total)
    assert program(X) == program(X) == jnp.sum(X)
    assert len(threads) == 1
    assert threads[0] is not threading.main_thread()
    assert note.stat().st_mtime_ns == before  # a start like the last has nothing to write

    start_again(folder, "b")
    assert kept_jit(total)(X) == jnp.sum(X)
    assert threads[1:] == [threading.main_thread()]


def test_a_start_without_a_note_leaves_devices_alone(folder, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: pytest.fail("looked at devices"))
    start_again(folder, "a")
    assert not folder.exists()


def test_a_start_that_uses_other_programs_notes_those(folder):
    start_again(folder, "a")
    kept_jit(total)(X)
    kept_jit(total)(X[:2])
    start_again(folder, "a")
    kept_jit(total)(X[:2])
    kept_jit(total)(X[:3])
    (note,) = folder.glob("*.start")
    used = note.read_text().split()
    keep_programs(folder)
    assert len(used) == 2
    for name, given in zip(used, (X[:2], X[:3]), strict=True):
        assert _kept._read(folder / name)(given) == jnp.sum(given)


def test_what_was_read_ahead_in_vain_does_no_harm(folder, tmp_path):
    start_again(folder, "a")
    kept_jit(total)(X)
    ((path,), (note,)) = files(folder), folder.glob("*.start")
    start_again(folder, "a")
    assert kept_jit(total)(X[:2]) == jnp.sum(X[:2])  # other arguments
    path.write_bytes(b"no program")
    start_again(folder, "a")
    assert kept_jit(total)(X) == jnp.sum(X)
    # Another process may make room meanwhile.
    path.unlink()
    path.symlink_to(folder / "gone")
    start_again(folder, "a")
    elsewhere = tmp_path / "elsewhere.program"
    for damage in (b"\xff\xfe\x00", f"../elsewhere.program {elsewhere}".encode()):
        note.write_bytes(damage)
        start_again(folder, "a")
        assert not _kept._AHEAD
        assert kept_jit(total)(X) == jnp.sum(X)
    note.unlink()
    note.mkdir()
    start_again(folder, "a")
    assert kept_jit(total)(X) == jnp.sum(X)
    keep_programs(None)
    _kept.read_ahead("a")
    assert not _kept._AHEAD


_READS_OPTAX = """
import sys, pathlib
from metastep import _kept
(path,) = pathlib.Path(sys.argv[1]).glob("*.program")
program = _kept._read(path)
assert program is not None
print("optax" in sys.modules)
print(program.results, "optax" in sys.modules)
"""


def test_reading_a_program_imports_no_module_of_what_it_returns(folder):
    # The thread that reads ahead would meet the main one, which imports the same modules.
    kept_jit(optax.adam(0.1).init)(X)
    command = [sys.executable, "-c", _READS_OPTAX, str(folder)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("False\n")
    assert "ScaleByAdamState" in told
    assert told.endswith("True\n")


def test_the_oldest_programs_make_room(folder, monkeypatch):
    program = kept_jit(total)
    for size in (2, 3, 4):
        program(X[:size])
    assert len(files(folder)) == 3
    monkeypatch.setattr(_kept, "_MOST_BYTES", sum(p.stat().st_size for p in files(folder)))
    newest = max(files(folder), key=lambda p: p.stat().st_mtime_ns)
    program(X)
    assert newest in files(folder)
    assert len(files(folder)) < 4


def as_in_a_new_process():
    """Forget the programs that are in memory."""
    step._RECENT.clear()
    learner._kept_init.cache_clear()
    problem._kept_split.programs.clear()


def run(out, **options):
    """A run as in a process that has just started: rates, metrics."""
    as_in_a_new_process()
    config = TrainConfig(
        tasks="sinusoid", hidden=(4,), shots=2, queries=2, tasks_per_step=2, iterations=3, eval_tasks=4
    )  # fmt: skip
    train(dataclasses.replace(config, **options), RunFolder(out))
    timeless = []
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        timeless.append({k: v for k, v in row.items() if "second" not in k})
    return (out / "rates.json").read_text(), timeless


def test_a_run_is_the_same_to_the_bit_with_programs_not_kept_written_and_read(
    tmp_path, folder, read_only, monkeypatch
):
    _kept.read_ahead("run")
    written = run(tmp_path / "written")
    count = len(files(folder))
    read_only()
    threads, kept_read = [], _kept._read
    monkeypatch.setattr(
        _kept, "_read", lambda p: threads.append(threading.current_thread()) or kept_read(p)
    )
    _kept.read_ahead("run")
    read = run(tmp_path / "read")
    assert len(threads) >= count
    assert threading.main_thread() not in threads
    assert len(step._RECENT[0][1].program.programs) == 1  # of rehearsals and run
    keep_programs(None)
    plain = run(tmp_path / "plain")
    assert count >= 6  # the three of the rates, parameters, state, training
    assert read == written
    assert plain == written


DEFAULTS = {"optimizer": "relative-adam", "schedule": "until-flat"}


@pytest.mark.parametrize("options", [{"seed": 1}, {"iterations": 5}, {"meta_lr": 0.02}], ids=str)
def test_seed_length_and_meta_rate_are_data_and_no_other_program(tmp_path, folder, options):
    run(tmp_path / "first", **DEFAULTS)
    written = files(folder)
    run(tmp_path / "second", **DEFAULTS | options)
    assert files(folder) == written


def test_a_rehearsal_at_another_measured_rate_is_no_other_program(folder):
    config = TrainConfig(
        tasks="sinusoid", hidden=(4,), shots=2, queries=2, tasks_per_step=2, iterations=9
    )
    task_set = load_tasks(config)
    config = problem.filled(config, task_set.description)
    as_in_a_new_process()
    rehearsal(config, task_set, 0.01, 0.1, 4)(0.01)
    written = files(folder)
    as_in_a_new_process()
    rehearsal(config, task_set, 0.02, 0.1, 4)(0.06)
    assert files(folder) == written
