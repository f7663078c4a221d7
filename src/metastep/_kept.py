"""Compiled programs kept from one start of the command line to the next.

JAX's own cache saves compiling. But in order to ask it, a program is traced and lowered in Python first, which for a
small network takes as long as loading what was compiled. Here a program is found by what it is made from, and loaded
as it was compiled.
"""

import hashlib
import math
import os
import pickle
import platform
import re
import secrets
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jaxlib import xla_client

from metastep._compiler import TunedJit, is_traced
from metastep._spelled import PACKAGES, UnspellableError, spelled

# Old versions of our code and of other packages leave programs behind. This is room for a hundred starts.
_MOST_BYTES = 128 * 2**20
_FOLDER: list[Path] = []
_READER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read ahead")
_AHEAD: dict[str, "Future[_Program | None]"] = {}


def keep_programs(folder: Path | None) -> None:
    """Keep the programs of `kept_jit` here from now on; None, as it is at first, keeps none.

    Not for processes in which somebody replaces functions of ours: what a function finds in its module counts by the
    source on disk.
    """
    _FOLDER[:] = [folder] if folder else []
    _AHEAD.clear()
    _START.forget()


def read_ahead(start: str) -> None:
    """Begin to read, on a thread, the programs that the last start of this name used, in their order.

    Reading them needs little of Python, which has modules to import meanwhile. What they are for is not known yet:
    whoever asks for a program finds it by its name, or reads another. Those that this start uses are noted for the
    next one.
    """
    if not _FOLDER:
        return
    _START.begin(_FOLDER[0] / f"{_hash(start)}.start")
    if not _START.before:  # a start that computes nothing has no need of devices either
        return
    from jax.experimental import serialize_executable  # here, as imports on two threads can meet

    del serialize_executable
    jax.devices()
    for name in _START.before:
        _AHEAD[name] = _READER.submit(_read, _FOLDER[0] / name)


class _Start:
    """Names of the programs that the last start used, and those of this one so far."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.path: Path | None = None
        self.before: list[str] = []
        self.used: list[str] = []

    def begin(self, path: Path) -> None:
        self.forget()
        self.path = path
        with suppress(OSError, UnicodeDecodeError):
            lines = path.read_text().split()
            # It may have been written by anybody, and is not to lead elsewhere.
            self.before = [name for name in lines if _NAME.fullmatch(name)]

    def note(self, name: str) -> None:
        """A program is used; a start like the last one writes nothing."""
        if self.path is None or name in self.used:
            return
        self.used.append(name)
        if self.used != self.before[: len(self.used)]:
            with suppress(OSError):
                _put(self.path, "\n".join(self.used).encode())


_START = _Start()
_NAME = re.compile(r"[0-9a-f]+-[0-9a-f]+\.program")


def kept_jit(function: Callable, *, long_running: bool = False) -> Any:
    """`TunedJit` of a function, whose programs are kept where `keep_programs` says.

    A program serves again if function and arguments are spelled the same (`spelled`; of arguments, types and shapes
    count), and the sources of metastep, versions of packages, settings of JAX and XLA and the device are the same.
    Where one of these cannot be told, as with models of the user's own, or there are several devices, none is kept.
    What is kept is the machine's code that ran the first time, so that the numbers are the same to the bit.
    """
    return _Kept(TunedJit(function, long_running=long_running))


class _Kept:
    def __init__(self, jitted: TunedJit):
        self.function, self.jitted = jitted.function, jitted
        self.programs: dict[Any, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self._program(arguments)(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """As that of a jitted function: of the program that a call with these would run, to `compile()`."""
        return self._program(arguments).lower(*arguments)

    def _program(self, arguments: tuple) -> Any:
        if not _FOLDER or is_traced():
            return self.jitted
        leaves, structure = jax.tree.flatten(arguments)
        types = structure, tuple(map(_type_of, leaves))
        if types not in self.programs:
            self.programs[types] = self._get(arguments) or self.jitted
        return self.programs[types]

    def _get(self, arguments: tuple) -> "_Program | None":
        if (of := self._function_key()) is None:
            return None
        try:
            taken = _key(jax.tree.map(_type_in_words, arguments))
        except UnspellableError:
            return None
        path = _FOLDER[0] / f"{of}-{taken}.program"
        ahead = _AHEAD.pop(path.name, None)
        try:
            program = (ahead.result() if ahead else _read(path)) or _write(
                path, self.jitted, arguments
            )
        except Exception:
            return None
        if program:
            _START.note(path.name)
        return program

    def _function_key(self) -> str | None:
        """By what the programs of this function are known, here and now; None where that cannot be told."""
        if jax.device_count() > 1 or any(getattr(jax.config, name, False) for name in _WATCHING):
            return None
        try:
            return _key(self.function, _settings(), _surroundings())
        except UnspellableError:
            return None


class _Program:
    """A compiled program, and the structure of what it returns, pickled.

    A structure names classes, and unpickling it imports their modules. It is left to whoever calls the program: a
    thread that reads ahead while another imports would meet modules that are half there.
    """

    def __init__(self, compiled: Any, pickled: bytes):
        self.compiled, self.pickled = compiled, pickled

    @cached_property
    def results(self) -> Any:
        return jax.tree.structure(pickle.loads(self.pickled))

    def __call__(self, *arguments: Any) -> Any:
        return jax.tree.unflatten(self.results, self.compiled(*jax.tree.leaves(arguments)))

    def lower(self, *arguments: Any) -> "_Program":
        del arguments
        return self

    def compile(self) -> Any:
        return self.compiled


def _read(path: Path) -> _Program | None:
    """The program that lies there, if one does and can be read."""
    from jax.experimental import serialize_executable

    try:
        # Compressed, it has a sum to check: damaged code could do anything.
        kept = pickle.loads(zlib.decompress(path.read_bytes()))
        executable, taken, told, results, lapack = kept
        given, told = jax.tree.structure(((0,) * taken, {})), jax.tree.structure([0] * told)
        if lapack:
            _ready_lapack()
        compiled = serialize_executable.deserialize_and_load(
            executable, given, told, execution_devices=jax.devices()[:1]
        )
        return _Program(compiled, results)
    except Exception:
        return None


def _write(path: Path, jitted: TunedJit, arguments: tuple) -> _Program | None:
    """Compile a program and keep it if that is possible; its file is there whole or not at all."""
    from jax.experimental import serialize_executable

    leaves, taken = jax.tree.flatten(arguments)
    given = []

    def flat(*leaves: Any) -> list[Any]:
        results, structure = jax.tree.flatten(jitted.within(*jax.tree.unflatten(taken, leaves)))
        given[:] = [structure]
        return results

    # What JAX's own cache read cannot be written again (XLA forgets functions of it), and by this name it has none.
    flat.__name__ = f"{getattr(jitted.function, '__name__', 'flat')}_{secrets.token_hex(8)}"
    lowered = jax.jit(flat, compiler_options=jitted.options()).lower(*map(_shape_of, leaves))
    called = _called(lowered)
    if not all(name.startswith(_LAPACK) for name in called):
        return None
    results = given[0].num_leaves
    pickled = pickle.dumps(jax.tree.unflatten(given[0], [0] * results))
    with _not_cached_by_jax():
        program = _Program(lowered.compile(), pickled)
    try:
        executable, *_ = serialize_executable.serialize(program.compiled)
        kept = executable, len(leaves), results, pickled, bool(called)
        _put(path, zlib.compress(pickle.dumps(kept), level=1))
    except Exception:  # nowhere to write to, or a backend that cannot do it
        return program
    return program


@contextmanager
def _not_cached_by_jax() -> Iterator[None]:
    """Compile without leaving in JAX's own cache what nobody would find there."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


