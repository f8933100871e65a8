"""N-way K-shot classification from a pool of images: the classic few-shot task.

Shape legend: n examples, T tasks, N classes of a task (ways), K drawings taken of each (shots + queries).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.tasks.source import TaskSource, generator
from kshot.types import SPLITS, Batch, Split, Task, tree_map

Pool = Mapping[str, Sequence[int] | np.ndarray]
"""The classes of one split: name to the rows of its images."""


class ClassTasks(TaskSource):
    r"""Tell N classes apart from K drawings of each; a task is a draw of classes and of their drawings.

    A task takes `ways` classes of its split, all equally likely, and `shots + queries` different drawings of each,
    `shots` for the support and `queries` for the query. The labels 0 … ways-1 fall on the classes at random, and the
    rows are shuffled, so that neither a label nor a position tells anything beyond the task.

    Inputs are float32 in 0 … 1, (ways * shots, C, H, W) in the support and (ways * queries, C, H, W) in the query;
    targets are one-hot float32 (n, ways).

    Args:
        images: uint8 (num_images, C, H, W), all drawings of all splits.
        classes: for each split, the class names, and for each name the rows of its images. A class stands in one
            split only.
        ways: classes of a task.
        shots: support drawings of each class.
        queries: query drawings of each class.
        train_queries: query drawings of each class in training tasks, as many as `queries` by default. Fewer make a
            training step cheaper, and so buy more tasks for the same time.
        seed: names the sequence of tasks.
        name: what a report calls the source.

    Attributes:
        class_names: for each split its class names; pretraining targets count the training classes in this order.

    Raises:
        ValueError: images that are not uint8 (num_images, C, H, W), a class with fewer drawings than
            `shots + queries`, a split with fewer classes than `ways`, an image or class that stands in two splits.

    Example:
        >>> images = np.zeros((60, 1, 28, 28), np.uint8)
        >>> pool = {f"class {c}": range(20 * c, 20 * (c + 1)) for c in range(3)}
        >>> task = ClassTasks(images, {"train": pool}, ways=3, shots=1, queries=15).task("train", 0)
        >>> task.query.inputs.shape, task.query.targets.shape
        (torch.Size([45, 1, 28, 28]), torch.Size([45, 3]))

    References:
        Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching Networks for One Shot Learning, NeurIPS 2016,
        arXiv:1606.04080, section 4.
    """

    objective = objectives.classification

    def __init__(
        self,
        images: np.ndarray,
        classes: Mapping[Split, Pool],
        *,
        ways: int = 5,
        shots: int = 1,
        queries: int = 15,
        train_queries: int | None = None,
        seed: int = 0,
        name: str = "classes",
    ) -> None:
        train_queries = queries if train_queries is None else train_queries
        if ways < 2 or shots < 1 or queries < 1 or train_queries < 1:
            raise ValueError(
                "a task needs at least two ways, and one support and one query drawing of each, "
                f"got {ways=}, {shots=}, {queries=}, {train_queries=}"
            )
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(
                f"images must be uint8 (num_images, C, H, W), got {images.dtype} {images.shape}; "
                "scale floats to 0 … 255, and give grey images a channel axis of 1"
            )
        self.ways, self.shots, self.seed, self.name = ways, shots, seed, name
        self.queries = dict.fromkeys(SPLITS, queries) | {"train": train_queries}
        self._images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        self._rows = {split: _Rows.of(pool, name) for split, pool in classes.items()}
        self.class_names = {split: tuple(pool) for split, pool in classes.items()}
        self._check()

    def classes(self, split: Split) -> dict[str, np.ndarray]:
        """The classes of a split: name to the rows of its images."""
        rows = self._rows_of(split)
        return dict(zip(self.class_names[split], np.split(rows.flat, rows.starts[1:])))

    def task(self, split: Split, index: int) -> Task:
        return tree_map(lambda leaf: leaf[0], self.stack(split, [index]))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        rows, ways, queries = self._rows_of(split), self.ways, self.queries[split]
        taken = self.shots + queries
        sizes = [2 * ways, 2 * ways * taken, ways * self.shots, ways * queries]
        draws = np.stack([generator(self.seed, split, index).random(sum(sizes)) for index in indices])
        of_classes, of_drawings, *of_order = np.split(draws, np.cumsum(sizes)[:-1], axis=1)
        chosen = _distinct(of_classes.reshape(-1, 2, ways), np.array(len(rows.sizes)))  # (T, N)
        drawings = _distinct(of_drawings.reshape(-1, ways, 2, taken), rows.sizes[chosen])  # (T, N, K)
        drawings = rows.flat[rows.starts[chosen][..., None] + drawings]
        parts = drawings[..., : self.shots], drawings[..., self.shots :]
        return Task(*(self._batch(part, order.argsort(1)) for part, order in zip(parts, of_order)))

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """`size` random training drawings; targets one-hot over all training classes, (size, num_train_classes)."""
        rows = self._rows_of("train")
        random = np.random.default_rng([self.seed, len(SPLITS), step])  # no split's number: other draws than any task's
        places = random.integers(len(rows.flat), size=size)
        labels = rows.starts.searchsorted(places, side="right") - 1
        return Batch(self._inputs(rows.flat[places]), _one_hot(labels, len(rows.sizes)), torch.ones(size))

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "ways": self.ways,
            "shots": self.shots,
            "queries": self.queries["test"],
            "train_queries": self.queries["train"],
            "seed": self.seed,
            "classes": {split: len(names) for split, names in self.class_names.items()},
            "image_size": list(self._images.shape[1:]),
        }

    def _batch(self, drawings: np.ndarray, order: np.ndarray) -> Batch:
        """The drawings (T, N, k) of each class as rows in the given order (T, N * k)."""
        rows = np.take_along_axis(drawings.reshape(order.shape), order, 1)
        return Batch(self._inputs(rows), _one_hot(order // drawings.shape[-1], self.ways), torch.ones(order.shape))

    def _inputs(self, rows: np.ndarray) -> Tensor:
        picked = self._images.index_select(0, torch.from_numpy(rows.ravel()))
        return picked.to(torch.float32).div_(255).unflatten(0, rows.shape)

    def _rows_of(self, split: Split) -> _Rows:
        if split not in self._rows:
            raise ValueError(f"{self.name} has no {split!r} split, only {', '.join(self._rows)}; give it classes there")
        return self._rows[split]

    def _check(self) -> None:
        owner = np.full(len(self._images), -1)  # the split each image stands in
        home: dict[str, str] = {}
        for number, (split, rows) in enumerate(self._rows.items()):
            names = self.class_names[split]
            if len(names) < self.ways:
                raise ValueError(
                    f"{self.name}: the {split} split has {len(names)} classes, fewer than the {self.ways} ways of a "
                    "task; lower ways or add classes"
                )
            needed = self.shots + self.queries[split]
            short = np.flatnonzero(rows.sizes < needed)
            if len(short):
                raise ValueError(
                    f"{self.name}: class {names[short[0]]!r} in {split} has {rows.sizes[short[0]]} drawings, but "
                    f"{self.shots} shots + {self.queries[split]} queries need {needed}; lower shots or "
                    f"queries, or leave out classes this small ({len(short)} in {split})"
                )
            if rows.flat.min() < 0 or rows.flat.max() >= len(owner):
                raise ValueError(
                    f"{self.name}: {split} points at image rows {rows.flat.min()} … {rows.flat.max()}, but the images "
                    f"have rows 0 … {len(owner) - 1}"
                )
            if len(np.unique(rows.flat)) < len(rows.flat):
                raise ValueError(f"{self.name}: an image stands twice in {split}; list each once, in one class")
            leaked = np.flatnonzero(owner[rows.flat] >= 0)
            twice = [name for name in names if name in home]
            if len(leaked) or twice:
                what = f"class {twice[0]!r}" if twice else f"image {rows.flat[leaked[0]]}"
                raise ValueError(f"{self.name}: {what} is in {split} and in another split; keep it in one of them")
            owner[rows.flat] = number
            home.update(dict.fromkeys(names, split))


class _Rows:
    """The image rows of all classes of a split end to end: class c holds `flat[starts[c] : starts[c] + sizes[c]]`."""

    def __init__(self, flat: np.ndarray, sizes: np.ndarray) -> None:
        self.flat, self.sizes, self.starts = flat, sizes, sizes.cumsum() - sizes

    @classmethod
    def of(cls, pool: Pool, source: str) -> _Rows:
        rows = {name: np.asarray(rows) for name, rows in pool.items()}
        for name, own in rows.items():
            if own.ndim != 1 or (own.size and own.dtype.kind not in "iu"):
                raise ValueError(f"{source}: the rows of class {name!r} must be integers, got {own.dtype} {own.shape}")
        flat = np.concatenate([*rows.values(), []]).astype(np.int64)
        return cls(flat, np.array([len(own) for own in rows.values()], np.int64))


def _distinct(draws: np.ndarray, counts: np.ndarray) -> np.ndarray:
    r"""k different integers below each count, every ordered choice equally likely.

    Floyd's algorithm, for all rows at once: for $j = n-k, …, n-1$ take $t \sim U\{0 … j\}$, or $j$ where $t$ is taken
    already; then shuffle. It costs k steps whatever the counts.

    Args:
        draws: (..., 2, k) uniform in [0, 1): the first k choose, the last k shuffle.
        counts: (...), each at least k; broadcasts.

    References:
        Bentley, Floyd: A sample of brilliance, Communications of the ACM 30(9), 1987.
    """
    choice, order = draws[..., 0, :], draws[..., 1, :]
    k = choice.shape[-1]
    taken = np.empty(choice.shape, np.int64)
    for i in range(k):
        last = counts - k + i
        pick = (choice[..., i] * (last + 1)).astype(np.int64)
        repeated = (taken[..., :i] == pick[..., None]).any(-1)
        taken[..., i] = np.where(repeated, last, pick)
    return np.take_along_axis(taken, order.argsort(-1), -1)


def _one_hot(labels: np.ndarray, ways: int) -> Tensor:
    """Class ids (..., n), known to be right, as one-hot rows (..., n, ways)."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels), ways).to(torch.float32)
