"""A signal to end, such as SIGTERM, lets a training end after the present step, and anything else end at once.

Clusters and spot machines send it some seconds before they kill. Handlers of signals belong to the process: the command
line installs them by `stopping`, and the outer loop asks `is_stopping` before each step. Without `stopping`, nothing of
this does anything.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""The signals by which schedulers say that a process will be killed; SLURM sends the one that --signal names."""


class Stopped(BaseException):
    """The process was asked to end by a signal, whose name is the message; no error that anything recovers from."""


class _Request:
    """What was asked of this process.

    Attributes:
        process: its number; a process that was forked from it ends as without a handler.
        signal: name of the signal that came, "" before.
        waiting: number of contexts within one another in which a signal raises nothing.
    """

    def __init__(self) -> None:
        self.process, self.signal, self.waiting = os.getpid(), "", 0


_requests: list[_Request] = []  # that of the innermost `stopping` is the last


@contextmanager
def _errors_after(request: _Request) -> Iterator[None]:
    """A context whose errors, if a signal came, are effects of it, and raise `Stopped`."""
    try:
        yield
    except Exception as error:
        if request.signal:
            raise Stopped(request.signal) from error
        raise


@contextmanager
def stopping(again: Callable[[int, FrameType | None], Any] | signal.Handlers = signal.SIG_DFL) -> Iterator[None]:
    """A context in which a signal to end raises `Stopped`: at once, or after the step of a loop that waits for its end.

    An error after the signal counts as an effect of it, as where another process of the run ended first. The handlers
    are those from before afterwards. Only the main thread can install handlers; elsewhere this does nothing.

    Args:
        again: the handler of a second signal; by default it ends the process.

    Raises:
        Stopped: a signal came.

    Example:
        >>> with stopping():
        ...     signal.raise_signal(signal.SIGTERM)
        Traceback (most recent call last):
        kshot.training.stopping.Stopped: SIGTERM
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    request = _Request()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != request.process:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        request.signal = signal.Signals(number).name
        for each in SIGNALS:
            signal.signal(each, again)
        if not request.waiting:
            raise Stopped(request.signal)

    before = {each: signal.signal(each, handle) for each in SIGNALS}
    _requests.append(request)
    try:
        with _errors_after(request):
            yield
    finally:
        _requests.remove(request)
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)


def is_stopping() -> bool:
    """Whether a signal to end came."""
    return bool(_requests and _requests[-1].signal)


def stop() -> None:
    """Raise `Stopped`, for a signal to this process or to another one of the run."""
    raise Stopped(_requests[-1].signal if is_stopping() else "a signal to another process")


@contextmanager
def step_by_step() -> Iterator[None]:
    """A context of steps that no signal interrupts: between them, the loop asks `is_stopping`, and calls `stop`.

    A signal after the last step, or with an error, raises `Stopped` at the end of the context.
    """
    request = _requests[-1] if _requests else _Request()
    request.waiting += 1
    try:
        with _errors_after(request):
            yield
    finally:
        request.waiting -= 1
    if request.signal and not request.waiting:
        raise Stopped(request.signal)
