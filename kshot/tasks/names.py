"""Names of classes as support rows: tasks that a learner may begin without any example.

Shape legend: n rows, S support rows, C classes of a task, k rows for the name of a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.tasks.source import TaskSource
from kshot.tasks.wrapped import Wrapped
from kshot.types import Batch, Split, Task, Tree, tree_map


def with_names(
    source: TaskSource, names: Mapping[str, Tensor | np.ndarray | Sequence[Any]], *, examples: bool = True
) -> NamedTasks:
    r"""The tasks of a source with the names of their classes as further support rows.

    A name is a support row like any other, of its class and of weight 1, that is marked. Inputs become

        {"example": (n, ...), "is_name": (n,)}

    with the inputs of the source, or those of a name, and 1 where the row is a name, else 0. Queries are never names.
    So a task may have no examples at all, a class can be added to a state by its name alone, and a learner that knows
    of names needs nothing else: see `learners.named_means` and `learners.tip_adapter`.

    Args:
        source: of tasks whose classes have names (see `TaskSource.classes_of`) and whose inputs are one tensor, such as
            features of an encoder.
        names: the name of a class to the inputs that stand for it, (...) or (k, ...) in the shape of an example, such
            as the features that the text tower of the same encoder gives for one or several descriptions of the class.
        examples: False for a support set of the names alone: zero-shot tasks.

    Returns:
        A source. Hashes of its episodes are those of `source`, so that both are compared on equal tasks.

    Raises:
        ValueError: the classes have no names or too few rows for them; a name has no inputs or those of another shape.

    Example:
        >>> source = kshot.sources.glyphs(ways=3, shots=1)
        >>> splits = ("train", "val", "test")
        >>> names = {name: np.zeros((1, 28, 28)) for split in splits for name in source.classes(split)}
        >>> support = with_names(source, names).task("test", 0).support
        >>> support.inputs["example"].shape, support.inputs["is_name"].tolist()
        (torch.Size([6, 1, 28, 28]), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    """
    return NamedTasks(source, names, examples)


class NamedTasks(Wrapped):
    """The tasks of `with_names`."""

    def __init__(
        self, source: TaskSource, names: Mapping[str, Tensor | np.ndarray | Sequence[Any]], examples: bool
    ) -> None:
        super().__init__(source)
        task = source.task("train", 0)
        if not isinstance(task.query.inputs, Tensor) or source.classes_of("train", [0]) is None:
            raise ValueError("names need tasks whose classes have names, and whose inputs are one tensor")
        like, self.with_examples = task.query.inputs[0], examples
        if hasattr(source, "examples"):
            self.examples = source.examples  # whose rows are what `members` says
        self.names = {name: _rows(name, inputs, like) for name, inputs in names.items()}
        if len(counts := {len(rows) for rows in self.names.values()}) != 1:
            raise ValueError(f"all names must have the same number of rows, got {sorted(counts)}")

    @property
    def raw(self) -> TaskSource:
        return self.source.raw

    def task(self, split: Split, index: int) -> Task:
        support, query = self.source.task(split, index)
        classes = self.source.classes_of(split, [index])
        assert classes is not None
        named = self._batch(classes[0], support.targets.shape[1])
        return Task(_joined(_marked(support), named) if self.with_examples else named, _marked(query))

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """Training examples, and the names of all training classes."""
        batch = self.source.pretraining_batch(step, size)
        return _joined(_marked(batch), self._batch(self.source.unit_names("train"), batch.targets.shape[1]))

    def out_of_scope_inputs(self, split: Split, index: int, count: int) -> Tree:
        return _unnamed(self.source.out_of_scope_inputs(split, index, count))

    def with_training(self, **settings: Any) -> NamedTasks:
        return self._of(self.source.with_training(**settings))

    def with_shots(self, shots: int) -> NamedTasks:
        return self._of(self.source.with_shots(shots))

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"names": "of the classes, as support rows" + " alone" * (not self.with_examples)}

    def _of(self, source: TaskSource) -> NamedTasks:
        other = copy(self)
        other.source = source
        return other

    def _batch(self, classes: Sequence[str], columns: int) -> Batch:
        """The rows of names, those of columns without a class of weight 0."""
        if missing := [name for name in classes if name not in self.names]:
            raise ValueError(f"names: class {missing[0]!r} has no inputs; give those of all {len(classes)} classes")
        rows = torch.cat([self.names[name] for name in (*classes, *[classes[0]] * (columns - len(classes)))])
        each = len(rows) // columns
        targets = torch.eye(columns).repeat_interleave(each, 0)
        weight = (torch.arange(columns) < len(classes)).float().repeat_interleave(each)
        return Batch({"example": rows, "is_name": torch.ones(len(rows))}, targets, weight)


def _rows(name: str, inputs: Tensor | np.ndarray | Sequence[Any], like: Tensor) -> Tensor:
    """The inputs (k, ...) of a name."""
    rows = torch.as_tensor(np.asarray(inputs)).to(like.dtype)
    if rows.shape[rows.ndim - like.ndim :] != like.shape or rows.ndim - like.ndim not in (0, 1) or not len(rows):
        raise ValueError(
            f"names: the inputs of {name!r} must have the shape of an example, {tuple(like.shape)}, or several rows of "
            f"it, got {tuple(rows.shape)}"
        )
    return rows if rows.ndim > like.ndim else rows[None]


def _marked(batch: Batch) -> Batch:
    return batch._replace(inputs=_unnamed(batch.inputs))


def _unnamed(inputs: Tensor) -> Tree:
    return {"example": inputs, "is_name": torch.zeros(len(inputs))}


def _joined(first: Batch, second: Batch) -> Batch:
    return Batch(*tree_map(lambda *leaves: torch.cat(leaves), tuple(first), tuple(second)))
