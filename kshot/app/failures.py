"""What fails after a training, such as a baseline or a chart: recorded and reported, without losing the run."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from kshot.training.ranks import LostProcess


class Failure(NamedTuple):
    """What failed, and the error in a sentence."""

    what: str
    error: str


class Failures(list[Failure]):
    """The failures of a run; a file, if given, receives their tracebacks.

    Example:
        >>> failures = Failures()
        >>> with failures.recorded("the chart of calibration"):
        ...     raise ValueError("there are no points")
        >>> failures
        [Failure(what='the chart of calibration', error='there are no points')]
    """

    def __init__(self, file: Path | None = None) -> None:
        super().__init__()
        self.file = file

    def add(self, what: str, error: str) -> None:
        """Record a failure."""
        self.append(Failure(what, error))

    @contextmanager
    def recorded(self, what: str) -> Iterator[None]:
        """A context whose errors are recorded instead of raised, except that another process of the run was lost."""
        try:
            yield
        except LostProcess:
            raise
        except Exception as error:  # a part of any package can raise anything; the run's figures must not be lost
            plain = isinstance(error, ValueError) and str(error)
            self.add(what, str(error) if plain else f"{type(error).__name__}: {error}")
            if self.file is not None:
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(f"{what}\n{traceback.format_exc()}\n")
