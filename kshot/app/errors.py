"""How commands end: exit codes, sentences for errors, and a file for those that are faults of kshot.

| code | meaning |
| --- | --- |
| 0 | done; of a run: the target is met |
| 1 | the target is missed |
| 2 | the input cannot be used, or a part of it: a sentence says what to change |
| 3 | an audit failed: the figure is not to be trusted |
| 4 | a fault of kshot; a file has what a report of it needs |
| 5 | the disk or the memory is full |
| 130 | interrupted |
| 143 | ended by SIGTERM, as before a machine is taken away; `--resume` continues |
"""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
import traceback
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from kshot.free_memory import out_of_memory

INVALID, FAULT, FULL = 2, 4, 5
INTERRUPTED, STOPPED = 130, 143
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG}
_PACKAGE = str(Path(__file__).resolve().parents[1])


def exit_code(error: Exception) -> int:
    """The exit code for an error that ended a command.

    Errors that kshot raises itself, and those of files, are about the input. Other errors of other libraries are faults
    of kshot, which should have refused what it passed to them.
    """
    if _is_full(error):
        return FULL
    if isinstance(error, OSError | UnicodeError) or type(error).__module__.startswith(("polars.", "yaml.")):
        return INVALID
    if isinstance(error, ValueError | RuntimeError | TypeError | ImportError) and _is_ours(error):
        return INVALID
    return FAULT


def sentence(error: Exception) -> str:
    """What to tell about an error: its message, and for a fault of kshot the file that holds the traceback."""
    said = " ".join(str(error).split()) or type(error).__name__
    code = exit_code(error)
    if code == FAULT:
        return (
            f"a fault of kshot, which should not have happened ({type(error).__name__}: {said}); please report it with "
            f"{_write(error)}"
        )
    if isinstance(error, OSError) and error.filename is not None and not _is_ours(error):
        said = f"{error.filename}: {error.strerror}"
    if code == FULL:
        return f"the disk or the memory is full: {said}"
    if isinstance(error, OSError):
        return said
    return str(error) or said


def _is_full(error: BaseException | None) -> bool:
    """Whether an error, or the one that it was made of, says that there is no more disk or memory."""
    if error is None:
        return False
    full = isinstance(error, OSError) and error.errno in _FULL
    return full or out_of_memory(error) or _is_full(error.__cause__)


def _is_ours(error: Exception) -> bool:
    """Whether an error was raised by a line of kshot."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and os.path.realpath(frames[-1].filename).startswith(_PACKAGE)


def _write(error: Exception) -> str:
    """Write the traceback, the command and the versions to a new file, and return its path."""
    about = [
        f"kshot {version('kshot')}, torch {version('torch')}, Python {platform.python_version()}",
        platform.platform(),
        f"command: kshot {' '.join(sys.argv[1:])}",
        "",
        *traceback.format_exception(error),
    ]
    try:
        handle, name = tempfile.mkstemp(prefix="kshot-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n".join(about))
    except OSError:
        sys.stderr.write("\n".join(about))
        return "the traceback above"
    return name


class Patient:
    """A stream whose reader may end, as in `kshot run … | head -1`: what follows is written to nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._to_nowhere()
            return len(text)

    def flush(self) -> None:
        """Flush what was written, or drop it."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._to_nowhere()

    def _to_nowhere(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def prepare_streams() -> None:
    """Let neither what the terminal cannot show, nor a reader of the output that ends, be a reason to end."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = Patient(sys.stdout)
