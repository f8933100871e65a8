"""The interface of preprocessors: what a run keeps of its data, to read a user's files without the training data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from kshot.types import Tree


class Support(NamedTuple):
    """A user's support set as read from a file.

    Attributes:
        inputs: leaves (n, ...).
        targets: (n, ...), or the n class names where each task has classes of its own.
        kept: what prediction needs to know about this support set; JSON.
    """

    inputs: Tree
    targets: Tensor | list[str]
    kept: dict[str, Any]


class Preprocessor(Protocol):
    """Fitted on training data: turns files into inputs and targets, and predictions into the data's units."""

    def support(self, path: Path) -> Support:
        """Read a support set; raises ValueError if the file is unusable."""
        ...

    def inputs(self, path: Path, kept: dict[str, Any]) -> Tree:
        """Read the inputs (n, ...) to predict for."""
        ...

    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """Convert a prediction (n, ...) into the columns of a table."""
        ...

    def describe(self) -> dict[str, Any]:
        """Describe how inputs and targets are encoded, for a report."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Everything needed to rebuild it; see `kshot.sources.preprocessors`."""
        ...