_LAPACK = "lapack_"


def _called(lowered: Any) -> set[str]:
    """Code outside the program that it calls: of the user's process, for callbacks, or of a library."""
    return set(re.findall(r"custom_call @\"?([\w.$]+)", lowered.as_text()))


@cache
def _ready_lapack() -> None:
    """JAX does this when it lowers a call of LAPACK, and reading a program it lowers nothing."""
    jax.jit(jax.numpy.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), "float32"))


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".draft")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(draft, path)
    _make_room(path.parent)


def _written(path: Path) -> float:
    """When; long ago for a file that another process has deleted."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _make_room(folder: Path) -> None:
    """Delete the programs that were written first, while there are too many."""
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=_written)
    excess = sum(path.stat().st_size for path in files) - _MOST_BYTES
    for path in files:
        if excess <= 0:
            return
        excess -= path.stat().st_size
        path.unlink(missing_ok=True)


def _type_of(leaf: Any) -> tuple:
    kind = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    return kind.shape, kind.dtype, getattr(kind, "weak_type", False)


def _type_in_words(leaf: Any) -> str:
    shape, dtype, weak = _type_of(leaf)
    return f"{dtype}{shape}{' weak' if weak else ''}"


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    shape, dtype, weak = _type_of(leaf)
    return jax.ShapeDtypeStruct(shape, dtype, weak_type=weak)


# With these, JAX has to see what a program does.
_WATCHING = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs", "jax_check_tracer_leaks")
# These say where compiled programs are and which, and not what they are.
_PLACES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def _key(*parts: Any) -> str:
    """The same for what is spelled the same."""
    return _hash(spelled(parts))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _settings() -> str:
    """Those of JAX, as they are now."""
    names = sorted(set(jax.config.values) - set(_PLACES))
    return repr([(name, getattr(jax.config, name, None)) for name in names])


@cache
def _surroundings() -> str:
    """Our sources, versions of what we use, the device and what its compiler was told."""
    sources, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        sources.update(f"{path.relative_to(folder)}:{len(content)}:".encode() + content)
    versions = [metadata.version(name) for name in PACKAGES if name != "metastep"]
    device = jax.devices()[0]
    flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
    told = versions, platform.python_version(), device.platform, device.device_kind
    return f"{sources.hexdigest()} {told} {device.client.platform_version} {_machine()} {flags}"


def _machine() -> int:
    """The kind of processor or accelerator, instruction sets included: one cannot run another's code."""
    try:
        return xla_client.get_topology_for_devices(jax.devices()).fingerprint()
    except (AttributeError, jax.errors.JaxRuntimeError) as error:  # not a function JAX documents
        raise UnspellableError("this device") from error
