"""The interface of task sources: a distribution of tasks, split into train, val and test by class, user, author…"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from kshot import types
from kshot.annotations import EMPTY
from kshot.objectives import Objective
from kshot.tasks.preprocessor import Preprocessor
from kshot.types import SPLITS, Batch, Split, Task, Tree, tree_leaves, tree_map


class TaskSource(ABC):
    """A distribution of tasks for each split.

    `task` is a pure function of (seed, split, index): a run resumes from one integer, rank r of w takes
    `indices[r::w]`, and a test set is a range of integers. Training indices are unbounded: a training run uses a range
    that depends on its seed.

    Attributes:
        objective: loss and metrics of the tasks.
        seed: random seed of task sampling.
        preprocessor: turns a user's files into inputs of these tasks; kept by a run. None if the tasks are not read
            from files.
        member: what a split consists of: "class", "group" or "user"; "task" if tasks are not drawn from members.
        unit: what a unit is called, such as the column of the groups; by default as `member`.
        texts: the text of each row of the examples, for sources of labelled texts.
        copies_are_errors: whether two examples of equal content are copies, which `kshot data check` reports.
        forecasts: whether inputs are windows of series, and targets the values that follow.
        weighted_queries: whether queries have weights other than 1, which are no padding; reports then say so.
        varying_width: whether inputs are tables whose number of columns differs between tasks.
        has_names: whether names of classes are support rows too, marked by the last column of the inputs.
        understood: how each column of the file was understood, such as "number, money in $, 3 missing".
        notes: what was noticed when the files were read, each a sentence with its remedy; `kshot data check` and the
            report of a run repeat it.
    """

    objective: Objective
    seed: int
    preprocessor: Preprocessor | None = None
    member: str = "task"
    unit: str | None = None
    texts: Sequence[str] | None = None
    copies_are_errors: bool = True
    forecasts: bool = False
    weighted_queries: bool = False
    varying_width: bool = False
    has_names: bool = False
    understood: Mapping[str, str] = EMPTY
    notes: Sequence[str] = ()

    @abstractmethod
    def task(self, split: Split, index: int) -> Task:
        """Task number `index` of a split; deterministic."""

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        """Several tasks as one stack with a leading task axis; override it with a single gather for speed."""
        return types.stack([self.task(split, index) for index in indices])

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """Batch number `step` of about `size` training examples for pretraining a base model without tasks.

        By default the examples of several training tasks, pooled; a ValueError if the tasks have classes of their own.
        Such a source overrides this method with targets that are one-hot over all training classes.
        """
        if self.objective.task_specific_classes:
            raise ValueError(
                f"{type(self).__name__} cannot pretrain: each task has classes of its own, so that targets pooled over "
                "tasks are noise; override pretraining_batch with targets that are one-hot over all training classes"
            )
        first = self.task("train", 0)
        num_tasks = max(1, size // (len(first.support.weight) + len(first.query.weight)))
        tasks = self.stack("train", range(step * num_tasks, (step + 1) * num_tasks))
        return tree_map(lambda support, query: torch.cat([support, query], 1).flatten(0, 1), *tasks)

    def training_groups(self, most: int) -> list[Batch]:
        """The examples of up to `most` members of the training split, a batch for each, for fits in closed form.

        By default support and query of training tasks; a ValueError if the tasks have classes of their own.
        """
        if self.objective.task_specific_classes:
            raise ValueError(
                f"{type(self).__name__} has no groups of examples with the same targets: each task has classes of its "
                "own; use a learner for task-specific classes, such as protonet"
            )
        tasks = [self.task("train", index) for index in range(min(most, self.num_tasks("train") or most))]
        return [tree_map(lambda support, query: torch.cat([support, query]), *task) for task in tasks]

    @property
    def raw(self) -> TaskSource:
        """Itself, or if its inputs are features of texts, the same tasks with hashes of the texts as inputs.

        The hashes of episodes are over these tasks, so that they are equal for frozen features and for an encoder that
        is tuned, on the same rows.
        """
        return self

    @property
    def training_settings(self) -> dict[str, Any]:
        """The settings of training tasks that may change in the course of training, by name, as plain values."""
        return {}

    def with_training(self, *_: Any, **settings: Any) -> TaskSource:
        """The same source with other `training_settings`; only its training tasks are to be used.

        Raises:
            ValueError: a value out of bounds, or too few examples exist.
        """
        raise ValueError(f"the training tasks of {type(self).__name__} are fixed")

    def with_shots(self, shots: int) -> TaskSource:
        """The same source with other shots, equal for all classes; ValueError if fixed, or too few examples exist."""
        raise ValueError(f"the number of shots of {type(self).__name__} is fixed")

    def out_of_scope_inputs(self, split: Split, index: int, count: int) -> Tree:
        """Up to `count` inputs (n, ...) that belong to none of the classes of task `index`; deterministic."""
        raise ValueError(
            "these tasks have no out-of-scope examples; sources of texts have them if out_of_scope_label is set"
        )

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray | None:
        """What each task is drawn from, such as its user: numbers (T,), from 0; positions in `unit_names`, if any.

        Tasks with classes of their own have several: (T, K), in the order of their targets, and -1 where a task has
        fewer. Intervals are over units. None if each task is a unit of its own.
        """
        return None

    def unit_names(self, split: Split) -> Sequence[str]:
        """The names of the units of a split, in the order of their numbers; empty if they are only numbered."""
        return list(self.members(split))

    def classes_of(self, split: Split, indices: Sequence[int]) -> list[list[str]] | None:
        """The names of the classes of each task, in the order of its targets; None if they have none.

        By default those of the units, or of the preprocessor if all tasks have the same classes.
        """
        if not self.objective.classifies:
            return None
        if not self.objective.task_specific_classes:
            names = list(self.preprocessor.classes) if self.preprocessor else []
            return [names for _ in indices] if names else None
        units = self.units(split, indices)
        if units is None or units.ndim != 2:
            return None
        of_split = self.unit_names(split)
        return [[of_split[number] for number in task if number >= 0] for task in units.tolist()]

    def example_rows(self, split: Split, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The rows of the support and of the query examples of a task, as in `members`; None if they have none."""
        return None

    def members(self, split: Split) -> dict[str, np.ndarray]:
        """The rows of examples of each class or group of a split; empty if examples have no rows."""
        return {}

    def sizes(self, split: Split) -> dict[str, int]:
        """The number of examples of each class, group or user of a split."""
        return {name: len(rows) for name, rows in self.members(split).items()}

    def num_tasks(self, split: Split) -> int | None:
        """The number of tasks of a split; None if it is unlimited."""
        return None

    def ordered_targets(self, split: Split) -> list[np.ndarray]:
        """Targets (n, ...) of groups in the order of the file, to detect sorted files; empty if there is no order."""
        return []

    def describe(self) -> dict[str, Any]:
        """Description for reports: at least the seed; ways, shots and queries where they exist."""
        return {"seed": self.seed}


