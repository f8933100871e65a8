"""Named ranges of a training, such as its steps, which `kshot run --profile` measures; without it they cost nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal, Protocol

from kshot.context import holding

Name = Literal[
    "outer step",
    "tasks",
    "inner loop",
    "backward",
    "recorded step",
    "optimizer",
    "all-reduce",
    "validation",
    "validation task",
    "adapt",
    "predict",
    "checkpoint",
]
NAMES: dict[Name, str] = {
    "tasks": "making tasks",
    "inner loop": "inner loop and outer loss, forward",
    "backward": "their backward pass",
    "recorded step": "a recorded step, forward and backward (traced, compiled)",
    "optimizer": "clipping and the optimizer",
    "all-reduce": "waiting for other processes",
    "outer step": "the rest of an outer step",
    "adapt": "validation: adapting",
    "predict": "validation: predicting",
    "validation task": "validation: metrics",
    "validation": "the rest of validation, such as making its tasks",
    "checkpoint": "writing checkpoints",
}
"""The ranges, and what is done in them outside the ranges within them."""


class Ranges(Protocol):
    """What measures ranges."""

    def measured(self, name: Name) -> AbstractContextManager[None]:
        """A context that is a range."""


_NOT_MEASURED = nullcontext()
_ranges: ContextVar[Ranges | None] = ContextVar("ranges", default=None)


def named(name: Name) -> AbstractContextManager[None]:
    """A context that is a range of this name, if ranges are measured."""
    ranges = _ranges.get()
    return _NOT_MEASURED if ranges is None else ranges.measured(name)


@contextmanager
def measuring(ranges: Ranges) -> Iterator[None]:
    """A context in which ranges are measured.

    Example:
        >>> class Printed:
        ...     @contextmanager
        ...     def measured(self, name):
        ...         print("begin", name)
        ...         yield
        ...         print("end", name)
        >>> with measuring(Printed()), named("tasks"):
        ...     pass
        begin tasks
        end tasks
    """
    with holding(_ranges, ranges):
        yield
