"""Names of classes as support rows: tasks that a learner may begin without any example.

Shape legend: n rows, S support rows, D features, C classes of a task, k rows for the name of a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from kshot.tasks.mixture import Mixture
from kshot.tasks.source import TaskSource
from kshot.tasks.wrapped import Wrapped
from kshot.types import Batch, Split, Task, Tree, tree_map


def with_names(
    source: TaskSource, names: Mapping[str, Tensor | np.ndarray | Sequence[Any]], *, examples: bool = True
) -> NamedTasks:
    r"""The tasks of a source with the names of their classes as further support rows.

    A name is a support row like any other, of its class and of weight 1. Inputs (n, D) become (n, D + 1): the last
    column is 1 where the row is a name, else 0. Queries are never names. So a task may have no examples at all, and a
    class can be added to a state by its name alone. `learners.named_means` and `learners.tip_adapter` read the mark;
    others take a name as one more example.

    Args:
        source: of tasks whose classes have names (see `TaskSource.classes_of`) and whose inputs are features, such as
            those of an encoder.
        names: the name of a class to the features (D,) or (k, D) that stand for it, such as those that the text tower
            of the same encoder gives for one or several descriptions of the class.
        examples: False for a support set of the names alone: zero-shot tasks.

    Returns:
        A source. Hashes of its episodes are those of `source`, so that both are compared on equal tasks.

    Raises:
        ValueError: the classes have no names or too few rows for them; a name has no features or those of another
            width.

    Example:
        >>> rows, classes = np.eye(12, 4, dtype=np.float32), {"cat": range(6), "dog": range(6, 12)}
        >>> source = kshot.tasks.ClassTasks(kshot.data.ArrayDataset(rows), {"train": classes}, ways=2, queries=2)
        >>> support = with_names(source, {"cat": np.ones(4), "dog": np.zeros(4)}).task("train", 0).support
        >>> support.inputs.shape, support.inputs[:, -1].tolist()
        (torch.Size([4, 5]), [0.0, 0.0, 1.0, 1.0])
    """
    return NamedTasks(source, names, examples)


def without_names(source: TaskSource) -> TaskSource:
    """The same tasks without the names of classes as support rows; a source without them unchanged."""
    if not source.has_names:
        return source
    if isinstance(source, Mixture):
        inner = {name: without_names(each) for name, each in source.sources.items()}
        return Mixture(inner, source.shares, source.seed)
    assert isinstance(source, Wrapped)
    return source.source if isinstance(source, NamedTasks) else source.over(without_names(source.source))


class NamedTasks(Wrapped):
    """The tasks of `with_names`."""

    def __init__(
        self, source: TaskSource, names: Mapping[str, Tensor | np.ndarray | Sequence[Any]], examples: bool
    ) -> None:
        super().__init__(source)
        self.has_names = True
        split = next(iter(getattr(source, "class_names", {"train": ()})))
        task = source.task(split, 0)
        if not isinstance(task.query.inputs, Tensor) or source.classes_of(split, [0]) is None:
            raise ValueError("names need tasks whose classes have names, and whose inputs are one tensor")
        if task.query.inputs.ndim != 2:
            raise ValueError(
                f"names need inputs (n, D), the features of an encoder; those of these tasks are "
                f"{tuple(task.query.inputs.shape)}"
            )
        like, self.with_examples = task.query.inputs[0], examples
        if hasattr(source, "examples"):
            self.examples = source.examples  # whose rows are what `members` says
        self.names = {name: _rows(name, inputs, like) for name, inputs in names.items()}
        if len(counts := {len(rows) for rows in self.names.values()}) != 1:
            raise ValueError(f"all names must have the same number of rows, got {sorted(counts)}")

    def over(self, source: TaskSource) -> Self:
        other = super().over(source)
        other.preprocessor, other.has_names = self.preprocessor, True  # the former may name classes too
        return other

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
        return marked(self.source.out_of_scope_inputs(split, index, count), False)

    def with_training(self, **settings: Any) -> TaskSource:
        return self.over(self.source.with_training(**settings))

    def with_shots(self, shots: int) -> TaskSource:
        return self.over(self.source.with_shots(shots))

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"names": "of the classes, as support rows" + " alone" * (not self.with_examples)}

    def _batch(self, classes: Sequence[str], columns: int) -> Batch:
        """The rows of names, those of columns without a class of weight 0."""
        if missing := [name for name in classes if name not in self.names]:
            raise ValueError(f"names: class {missing[0]!r} has no inputs; give those of all {len(classes)} classes")
        rows = torch.cat([self.names[name] for name in (*classes, *[classes[0]] * (columns - len(classes)))])
        each = len(rows) // columns
        targets = torch.eye(columns).repeat_interleave(each, 0)
        weight = (torch.arange(columns) < len(classes)).float().repeat_interleave(each)
        return Batch(marked(rows, True), targets, weight)


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
    return batch._replace(inputs=marked(batch.inputs, False))


def marked(inputs: Tensor, is_name: bool) -> Tensor:
    """Inputs (n, D) with the mark of names as a last column."""
    return pad(inputs, (0, 1), value=float(is_name))


def _joined(first: Batch, second: Batch) -> Batch:
    return Batch(*tree_map(lambda *leaves: torch.cat(leaves), tuple(first), tuple(second)))
