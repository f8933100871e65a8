"""Multi-label tasks: a few of many labels, any number of which are true of an example.

Shape legend: C labels of a task, S support and Q query examples, P examples of a split, L labels of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch

from kshot import objectives
from kshot.annotations import OptionsOf, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.dataset import Dataset
from kshot.supplied import Seed
from kshot.tasks.overlapping import OverlappingTasks
from kshot.tasks.pool import Rows
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.sampling import BySplit, of_splits
from kshot.tasks.source import if_any
from kshot.types import SPLITS, Batch, Split, Task


class _Labelled(NamedTuple):
    """The examples of a split: their rows (P,), the names of its labels, and which example has which, bool (P, L)."""

    rows: np.ndarray
    names: tuple[str, ...]
    has: np.ndarray


class LabelTasks(OverlappingTasks):
    r"""Tell which of C labels are true of an example, from `shots` examples with each label and as many without.

    A task has `ways` labels of its split, chosen uniformly, in random order. Of its $S = 2 C \cdot \text{shots}$
    support examples at least `shots` have each label and at least `shots` do not, and of its $Q = 2 C \cdot
    \text{queries}$ query examples at least `queries`; the examples that this takes are chosen at random, an example
    counts for all of its labels, and the rest are random examples of the split. Thus labels occur together as they do
    in the data, and rare labels more often than there.

    No label of a split occurs in the targets of another; which split an example is in says `OverlappingTasks`.

    Targets are multi-hot float32 (S, C) and (Q, C).

    Args:
        examples: inputs by row number, of all splits.
        labels: the labels of each split, with the rows of all examples that have them.
        ways: C.
        shots, queries: as above.
        train_queries: `queries` of training tasks, by default the same.
        on_too_few: treatment of a label that too few examples of its split have, or too few lack: "error", or "drop"
            to leave it out.
        seed, name, preprocessor: as in `ClassTasks`.
        without: rows that are left out, such as images that cannot be read.

    Attributes:
        label_names: of each split.
        dropped: what was left out: reason to count.

    Raises:
        ValueError: a label in two splits, with too few examples, or fewer labels or examples than a task needs. While
            drawing tasks: no task was found, as most examples have the same labels.

    Example:
        >>> from kshot.data.dataset import ArrayDataset
        >>> examples = ArrayDataset(np.arange(60.0).reshape(30, 2))
        >>> labels = {"even": range(0, 30, 2), "low": range(10)}
        >>> task = LabelTasks(examples, {"train": labels}, ways=2, shots=1, queries=2).task("train", 0)
        >>> task.support.inputs.shape, task.query.targets.shape, bool((task.query.targets.sum(0) >= 2).all())
        (torch.Size([4, 2]), torch.Size([8, 2]), True)

    References:
        Simon, Koniusz, Harandi: Meta-Learning for Multi-Label Few-Shot Classification, WACV 2022, section 3, whose
        N-way K-shot tasks have at least K examples with each of N labels.
    """

    objective = objectives.multilabel
    member, members_called = "label", "labels"

    @check_arguments
    def __init__(
        self,
        examples: Dataset,
        labels: BySplit[Mapping[str, Rows]],
        *,
        ways: PositiveInt = 5,
        shots: PositiveInt = 1,
        queries: PositiveInt = 5,
        train_queries: PositiveInt | None = None,
        on_too_few: Literal["error", "drop"] = "error",
        seed: Seed = 0,
        name: str = "labels",
        preprocessor: Preprocessor | None = None,
        without: Rows = (),
    ) -> None:
        super().__init__(
            examples, ways=ways, shots=shots, queries=queries, train_queries=train_queries, on_too_few=on_too_few,
            seed=seed, name=name, preprocessor=preprocessor,
        )  # fmt: skip
        self._without = np.asarray(without, np.int64)
        given = of_splits(labels, name)
        self._given = {split: {label: np.unique(rows) for label, rows in of.items()} for split, of in given.items()}
        names = [label for of_split in labels.values() for label in of_split]
        if twice := {label for label in names if names.count(label) > 1}:
            raise ValueError(f"{name}: label {min(twice)!r} is in two splits; keep it in one of them")
        self._choose()

    def _choose(self) -> None:
        self.dropped = if_any(**{"examples that cannot be used": len(self._without)})
        self._splits: dict[Split, _Labelled] = {}
        split_of = self._split_of(self._given)
        split_of[self._without] = -1
        for split, of_split in self._given.items():
            rows = np.flatnonzero(split_of == SPLITS.index(split))
            has = np.stack([np.isin(rows, with_label) for with_label in of_split.values()], 1)
            self._splits[split] = self._with_enough(split, _Labelled(rows, tuple(of_split), has))
        self.label_names = {split: of_split.names for split, of_split in self._splits.items()}

    def _with_enough(self, split: Split, of_split: _Labelled) -> _Labelled:
        least, size = self.shots + self.queries[split], 2 * self.ways * (self.shots + self.queries[split])
        count = of_split.has.sum(0)
        short = np.minimum(count, len(of_split.rows) - count) < least
        if short.any() and self.on_too_few == "error":
            first = int(short.argmax())
            raise ValueError(
                f"{self.name}: of the {len(of_split.rows):,} examples in {split} {count[first]:,} have label "
                f"{of_split.names[first]!r}, and a task needs {least} with it and as many without; lower shots or "
                f"queries, or leave such labels out by on_too_few: drop ({short.sum()} in {split})"
            )
        if short.any():
            self.dropped[f"labels in {split} that fewer than {least} examples have, or lack"] = int(short.sum())
        names = tuple(name for name, left_out in zip(of_split.names, short.tolist()) if not left_out)
        if len(names) < self.ways or len(of_split.rows) < size:
            raise ValueError(
                f"{self.name}: the {split} split has {len(names)} labels with enough examples and {len(of_split.rows)} "
                f"examples, and a task needs {self.ways} and {size}; lower ways, shots or queries"
            )
        return _Labelled(of_split.rows, names, of_split.has[:, ~short])

    def task(self, split: Split, index: int) -> Task:
        labels, *parts = self._drawn(split, index)
        of_split = self._splits[split]
        batches = []
        for places in parts:
            targets = torch.from_numpy(of_split.has[np.ix_(places, labels)].astype(np.float32))
            batches.append(Batch(self.examples.take(of_split.rows[places]), targets, torch.ones(len(places))))
        return Task(*batches)

    def _examples_of(
        self, random: np.random.Generator, split: Split, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Their places among the examples of the split."""
        part = _parts(random, self._splits[split].has[:, labels], (self.shots, self.queries[split]))
        if part is None:
            return None
        support, query = (random.permutation(np.flatnonzero(part == number)) for number in (1, 2))
        return support, query

    def _names(self) -> Mapping[Split, Sequence[str]]:
        return self.label_names

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray:
        """The labels (T, C) of each task, by position in `label_names`."""
        return np.stack([self._drawn(split, index)[0] for index in indices])

    def classes_of(self, split: Split, indices: Sequence[int]) -> list[list[str]]:
        """The labels of each task, in the order of its targets."""
        names = self.label_names[split]
        return [[names[number] for number in labels] for labels in self.units(split, indices).tolist()]

    def example_rows(self, split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
        _, support, query = self._drawn(split, index)
        rows = self._splits[split].rows
        return rows[support], rows[query]

    def members(self, split: Split) -> dict[str, np.ndarray]:
        """All rows of a split together, as an example may have several labels."""
        return {"examples": self._splits[split].rows} if split in self._splits else {}

    def sizes(self, split: Split) -> dict[str, int]:
        """The number of examples with each label."""
        if split not in self._splits:
            return {}
        return dict(zip(self._splits[split].names, self._splits[split].has.sum(0).tolist()))

    def _described(self) -> dict[str, Any]:
        return {"examples": {split: len(of_split.rows) for split, of_split in self._splits.items()}}


def _parts(random: np.random.Generator, has: np.ndarray, least: tuple[int, int]) -> np.ndarray | None:
    """Which part of a task each example belongs to, (P,): 1 the support, 2 the query set, 0 neither.

    Args:
        random: of the task.
        has: bool (P, C), which example has which label of the task.
        least: of the two parts, the number of examples with each label, and without.

    Returns:
        None if the examples do not suffice for the labels in the order in which they are served, the rarest first.
    """
    part = np.zeros(len(has), np.int8)

    def draw(number: int, count: int, among: np.ndarray) -> bool:
        free = np.flatnonzero((part == 0) & among)
        if count > len(free):
            return False
        part[random.choice(free, max(count, 0), replace=False)] = number
        return True

    for wanted in (True, False):
        for label in np.argsort(has.sum(0), kind="stable").tolist():
            with_it = has[:, label] == wanted
            for number, count in enumerate(least, 1):
                if not draw(number, count - int((with_it & (part == number)).sum()), with_it):
                    return None
    everything = np.ones(len(has), bool)
    for number, count in enumerate(least, 1):
        if not draw(number, 2 * has.shape[1] * count - int((part == number).sum()), everything):
            return None
    return part


LabelOptions = Annotated[Any, OptionsOf(LabelTasks, without=("examples", "labels", "name", "preprocessor", "without"))]
"""Arguments of `LabelTasks` that factories pass on: ways, shots, queries, train_queries, on_too_few and seed."""
