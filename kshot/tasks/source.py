"""The contract of a task source: a distribution of tasks, cut into train, val and test by class, user, author…"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kshot import types
from kshot.objectives import Objective
from kshot.tasks.preprocessor import Preprocessor
from kshot.types import SPLITS, Batch, Split, Task, Tree, tree_leaves, tree_map


class TaskSource(ABC):
    """Where tasks come from.

    `task` is pure in (seed, split, index): resuming needs one integer, rank r of w takes `indices[r::w]`, and a test
    set is a range of integers. Training tasks go on without end: a training takes a stretch of them that its seed
    chooses, so that an index may be any whole number.

    Attributes:
        objective: what the tasks ask.
        seed: names the sequence of tasks.
        preprocessor: turns a user's files into inputs of these tasks, where they come from files; a run keeps it.
    """

    objective: Objective
    seed: int
    preprocessor: Preprocessor | None = None

    @abstractmethod
    def task(self, split: Split, index: int) -> Task:
        """The task number `index` of a split; always the same one."""

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        """The tasks `indices` as one stack with a leading task axis. Override with a gather where speed asks for it."""
        return types.stack([self.task(split, index) for index in indices])

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """Batch number `step` of about `size` training examples for ordinary, task-blind training of a base model.

        By default the examples of several tasks in one bag; a source of classes gives examples of all training
        classes, one-hot over them.
        """
        first = self.task("train", 0)
        per_task = len(first.support.weight) + len(first.query.weight)
        count = max(1, size // per_task)
        tasks = self.stack("train", range(step * count, (step + 1) * count))
        return tree_map(lambda support, query: torch.cat([support, query], 1).flatten(0, 1), *tasks)

    def outsiders(self, split: Split, index: int, count: int) -> Tree:
        """Inputs (n, ...) that belong to none of the classes of task `index`, `count` of them or as many as there are;
        always the same ones."""
        raise ValueError(
            "these tasks have nothing that is out of scope; a source of texts has, where 'outside' names it"
        )

    def subjects(self, split: Split, indices: Sequence[int]) -> np.ndarray | None:
        """Whose each task is, a number, where the same one may have several: tasks of one tell less than as many of
        others, and intervals are then over subjects. None where each task stands for itself."""
        return None

    def with_shots(self, shots: int) -> TaskSource:
        """The same source with another number of support examples, the same for all classes of a task.

        Raises:
            ValueError: the source cannot change its number of shots, or the data have too few examples.
        """
        raise ValueError(f"the number of shots of {type(self).__name__} is fixed")

    def describe(self) -> dict[str, Any]:
        """What a report says of the tasks: at least the seed; ways, shots and queries where they exist."""
        return {"seed": self.seed}


def hash_into(digest: Any, task: Task) -> None:
    """Update a hash of `hashlib` by the content of a task: types, shapes and values of all its tensors."""
    for leaf in tree_leaves(task):
        digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
        digest.update(leaf.contiguous().cpu().numpy())


def short_hash(task: Task) -> str:
    """The first 16 digits of the hash of a single task's content."""
    digest = hashlib.sha256()
    hash_into(digest, task)
    return digest.hexdigest()[:16]


def generator(seed: int, split: Split, index: int) -> np.random.Generator:
    """The random numbers of one task: a function of (seed, split, index) and nothing else."""
    return np.random.default_rng([seed, SPLITS.index(split), index])
