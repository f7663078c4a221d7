"""Traced programs kept from one start of the command line to the next.

JAX's own cache saves compiling. But in order to ask it, a program is traced and lowered in Python first, which for a
small network takes longer than loading what was compiled. Here a program is found by what it is made from, as
StableHLO (`jax.export`), and then handed to JAX, which compiles it or finds it compiled.
"""

import dataclasses
import hashlib
import os
import pickle
import platform
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from jax.core import Tracer

from metastep._spelled import PACKAGES, UnspellableError, spelled

# Old versions of our code and of other packages leave programs behind. This is room for a thousand.
_MOST_BYTES = 128 * 2**20
_FOLDER: list[Path] = []


def keep_programs(folder: Path | None) -> None:
    """Keep the programs of `kept_jit` here from now on; None, as it is at first, keeps none.

    Not for processes in which somebody replaces functions of ours: what a function finds in its module counts by the
    source on disk. Without flatbuffers, which `jax.export` needs, none are kept either.
    """
    _FOLDER[:] = [folder] if folder and find_spec("flatbuffers") else []


def kept_jit(function: Callable) -> Any:
    """`jax.jit(function)` for arrays, whose programs are kept where `keep_programs` says.

    A program serves again if function and arguments are spelled the same (`spelled`; of arguments, types and shapes
    count), and the sources of metastep, versions of packages, settings of JAX and devices are the same. Where one of
    these cannot be told, as with models of the user's own, or there are several devices, none is kept. The first time
    too it is the program as it will be read that runs, so that the numbers are the same to the bit.
    """
    return _Kept(function)


class _Kept:
    def __init__(self, function: Callable):
        self.function, self.jitted = function, jax.jit(function)
        self.programs: dict[Any, Any] = {}

    def __call__(self, *arguments: Any) -> Any:
        return self._program(arguments)(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """As that of a jitted function: of the program that a call with these would run."""
        return self._program(arguments).lower(*arguments)

    def _program(self, arguments: tuple) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        if not _FOLDER or any(isinstance(leaf, Tracer) for leaf in leaves):
            return self.jitted
        types = tuple(map(_type_of, leaves))
        if (structure, types) not in self.programs:
            self.programs[structure, types] = self._get(arguments, structure, types) or self.jitted
        return self.programs[structure, types]

    def _get(self, arguments: tuple, structure: Any, types: tuple) -> "_Program | None":
        key = _key(self.function, jax.tree.unflatten(structure, types))
        if key is None:
            return None
        path = _FOLDER[0] / f"{key}.program"
        try:
            return _read(path) or _write(path, self.jitted, arguments)
        except Exception:
            return None


class _Program:
    """A program that was exported, and the structure of what it returns."""

    def __init__(self, exported: bytearray, results: Any):
        from jax import export

        self.call = jax.jit(_light(export.deserialize(exported)).call)
        self.results = jax.tree.structure(results)

    def __call__(self, *arguments: Any) -> Any:
        # Results are tied to their device, and JAX compiles anew for other ties: so all arguments are tied to it.
        leaves = jax.device_put(jax.tree.leaves(arguments), jax.devices()[0])
        return jax.tree.unflatten(self.results, self.call(*leaves))

    def lower(self, *arguments: Any) -> Any:
        return self.call.lower(*jax.tree.leaves(arguments))


def _light(exported: Any) -> Any:
    """A program that is called without loading LAPACK, if it has no use for it.

    JAX gets LAPACK ready for all that was exported for CPUs, which imports scipy: a tenth of a start. So the program
    does not say that it is for CPUs, and is not asked; `_key` has the platform.
    """
    from jax import export

    if exported.platforms != ("cpu",) or b"lapack" in exported.mlir_module_serialized:
        return exported
    unchecked = *exported.disabled_safety_checks, export.DisabledSafetyCheck.platform()
    return dataclasses.replace(exported, platforms=("any",), disabled_safety_checks=unchecked)


def _read(path: Path) -> _Program | None:
    """The program that lies there, if one does and can be read."""
    try:
        return _Program(*pickle.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except Exception:
        return None


def _write(path: Path, jitted: Any, arguments: tuple) -> _Program:
    """Export a program; its file is there whole or not at all."""
    from jax import export

    leaves, taken = jax.tree.flatten(arguments)
    given = []

    def flat(*leaves: Any) -> list[Any]:
        results, structure = jax.tree.flatten(jitted(*jax.tree.unflatten(taken, leaves)))
        given[:] = [structure]
        return results

    flat.__name__ = getattr(jitted, "__name__", "flat")
    exported = bytearray(export.export(jax.jit(flat))(*leaves).serialize())
    content = exported, jax.tree.unflatten(given[0], [0] * given[0].num_leaves)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".draft")
    with os.fdopen(handle, "wb") as file:
        pickle.dump(content, file)
    os.replace(draft, path)
    _make_room(path.parent)
    return _Program(*content)


def _make_room(folder: Path) -> None:
    """Delete the programs that were written first, while there are too many."""
    files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    excess = sum(path.stat().st_size for path in files) - _MOST_BYTES
    for path in files:
        if excess <= 0:
            return
        excess -= path.stat().st_size
        path.unlink(missing_ok=True)


def _type_of(leaf: Any) -> str:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return f"{leaf.dtype}{leaf.shape}"
    kind = jax.typeof(leaf)
    return f"{kind.dtype}{kind.shape}{' weak' if getattr(kind, 'weak_type', False) else ''}"


# With these, JAX has to see what a program does.
_WATCHING = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs", "jax_check_tracer_leaks")
# These say where compiled programs are and which, and not what they are.
_PLACES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


def _key(function: Callable, arguments: Any) -> str | None:
    """By what a program is known; None where that cannot be told."""
    if jax.device_count() > 1 or any(getattr(jax.config, name, False) for name in _WATCHING):
        return None
    try:
        made_from = spelled((function, arguments))
    except UnspellableError:
        return None
    return hashlib.sha256(f"{made_from}\n{_settings()}\n{_surroundings()}".encode()).hexdigest()


def _settings() -> str:
    """Those of JAX, as they are now."""
    names = sorted(set(jax.config.values) - set(_PLACES))
    return repr([(name, getattr(jax.config, name, None)) for name in names])


@cache
def _surroundings() -> str:
    """Our sources, versions of what we use, and the device."""
    sources, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        sources.update(f"{path.relative_to(folder)}:{len(content)}:".encode() + content)
    versions = [metadata.version(name) for name in PACKAGES if name != "metastep"]
    device = jax.devices()[0]
    told = versions, platform.python_version(), device.platform, device.device_kind
    return f"{sources.hexdigest()} {told}"
