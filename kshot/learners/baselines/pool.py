"""The training rows of a source with the group of each, which baselines without meta-learning are fitted to.

Shape legend: n rows, F features of an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.tasks.read_log import Watched
from kshot.tasks.source import TaskSource, draw
from kshot.types import Tree, tree_leaves, tree_map

FIRST = 1_000_000
"""The first training task that baselines are fitted to: training runs begin at 0."""


class TrainingRows(NamedTuple):
    """Rows of the training split.

    Attributes:
        inputs, targets: trees of tensors, leaves (n, ...).
        group: int64 (n,), the number of the group of each row, ascending; groups are numbered without gaps.
    """

    inputs: Tree
    targets: Tree
    group: np.ndarray

    @property
    def num_groups(self) -> int:
        return int(self.group[-1]) + 1

    def only(self, groups: Sequence[int] | np.ndarray) -> TrainingRows:
        """The rows of some groups, which are numbered anew in ascending order."""
        kept = np.unique(groups)
        rows = np.flatnonzero(np.isin(self.group, kept))
        index = torch.from_numpy(rows)
        inputs, targets = tree_map(lambda leaf: leaf[index], (self.inputs, self.targets))
        return TrainingRows(inputs, targets, np.searchsorted(kept, self.group[rows]))


def unwatched(source: TaskSource) -> TaskSource:
    """The source itself, if it is wrapped in a log of its reads."""
    while isinstance(source, Watched):
        source = source.source
    return source


@check_arguments
def training_rows(source: TaskSource, *, max_rows: PositiveInt = 50_000, num_tasks: PositiveInt = 500) -> TrainingRows:
    """The rows of the training groups, whole groups at random up to about `max_rows`; nothing else of a source is read.

    Where a source has no groups (`members` is empty), the rows of training tasks, each of which is a group.

    Args:
        source: of the rows; a log of its reads is passed over.
        max_rows: number of rows beyond which no further group is added; the first group is taken whatever its size.
        num_tasks: number of training tasks that are read where there are no groups.

    Example:
        >>> from kshot import objectives
        >>> from kshot.data.dataset import ArrayDataset
        >>> from kshot.tasks.group_tasks import GroupTasks
        >>> examples = ArrayDataset((np.arange(20.0).reshape(10, 2), np.arange(10.0)[:, None]))
        >>> groups = {"train": {"a": range(4), "b": range(4, 7)}, "test": {"c": range(7, 10)}}
        >>> source = GroupTasks(examples, groups, objective=objectives.mse, shots=2, queries=1)
        >>> training_rows(source).group.tolist()
        [0, 0, 0, 0, 1, 1, 1]
    """
    source = unwatched(source)
    members, examples = list(source.members("train").values()), getattr(source, "examples", None)
    if not members or examples is None:
        return _rows_of_tasks(source, max_rows, num_tasks)
    order = np.random.default_rng(0).permutation(len(members))
    sizes = np.array([len(members[number]) for number in order])
    before = sizes.cumsum() - sizes
    chosen = np.sort(order[(before + sizes <= max_rows) | (before == 0)])
    rows = [np.asarray(members[number]) for number in chosen]
    group = np.repeat(np.arange(len(rows)), [len(of_group) for of_group in rows])
    inputs, targets = examples.take(np.concatenate(rows))
    return TrainingRows(inputs, targets, group)


def float_rows(source: TaskSource) -> bool:
    """Whether inputs are float rows (n, F) and targets one float tensor (n, ...), as seen in a training task."""
    support = unwatched(source).task("train", FIRST).support
    inputs, targets = support.inputs, support.targets
    rows = isinstance(inputs, Tensor) and inputs.ndim == 2 and inputs.is_floating_point()
    return rows and isinstance(targets, Tensor) and targets.is_floating_point()


def _rows_of_tasks(source: TaskSource, max_rows: int, num_tasks: int) -> TrainingRows:
    """The support and query rows of training tasks, without padding."""
    parts, counts = [], []
    for task in draw(source, "train", range(FIRST, FIRST + num_tasks)):
        real = torch.cat([task.support.weight, task.query.weight]) > 0
        both = [(batch.inputs, batch.targets) for batch in task]
        parts.append(tree_map(lambda support, query, real=real: torch.cat([support, query])[real], *both))
        counts.append(int(real.sum()))
        if sum(counts) >= max_rows:
            break
    inputs, targets = tree_map(lambda *leaves: torch.cat(leaves), *parts)
    assert len(tree_leaves(inputs)[0]) == sum(counts)
    return TrainingRows(inputs, targets, np.repeat(np.arange(len(counts)), counts))
