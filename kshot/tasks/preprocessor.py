"""Preprocessors: what a run keeps of its data, to read a user's examples without the training data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from kshot.data.tables.columns import Columns
from kshot.data.tables.frames import TableLike
from kshot.types import Tree


class Support(NamedTuple):
    """A user's support set as it was read: leaves (n, ...), or the class names if each task has its own classes.

    `kept` is what prediction needs to know about this support set, as JSON.
    """

    inputs: Tree
    targets: Tensor | list[str]
    kept: dict[str, Any]


class Preprocessor(ABC):
    """Fitted on training data: turns examples into inputs and targets, and predictions into the units of the data.

    Attributes:
        classes: names of the classes that all tasks share, if any.
        input_columns: the table columns of the inputs, if inputs are rows of a table.
        reads_tables: whether examples are rows of a table, which may be in memory; else they are files.
    """

    classes: tuple[str, ...] = ()
    input_columns: Columns | None = None
    reads_tables: ClassVar[bool] = True

    @abstractmethod
    def support(self, path: Path | TableLike) -> Support:
        """Read a support set; raises ValueError if it is unusable."""

    @abstractmethod
    def inputs(self, path: Path | TableLike, kept: dict[str, Any]) -> Tree:
        """Read the inputs (n, ...) to predict for."""

    @abstractmethod
    def answers(self, prediction: Tensor, kept: dict[str, Any]) -> dict[str, list[Any]]:
        """Convert a prediction (n, ...) into the columns of a table."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe how inputs and targets are encoded, for reports."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything needed to rebuild it, see `kshot.sources.preprocessors`."""

    def show_input(self, inputs: Tensor) -> str | None:
        """The input of one example as text, if it is one."""
        return None

    def show_target(self, target: Tensor) -> str | None:
        """The target of one example as text, if it is one."""
        return self.classes[int(target.argmax())] if self.classes else None
