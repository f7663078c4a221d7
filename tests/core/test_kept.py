"""Kept programs: read again they give the same bits, what is changed is another one, files may be in any state."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from metastep import _kept
from metastep._kept import keep_programs, kept_jit
from metastep.train import RunFolder, TrainConfig, learner, problem, step, train

pytest.importorskip("flatbuffers")


@pytest.fixture
def folder(tmp_path):
    keep_programs(tmp_path / "programs")
    yield tmp_path / "programs"
    keep_programs(None)


@pytest.fixture
def no_export(monkeypatch):
    """Whatever would have to be exported now is not: `jax.jit` itself runs it."""

    def refuse(*arguments):
        raise NotImplementedError("export")

    def forbid():
        monkeypatch.setattr("jax.export.export", refuse)

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


def test_functions_of_the_users_own_are_not_kept(folder):
    assert kept_jit(lambda x: 2 * x)(1.5) == 3.0
    assert not folder.exists()


def test_a_damaged_file_is_written_anew(folder):
    kept_jit(total)(X)
    (path,) = files(folder)
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"no pickle"):
        path.write_bytes(damage)
        assert kept_jit(total)(X) == jax.jit(total)(X)
        assert len(path.read_bytes()) == len(whole)


def test_where_nothing_can_be_written_everything_runs(tmp_path):
    (tmp_path / "file").write_text("in the way")
    keep_programs(tmp_path / "file" / "programs")
    try:
        assert kept_jit(total)(X) == jax.jit(total)(X)
    finally:
        keep_programs(None)


def test_what_cannot_be_exported_runs(folder, no_export):
    no_export()
    assert kept_jit(total)(X) == jax.jit(total)(X)
    assert not files(folder)


def test_within_a_traced_function_and_lowered_it_is_a_jitted_one(folder):
    assert jax.jit(lambda x: kept_jit(total)(x) + 1)(X) == jnp.sum(X) + 1
    assert not folder.exists()
    assert "stablehlo" in kept_jit(total).lower(jax.ShapeDtypeStruct(X.shape, X.dtype)).as_text()


def test_results_as_arguments_do_not_compile_anew(folder):
    program = kept_jit(jnp.sin)
    program(program(X))
    program(np.asarray(X))
    (one,) = program.programs.values()
    assert one.call._cache_size() == 1


def test_linear_algebra_is_there_for_programs_that_call_it(folder):
    matrix = jnp.diag(X) + 0.01
    np.testing.assert_array_equal(
        kept_jit(jnp.linalg.cholesky)(matrix), jnp.linalg.cholesky(matrix)
    )
    for function, platforms in ((jnp.linalg.cholesky, ("cpu",)), (jnp.sin, ("any",))):
        assert _kept._light(export.export(jax.jit(function))(matrix)).platforms == platforms


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


def run(out):
    """A run as in a process that has just started: rates, metrics."""
    step._RECENT.clear()
    learner._kept_init.cache_clear()
    problem._kept_split.cache_clear()
    config = TrainConfig(
        tasks="sinusoid", hidden=(4,), shots=2, queries=2, tasks_per_step=2, iterations=3, eval_tasks=4
    )  # fmt: skip
    train(config, RunFolder(out))
    timeless = []
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        timeless.append({k: v for k, v in row.items() if "second" not in k})
    return (out / "rates.json").read_text(), timeless


def test_a_run_is_the_same_to_the_bit_with_programs_not_kept_written_and_read(
    tmp_path, folder, no_export
):
    written = run(tmp_path / "written")
    count = len(files(folder))
    no_export()
    read = run(tmp_path / "read")
    keep_programs(None)
    plain = run(tmp_path / "plain")
    assert count >= 6  # the three of the rates, parameters, state, training
    assert read == written
    assert plain == written