def draw(source: TaskSource, split: Split, indices: Sequence[int]) -> list[Task]:
    """Several tasks, as a list; drawn at once if the source draws stacks, unless their shapes differ."""
    if getattr(type(source), "stack", None) is not TaskSource.stack:
        try:
            return types.unstack(source.stack(split, indices))
        except types.UnequalShapes:
            pass
    return [source.task(split, index) for index in indices]


def check_source(source: object) -> None:
    """Raise TypeError if an argument is no source of tasks, but for example a `DataLoader`."""
    if callable(getattr(source, "task", None)) and callable(getattr(source, "stack", None)):
        return
    advice = "write a subclass of kshot.TaskSource"
    if isinstance(source, Iterable):
        advice = (
            "if it yields tasks, kshot.tasks.from_loader(loader, objective=…) makes a source of it, and with ways=… "
            "class ids become one-hot"
        )
    raise TypeError(f"a source of tasks is needed, got a {type(source).__name__}: {advice}")


class StackedSource(TaskSource):
    """A source that implements `stack`; a single task is a stack of one."""

    def task(self, split: Split, index: int) -> Task:
        return tree_map(lambda leaf: leaf[0], self.stack(split, [index]))

    @abstractmethod
    def stack(self, split: Split, indices: Sequence[int]) -> Task: ...


def if_any(**entries: Any) -> dict[str, Any]:
    """The entries of a description that are neither empty, 0 nor None."""
    return {name: value for name, value in entries.items() if value}


def hash_into(digest: Any, task: Task) -> None:
    """Update a hash of `hashlib` with the types, shapes and values of all tensors of a task."""
    for leaf in tree_leaves(task):
        digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
        digest.update(leaf.contiguous().cpu().numpy())


def short_hash(task: Task) -> str:
    """The first 16 hexadecimal digits of the hash of a task's content."""
    digest = hashlib.sha256()
    hash_into(digest, task)
    return digest.hexdigest()[:16]


def generator(seed: int, split: Split, index: int) -> np.random.Generator:
    """The random generator of one task: a function of (seed, split, index)."""
    return np.random.default_rng([seed, SPLITS.index(split), index])
