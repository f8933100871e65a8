"""One call of the command line within this process, and whether something leaked through it.

A leak is an exit code that means a fault of kshot, an error that no line of kshot raised, or a call of more than
`SECONDS` of the processor. Errors of files, which name the file, are no leaks.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import typer

from kshot.app import cli, errors
from kshot.learners.pooling import partial_pooling

SECONDS = 10
MOST_GROUPS, MOST_ROWS = 30, 600
"""What `partial_pooling` is fitted to at most: its fit to the 1,000 groups it takes otherwise is long, and no hang."""
CODES = {0, 1, errors.INVALID, 3, errors.FULL, 130}
DATA = "@data@"
"""What stands for the folder of the prepared data in words and files of a case."""


class Case(NamedTuple):
    """A call: the words of the command, and the files that lie in the working directory, by their names."""

    words: list[str]
    files: dict[str, bytes]

    def to_json(self) -> str:
        """The case as text, for the kept corpus."""
        files = {name: content.decode("latin-1") for name, content in self.files.items()}
        return json.dumps({"words": self.words, "files": files}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Case:
        """The case of `to_json`."""
        read = json.loads(text)
        return cls(read["words"], {name: content.encode("latin-1") for name, content in read["files"].items()})


class Outcome(NamedTuple):
    """How a call ended; `leak` says what leaked, or is empty."""

    code: int
    out: str
    err: str
    seconds: float
    leak: str


class TooLong(BaseException):
    """The call took longer than it may."""


def call(case: Case, data: Path, seconds: float = SECONDS) -> Outcome:
    """Call the command line in a new folder with the files of a case, for up to some seconds."""
    folder = Path(tempfile.mkdtemp(prefix="kshot-input-"))
    try:
        for name, content in case.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content.replace(DATA.encode(), str(data).encode()))
        return _call([word.replace(DATA, str(data)) for word in case.words], folder, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def call_twice_if_late(case: Case, data: Path) -> tuple[Outcome, bool]:
    """Call a case, again if it took too long, and whether it did: a first call imports, and neighbours slow it down."""
    outcome = call(case, data)
    late = outcome.leak == LATE
    return (call(case, data) if late else outcome), late


LATE = "took too long"


def _call(words: list[str], folder: Path, limit: float) -> Outcome:
    raised: list[Exception] = []
    out, err, before = io.StringIO(), io.StringIO(), (sys.argv, Path.cwd(), list(sys.path))
    sys.argv = ["kshot", *words]
    os.chdir(folder)
    started, code, late = time.process_time(), 0, False
    try:
        with (
            _recorded(raised),
            _short_fits(),
            _made_once(),
            _deadline(limit),
            _quiet(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            cli.main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except TooLong:
        late = True
    except BaseException as error:
        raised.append(error)  # type: ignore[arg-type]
        code = -1
    finally:
        os.chdir(before[1])
        sys.argv, sys.path[:] = before[0], before[2]
    seconds = time.process_time() - started
    late = late or seconds > limit
    return Outcome(code, out.getvalue(), err.getvalue(), seconds, _leak(code, raised, late, err.getvalue()))


def _leak(code: int, raised: list[Exception], late: bool, err: str) -> str:
    if late:
        return LATE
    error = raised[-1] if raised else None
    where = _where(error) if error else ""
    if code not in CODES:
        return f"exit code {code}: {type(error).__name__}: {error} {where}"
    if error is not None and code != errors.FULL and not (_names_a_file(error) or errors._is_ours(error)):
        return f"an error of a library: {type(error).__name__}: {error} {where}"
    if "Traceback (most recent call last)" in err:
        return f"a traceback: {err[-500:]}"
    return "" if error is None or str(error).strip() else f"an error without a sentence {where}"


def _where(error: BaseException) -> str:
    return "at " + " < ".join(
        f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[:-6:-1]
    )


def _names_a_file(error: Exception) -> bool:
    return isinstance(error, OSError) and error.filename is not None


@contextlib.contextmanager
def _recorded(raised: list[Exception]) -> Iterator[None]:
    """Keep each error that the command line turns into a sentence."""
    original = errors.exit_code

    def recording(error: Exception) -> int:
        raised.append(error)
        return original(error)

    errors.exit_code = recording
    environment = dict(os.environ)
    scratch = tempfile.tempdir
    try:
        with tempfile.TemporaryDirectory() as folder:
            tempfile.tempdir = folder  # where files about faults are written
            yield
    finally:
        tempfile.tempdir = scratch
        errors.exit_code = original
        _restore(environment)


def _restore(environment: Mapping[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]


@contextlib.contextmanager
def _short_fits() -> Iterator[None]:
    before = partial_pooling.MOST_GROUPS, partial_pooling.MOST_ROWS
    partial_pooling.MOST_GROUPS, partial_pooling.MOST_ROWS = MOST_GROUPS, MOST_ROWS
    try:
        yield
    finally:
        partial_pooling.MOST_GROUPS, partial_pooling.MOST_ROWS = before


@contextlib.contextmanager
def _made_once() -> Iterator[None]:
    """Use one command line in all calls: to make it takes as long as most calls."""
    app = cli.app
    cli.app = _command_line(app)
    try:
        yield
    finally:
        cli.app = app


_command_line = cache(typer.main.get_command)


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """End what takes `seconds` of the processor, or waits for ten times as long."""

    def ring(*_: object) -> None:
        raise TooLong

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 10 * seconds))
    before = [signal.signal(number, ring) for number, _, _ in timers]
    for _, timer, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Warnings are not judged here, and have no effect on later calls."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
