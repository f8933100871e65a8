"""What tasks of labels and of masks share: an example may have several of the labels that are split.

Shape legend: C labels of a task, S support and Q query examples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, ClassVar, Literal, Self

import numpy as np

from kshot.data.dataset import Dataset
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.source import TaskSource, generator, if_any
from kshot.types import SPLITS, Batch, Split

TRIES = 100
"""Choices of labels that are tried before a task is given up for which there are too few examples."""


class OverlappingTasks(TaskSource):
    """Tasks of a few labels of a split, of which an example may have several.

    An example is in one split only: in test if it has a label of test, else in val if it has one of val, else in train.

    Attributes:
        member: what a label is called, and `members_called` several.
        dropped: what was left out: reason to count.
    """

    members_called: ClassVar[str]
    dropped: dict[str, int]

    def __init__(
        self,
        examples: Dataset,
        *,
        ways: int,
        shots: int,
        queries: int,
        train_queries: int | None,
        on_too_few: Literal["error", "drop"],
        seed: int,
        name: str,
        preprocessor: Preprocessor | None,
    ) -> None:
        self.examples, self.ways, self.shots, self.on_too_few = examples, ways, shots, on_too_few
        self.queries = dict.fromkeys(SPLITS, queries) | {"train": train_queries or queries}
        self.seed, self.name, self.preprocessor = seed, name, preprocessor

    @abstractmethod
    def _choose(self) -> None:
        """Set the examples of each split, and its labels with enough of them."""

    @abstractmethod
    def _names(self) -> Mapping[Split, Sequence[str]]:
        """The labels of each split."""

    @abstractmethod
    def _examples_of(
        self, random: np.random.Generator, split: Split, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The support (S,) and query (Q,) examples of a task of labels (C,); None if there are too few."""

    def _split_of(self, rows: Mapping[Split, Mapping[str, np.ndarray]]) -> np.ndarray:
        """The number of the split of each example, for the rows with each label."""
        split_of = np.full(len(self.examples), SPLITS.index("train"))
        for split in ("val", "test"):
            for with_label in rows.get(split, {}).values():
                split_of[with_label] = SPLITS.index(split)
        return split_of

    def _drawn(self, split: Split, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The labels (C,) of a task, and its support (S,) and query (Q,) examples."""
        names = self._names()
        if split not in names:
            raise ValueError(
                f"{self.name} has no {split!r} split, only {', '.join(names)}; give it {self.members_called} there"
            )
        random = generator(self.seed, split, index)
        for _ in range(TRIES):
            labels = random.choice(len(names[split]), self.ways, replace=False)
            found = self._examples_of(random, split, labels)
            if found is not None:
                return labels, *found
        raise ValueError(
            f"{self.name}: no {self.ways} of the {len(names[split])} {self.members_called} in {split} were found that "
            "leave enough examples for a task; lower ways, shots or queries"
        )

    def with_shots(self, shots: int) -> Self:
        other = copy(self)
        other.shots = shots
        other._choose()
        return other

    def unit_names(self, split: Split) -> Sequence[str]:
        return self._names().get(split, ())

    def pretraining_batch(self, step: int, size: int) -> Batch:
        raise ValueError(f"{self.name} cannot pretrain: each task has {self.members_called} of its own")

    def describe(self) -> dict[str, Any]:
        about = {"source": self.name, "ways": self.ways, "shots": self.shots, "queries": self.queries["test"]}
        about |= {"train_queries": self.queries["train"], "seed": self.seed}
        about |= {self.members_called: {split: len(names) for split, names in self._names().items()}}
        about |= self._described() | (self.preprocessor.describe() if self.preprocessor else {})
        return about | if_any(dropped=self.dropped)

    @abstractmethod
    def _described(self) -> dict[str, Any]:
        """What `describe` says besides."""
