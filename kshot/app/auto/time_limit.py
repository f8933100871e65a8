"""A time limit on code that cannot be stopped by itself, such as the fit of a baseline."""

from __future__ import annotations

import inspect
import signal
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

_TORCH, _STANDARD = str(Path(torch.__file__).parent), (sysconfig.get_path("stdlib"), "<frozen ")
_HALF_DONE = {"__enter__", "__exit__", "__del__"}
TIMER, SIGNAL = (signal.ITIMER_REAL, signal.SIGALRM) if hasattr(signal, "setitimer") else (0, 0)
"""What measures the time: that of the clock."""
_AGAIN = 5.0
"""Seconds after which it is raised again, as Python ignores exceptions in some places, such as callbacks."""


class _TimeIsUp(BaseException):
    """Raised in the code that is interrupted: none that catches any `Exception` keeps it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """A context that raises TimeoutError after a time, in the main thread of systems with timers by signals.

    An exception from a signal may be raised at any place. It is raised only where nothing is left half done: not while
    a module is imported, not in the standard library or in PyTorch, and not while a context is entered or left, which
    could leave gradients switched off for the rest of the process. Where the time ends at such a place, the next
    function that is called elsewhere raises it. Compiled code that called the interrupted function may turn it into an
    exception of its own, as NumPy does; such a one is raised as TimeoutError, too.

    Example:
        >>> with time_limit(0.01):
        ...     while True:
        ...         pass
        Traceback (most recent call last):
        TimeoutError
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    profile, outer = sys.getprofile(), sys._getframe(2)  # of the `with` statement, above that of contextlib
    over = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal over
        over = True
        if _may_raise(frame, outer):
            raise _TimeIsUp
        sys.setprofile(raise_later)

    def raise_later(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and _may_raise(frame, outer):
            sys.setprofile(profile)
            raise _TimeIsUp

    before = signal.signal(SIGNAL, interrupt)
    signal.setitimer(TIMER, max(seconds, 0.001), _AGAIN)
    try:
        yield
    except _TimeIsUp:
        raise TimeoutError from None
    except Exception as error:
        if over:
            raise TimeoutError from error
        raise
    finally:
        signal.setitimer(TIMER, 0)
        signal.signal(SIGNAL, before)
        sys.setprofile(profile)


def _may_raise(frame: FrameType | None, outer: FrameType) -> bool:
    """Whether an exception in a frame, which was called from `outer`, leaves nothing half done."""
    if frame is None or frame.f_code.co_flags & inspect.CO_GENERATOR:  # one that is deleted ignores exceptions
        return False
    file = frame.f_code.co_filename
    if file.startswith(_TORCH) or (file.startswith(_STANDARD) and "-packages" not in file):
        return False
    while frame is not None and frame is not outer:
        if frame.f_code.co_name in _HALF_DONE or frame.f_code.co_filename.startswith("<frozen importlib"):
            return False
        frame = frame.f_back
    return True
