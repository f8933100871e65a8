"""Few-shot segmentation: find the pixels of a class from a few images in which they are marked.

Shape legend: N classes of a task, K = N + 1 with the background, S support and Q query images, H × W pixels of a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import torch

from kshot import objectives
from kshot.annotations import OptionsOf, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.dataset import Dataset
from kshot.supplied import Seed
from kshot.tasks.pool import Pool, Rows
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.source import TaskSource, generator, if_any
from kshot.types import SPLITS, Batch, Split, Task

TRIES = 100
"""Choices of classes that are tried before a task is given up for which there are too few images."""


class MaskClass(NamedTuple):
    """A class of a split: the value that its pixels have in the masks, and the images that show it."""

    value: int
    rows: Rows


class MaskTasks(TaskSource):
    r"""Segment images into N classes and the background, from `shots` images of each class with their masks.

    A task has `ways` classes of its split, chosen uniformly, in random order, and `shots + queries` distinct images of
    each, which form the support and the query set; an image may show other classes of the task too. What belongs to
    none of them is background, classes of other tasks included.

    Inputs are the images or their feature maps; targets are one-hot masks float32 (S, K, H, W), the background first,
    and 0 in all classes where a pixel is not scored.

    An image is in one split only: in test if it shows a class of test, else in val if it shows one of val, else in
    train. No pixel of a test class is thus seen in training, not even as background.

    Args:
        examples: inputs by row number, of all splits.
        masks: integers (num_images, H, W), an array or a memory map; -1 marks pixels that are not scored.
        classes: name to class, of each split. The values of the splits differ.
        ways: N; 1 is the usual protocol, of one class against the background.
        shots, queries: images of each class in the support and in the query set.
        train_queries: `queries` of training tasks, by default the same.
        on_too_few: treatment of a class with fewer than `shots + queries` images: "error", or "drop" to leave it out.
        seed, name, preprocessor: as in `ClassTasks`.

    Attributes:
        class_names: of each split.
        dropped: what was left out: reason to count.

    Raises:
        ValueError: masks of another shape, a class in two splits or with too few images, a split with fewer classes
            than `ways`.

    Example:
        >>> from kshot.data.dataset import ImageDataset
        >>> masks = np.zeros((6, 8, 8), np.int16)
        >>> masks[:, 2:4] = 1
        >>> images = ImageDataset(np.zeros((6, 3, 8, 8), np.uint8))
        >>> classes = {"train": {"bar": MaskClass(1, range(6))}}
        >>> task = MaskTasks(images, masks, classes, shots=2, queries=3).task("train", 0)
        >>> task.query.targets.shape, float(task.query.targets[:, 1].mean())
        (torch.Size([3, 2, 8, 8]), 0.25)

    References:
        Shaban, Bansal, Liu, Essa, Boots: One-Shot Learning for Semantic Segmentation, BMVC 2017, arXiv:1709.03410.
        Several classes: Dong, Xing, BMVC 2018. Wang et al.: PANet, ICCV 2019, arXiv:1908.06391.
    """

    objective = objectives.segmentation
    member = "class"

    @check_arguments
    def __init__(
        self,
        examples: Dataset,
        masks: np.ndarray,
        classes: Mapping[Split, Mapping[str, MaskClass]],
        *,
        ways: PositiveInt = 1,
        shots: PositiveInt = 1,
        queries: PositiveInt = 5,
        train_queries: PositiveInt | None = None,
        on_too_few: Literal["error", "drop"] = "error",
        seed: Seed = 0,
        name: str = "masks",
        preprocessor: Preprocessor | None = None,
    ) -> None:
        if masks.ndim != 3 or masks.dtype.kind not in "iu" or len(masks) != len(examples):
            raise ValueError(
                f"masks must be integers (num_images, H, W) for {len(examples)} images, got {masks.dtype} {masks.shape}"
            )
        self.examples, self.masks, self.ways, self.shots = examples, masks, ways, shots
        self.queries = dict.fromkeys(SPLITS, queries) | {"train": train_queries or queries}
        self.on_too_few, self.seed, self.name = on_too_few, seed, name
        self.preprocessor = preprocessor
        values = [each.value for of_split in classes.values() for each in of_split.values()]
        if twice := {value for value in values if values.count(value) > 1}:
            raise ValueError(f"{name}: two classes have the value {min(twice)} in the masks; give each its own")
        self._given = classes
        self._choose()

    def _choose(self) -> None:
        """The classes of each split with enough images in it."""
        split_of = np.full(len(self.examples), SPLITS.index("train"))
        for split in ("val", "test"):
            for of_class in self._given.get(split, {}).values():
                split_of[np.asarray(of_class.rows, np.int64)] = SPLITS.index(split)
        self.dropped: dict[str, int] = {}
        self._pools: dict[Split, Pool] = {}
        for split, of_split in self._given.items():
            rows = {name: np.unique(np.asarray(each.rows, np.int64)) for name, each in of_split.items()}
            own = {name: of_class[split_of[of_class] == SPLITS.index(split)] for name, of_class in rows.items()}
            least = self.shots + self.queries[split]
            short = {name: len(of_class) for name, of_class in own.items() if len(of_class) < least}
            if short and self.on_too_few == "error":
                first, count = next(iter(short.items()))
                raise ValueError(
                    f"{self.name}: {count} images in {split} show class {first!r}, and a task needs {least}; lower "
                    f"shots or queries, or leave such classes out by on_too_few: drop ({len(short)} in {split})"
                )
            if short:
                self.dropped[f"classes in {split} with fewer than {least} images"] = len(short)
            pool = Pool.of({name: of_class for name, of_class in own.items() if name not in short}, self.name)
            if len(pool) < self.ways:
                raise ValueError(
                    f"{self.name}: the {split} split has {len(pool)} classes with enough images, fewer than the "
                    f"{self.ways} ways of a task; lower ways or add classes"
                )
            self._pools[split] = pool
        self.class_names = {split: pool.names for split, pool in self._pools.items()}

    def task(self, split: Split, index: int) -> Task:
        classes, *parts = self._drawn(split, index)
        names = self.class_names[split]
        values = [self._given[split][names[number]].value for number in classes]
        batches = []
        for rows in parts:
            masks = torch.from_numpy(self.masks[rows].astype(np.int64))
            of_classes = torch.stack([masks == value for value in values], 1)
            background = (masks >= 0)[:, None] & ~of_classes.any(1, keepdim=True)
            targets = torch.cat([background, of_classes], 1).to(torch.float32)
            batches.append(Batch(self.examples.take(rows), targets, torch.ones(len(rows))))
        return Task(*batches)

    def _drawn(self, split: Split, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The classes (N,) of a task, and the rows of its support (S,) and query (Q,) images."""
        if split not in self._pools:
            known = ", ".join(self._pools)
            raise ValueError(f"{self.name} has no {split!r} split, only {known}; give it classes there")
        random, pool = generator(self.seed, split, index), self._pools[split]
        for _ in range(TRIES):
            classes = random.choice(len(pool), self.ways, replace=False)
            rows = [pool.flat[pool.starts[c] : pool.starts[c] + pool.sizes[c]] for c in classes]
            chosen = self._images(random, rows, split)
            if chosen is not None:
                support, query = (random.permutation(np.concatenate(of_part)) for of_part in chosen)
                return classes, support, query
        raise ValueError(
            f"{self.name}: no {self.ways} of the {len(pool)} classes in {split} were found that have enough different "
            "images; lower ways, shots or queries"
        )

    def _images(
        self, random: np.random.Generator, rows: Sequence[np.ndarray], split: Split
    ) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
        """For each class the images of the support and of the query set, all distinct; None if there are too few."""
        taken = np.empty(0, np.int64)
        support, query = [], []
        for number in sorted(range(len(rows)), key=lambda number: len(rows[number])):
            free = np.setdiff1d(rows[number], taken)
            if len(free) < self.shots + self.queries[split]:
                return None
            chosen = random.choice(free, self.shots + self.queries[split], replace=False)
            support.append(chosen[: self.shots])
            query.append(chosen[self.shots :])
            taken = np.concatenate([taken, chosen])
        return support, query

    def with_shots(self, shots: int) -> Self:
        other = copy(self)
        other.shots = shots
        other._choose()
        return other

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray:
        """The class (T,) of each task, or the classes (T, N) of tasks of several, by position in `class_names`."""
        classes = np.stack([self._drawn(split, index)[0] for index in indices])
        return classes[:, 0] if self.ways == 1 else classes

    def unit_names(self, split: Split) -> Sequence[str]:
        return self.class_names.get(split, ())

    def example_rows(self, split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
        _, support, query = self._drawn(split, index)
        return support, query

    def members(self, split: Split) -> dict[str, np.ndarray]:
        """All rows of a split together, as an image may show several classes."""
        return {"images": np.unique(self._pools[split].flat)} if split in self._pools else {}

    def sizes(self, split: Split) -> dict[str, int]:
        """The number of images that show each class."""
        return dict(zip(self._pools[split].names, self._pools[split].sizes.tolist())) if split in self._pools else {}

    def pretraining_batch(self, step: int, size: int) -> Batch:
        raise ValueError(f"{self.name} cannot pretrain: each task has classes of its own")

    def training_groups(self, most: int) -> list[Batch]:
        raise ValueError(f"{self.name} has no groups: each task has classes of its own")

    def describe(self) -> dict[str, Any]:
        about = {"source": self.name, "ways": self.ways, "shots": self.shots, "queries": self.queries["test"]}
        about |= {"train_queries": self.queries["train"], "seed": self.seed}
        about |= {"classes": {split: len(names) for split, names in self.class_names.items()}}
        about |= {"mask_size": list(self.masks.shape[1:])}
        return about | (self.preprocessor.describe() if self.preprocessor else {}) | if_any(dropped=self.dropped)


MaskOptions = Annotated[Any, OptionsOf(MaskTasks, without=("examples", "masks", "classes", "name", "preprocessor"))]
"""Arguments of `MaskTasks` that factories pass on: ways, shots, queries, train_queries, on_too_few and seed."""
