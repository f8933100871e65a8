"""Objects by their names: "package.module:name", in a user's modules too."""

from __future__ import annotations

import difflib
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from kshot.context import holding

load = cache(pkgutil.resolve_name)
"""The object that "module:name" names."""


PATHS = ("path", "users", "items", "encoder", "tokenizer", "folder")
"""Keys of sources, at any depth, whose values may be paths; besides those of files, and `domain` if it is JSON."""


def beside(folder: Path, options: Any, key: str = "") -> Any:
    """The options of a source, with paths that exist in the run file's folder and not in the working directory.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> (folder / "sales.csv").touch()
        >>> Path(beside(folder, {"kind": "table", "path": "sales.csv"})["path"]) == folder / "sales.csv"
        True
    """
    if isinstance(options, dict):
        return {name: beside(folder, value, "path" if key == "files" else str(name)) for name, value in options.items()}
    if isinstance(options, list):
        return [beside(folder, value, key) for value in options]
    is_path = isinstance(options, str) and (key in PATHS or (key == "domain" and options.endswith(".json")))
    if is_path and options and not os.path.exists(os.path.expanduser(options)) and (folder / options).exists():
        return str(folder / options)
    return options


_refusing: ContextVar[bool] = ContextVar("refusing", default=False)


@contextmanager
def refusing_imports() -> Iterator[None]:
    """A context in which `imported` imports nothing and raises ValueError, for run files of unknown origin.

    Modules of kshot are refused too, since their functions would be called with any arguments; but for that of sources
    that were given in Python (`app.in_memory`), which a learner is opened without.
    """
    with holding(_refusing, True):
        yield


def imported(path: str) -> Any:
    """The user's factory that `package.module:name` names; ValueError if there is none, or the module has an error."""
    if _refusing.get() and path != "kshot.app.in_memory:given":
        raise ValueError(
            f"it would import and run code, {path.partition(':')[0]}, which a run file of others must not: read that "
            "module, and say allow_import=True if you trust it"
        )
    return _imported(path)


@cache
def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(_where_it_failed(module, error)) from None
        raise ValueError(
            f"there is no module {error.name!r} in the run file's folder, in the working directory {Path.cwd()}, or "
            "among the installed packages"
        ) from None
    except Exception as error:
        raise ValueError(_where_it_failed(module, error)) from None
    if not hasattr(loaded, name):
        public = [word for word in vars(loaded) if not word.startswith("_")]
        raise ValueError(f"module {module} has no {name!r}{nearest(name, public)}")
    factory = getattr(loaded, name)
    return factory if callable(factory) else constant(factory)


def _where_it_failed(module: str, error: Exception) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    file, line = (frames[-1].filename, frames[-1].lineno) if len(frames) > 1 else (module, None)
    if isinstance(error, SyntaxError):
        file, line = error.filename or file, error.lineno
    return f"importing {module} failed: {type(error).__name__}: {error} ({file}, line {line})"


def make_importable(*folders: Path) -> None:
    """Let `package.module:factory` find modules in these folders, behind the installed ones."""
    sys.path.extend(path for path in map(str, map(Path.absolute, folders)) if path not in sys.path)


def constant(value: Any) -> Callable[[], Any]:
    return lambda: value


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence on an unknown word: the nearest known one, or all of them."""
    known = list(known)
    matches = difflib.get_close_matches(word, known, 1, 0.5)
    return f": did you mean {matches[0]!r}?" if matches else f"; known are {', '.join(known)}"
