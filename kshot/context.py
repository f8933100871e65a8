"""A value that holds within a context."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Value = TypeVar("Value")


@contextmanager
def holding(variable: ContextVar[Value], value: Value) -> Iterator[None]:
    """A context in which a variable has a value, for one thread.

    Example:
        >>> depth = ContextVar("depth", default=0)
        >>> with holding(depth, 1):
        ...     depth.get()
        1
        >>> depth.get()
        0
    """
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
