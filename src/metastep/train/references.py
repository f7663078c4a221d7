"""`FILE.py:NAME` and `package.module:NAME`: code of the user's own, named where only text can be said."""

import functools
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from metastep._errors import DataError, InputError, UserError

HANDED_OVER = " (handed over in Python)"
"""How the record of a run ends the name of an object that nothing but the object itself can stand for."""


def is_own(choice: Any) -> bool:
    """Whether an option is an object, or text that stands for one, rather than a name of metastep's or a path."""
    return not isinstance(choice, str) or choice.endswith(HANDED_OVER) or is_reference(choice)


def is_reference(text: str) -> bool:
    """Whether text names something in a Python file or module; a path that exists is a path."""
    place, colon, name = text.rpartition(":")
    is_code = place.endswith(".py") or all(part.isidentifier() for part in place.split("."))
    return bool(colon) and is_code and name.isidentifier() and not Path(text).exists()


def load_reference(text: str) -> Any:
    """What a reference names.

    Raises
    ------
    InputError
        When the file or module cannot be found or run, or has no such name.
    """
    place, _, name = text.rpartition(":")
    module = _module(place)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise InputError(f"{place} has no {name!r}; it has {', '.join(public) or 'nothing'}")
    return getattr(module, name)


@functools.cache
def _module(place: str) -> ModuleType:
    """Import a file, beside which others may lie that it imports, or a module by its dotted name."""
    path = Path(place)
    is_file = place.endswith(".py")
    folder = str(path.parent.resolve() if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if is_file and not path.is_file():
        raise DataError(f"{place} does not exist; give the Python file that your code is in")
    with telling(f"loading {place}"):
        if not is_file:
            return importlib.import_module(place)
        name = f"_own_{path.stem}"  # a file may be called as a module of the library is
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Turn an error in the user's own code into one line: what was being done, what went wrong and where."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        lines = message.strip().splitlines()
        text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise InputError(f"{what} failed: {text}{_place(error)}") from error


def _place(error: Exception) -> str:
    """The last line on the way to an error that is in no installed package."""
    if isinstance(error, SyntaxError):
        return f" ({Path(error.filename or '').name}, line {error.lineno})"
    installed = (str(Path(__file__).parents[1]), sys.base_prefix, "<")
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename and not frame.filename.startswith(installed)
    ]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
