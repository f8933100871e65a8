"""A source that is another source, but for what a subclass overrides."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Self

import numpy as np

from kshot.tasks.source import TaskSource
from kshot.types import Batch, Split, Tree


class Wrapped(TaskSource):
    """A source that answers as another one, `source`; subclasses override the tasks, and what else they change."""

    def __init__(self, source: TaskSource) -> None:
        self.source, self.objective, self.seed = source, source.objective, source.seed
        for name in TaskSource.__annotations__:
            setattr(self, name, getattr(source, name))

    def over(self, source: TaskSource) -> Self:
        """The same wrapper around another source."""
        other = copy(self)
        Wrapped.__init__(other, source)
        return other

    def pretraining_batch(self, step: int, size: int) -> Batch:
        return self.source.pretraining_batch(step, size)

    def training_groups(self, most: int) -> list[Batch]:
        return self.source.training_groups(most)

    def out_of_scope_inputs(self, split: Split, index: int, count: int) -> Tree:
        return self.source.out_of_scope_inputs(split, index, count)

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray | None:
        return self.source.units(split, indices)

    def unit_names(self, split: Split) -> Sequence[str]:
        return self.source.unit_names(split)

    def classes_of(self, split: Split, indices: Sequence[int]) -> list[list[str]] | None:
        return self.source.classes_of(split, indices)

    def example_rows(self, split: Split, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        return self.source.example_rows(split, index)

    def members(self, split: Split) -> dict[str, np.ndarray]:
        return self.source.members(split)

    def sizes(self, split: Split) -> dict[str, int]:
        return self.source.sizes(split)

    def num_tasks(self, split: Split) -> int | None:
        return self.source.num_tasks(split)

    @property
    def training_settings(self) -> dict[str, Any]:
        return self.source.training_settings

    def describe(self) -> dict[str, Any]:
        return self.source.describe()
