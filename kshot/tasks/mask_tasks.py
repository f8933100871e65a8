"""Few-shot segmentation: find the pixels of a class from a few images in which they are marked.

Shape legend: N classes of a task, K = N + 1 with the background, S support and Q query images, H × W pixels of a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch

from kshot import objectives
from kshot.annotations import OptionsOf, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.data.dataset import Dataset, RowArray
from kshot.supplied import Seed
from kshot.tasks.overlapping import OverlappingTasks
from kshot.tasks.pool import Pool, Rows
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.sampling import BySplit, of_splits
from kshot.types import SPLITS, Batch, Split, Task


class MaskClass(NamedTuple):
    """A class of a split: the value that its pixels have in the masks, and the images that show it."""

    value: int
    rows: Rows


class MaskTasks(OverlappingTasks):
    r"""Segment images into N classes and the background, from `shots` images of each class with their masks.

    A task has `ways` classes of its split, chosen uniformly, in random order, and `shots + queries` distinct images of
    each, which form the support and the query set; an image may show other classes of the task too. What belongs to
    none of them is background, classes of other tasks included.

    Inputs are the images or their feature maps; targets are one-hot masks float32 (S, K, H, W), the background first,
    and 0 in all classes where a pixel is not scored.

    No pixel of a test class is seen in training, not even as background; see `OverlappingTasks`.

    Args:
        examples: inputs by row number, of all splits.
        masks: integers (num_images, H, W), an array or another `RowArray`; -1 marks pixels that are not scored.
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
    member, members_called = "class", "classes"

    @check_arguments
    def __init__(
        self,
        examples: Dataset,
        masks: RowArray,
        classes: BySplit[Mapping[str, MaskClass]],
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
        if len(masks.shape) != 3 or masks.dtype.kind not in "iu" or len(masks) != len(examples):
            raise ValueError(
                f"masks must be integers (num_images, H, W) for {len(examples)} images, got {masks.dtype} {masks.shape}"
            )
        super().__init__(
            examples, ways=ways, shots=shots, queries=queries, train_queries=train_queries, on_too_few=on_too_few,
            seed=seed, name=name, preprocessor=preprocessor,
        )  # fmt: skip
        self.masks = masks
        values = [each.value for of_split in classes.values() for each in of_split.values()]
        if twice := {value for value in values if values.count(value) > 1}:
            raise ValueError(f"{name}: two classes have the value {min(twice)} in the masks; give each its own")
        self._given = of_splits(classes, name)
        self._choose()

    def _choose(self) -> None:
        shown = {
            split: {name: np.unique(np.asarray(each.rows, np.int64)) for name, each in of_split.items()}
            for split, of_split in self._given.items()
        }
        split_of = self._split_of(shown)
        self.dropped = {}
        self._pools: dict[Split, Pool] = {}
        for split, rows in shown.items():
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
            targets = one_hot_masks(self.masks[rows], values)
            batches.append(Batch(self.examples.take(rows), targets, torch.ones(len(rows))))
        return Task(*batches)

    def _examples_of(
        self, random: np.random.Generator, split: Split, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Their rows: for each class so many of the images that show it, all distinct."""
        pool, taken = self._pools[split], np.empty(0, np.int64)
        rows = [pool.flat[pool.starts[c] : pool.starts[c] + pool.sizes[c]] for c in labels]
        support, query = [], []
        for number in sorted(range(len(rows)), key=lambda number: len(rows[number])):
            free = np.setdiff1d(rows[number], taken)
            if len(free) < self.shots + self.queries[split]:
                return None
            chosen = random.choice(free, self.shots + self.queries[split], replace=False)
            support.append(chosen[: self.shots])
            query.append(chosen[self.shots :])
            taken = np.concatenate([taken, chosen])
        return random.permutation(np.concatenate(support)), random.permutation(np.concatenate(query))

    def _names(self) -> Mapping[Split, Sequence[str]]:
        return self.class_names

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray:
        """The class (T,) of each task, or the classes (T, N) of tasks of several, by position in `class_names`."""
        classes = np.stack([self._drawn(split, index)[0] for index in indices])
        return classes[:, 0] if self.ways == 1 else classes

    def example_rows(self, split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
        _, support, query = self._drawn(split, index)
        return support, query

    def members(self, split: Split) -> dict[str, np.ndarray]:
        """All rows of a split together, as an image may show several classes."""
        return {"images": np.unique(self._pools[split].flat)} if split in self._pools else {}

    def sizes(self, split: Split) -> dict[str, int]:
        """The number of images that show each class."""
        return dict(zip(self._pools[split].names, self._pools[split].sizes.tolist())) if split in self._pools else {}

    def training_groups(self, most: int) -> list[Batch]:
        raise ValueError(f"{self.name} has no groups: each task has classes of its own")

    def _described(self) -> dict[str, Any]:
        return {"mask_size": list(self.masks.shape[1:])}


def one_hot_masks(masks: np.ndarray, values: Sequence[int]) -> torch.Tensor:
    """Masks (n, H, W) of integers as float32 (n, 1 + len(values), H, W), the background first, 0 where below 0."""
    of_classes = np.stack([masks == value for value in values], 1)
    background = (masks >= 0)[:, None] & ~of_classes.any(1, keepdims=True)
    return torch.from_numpy(np.concatenate([background, of_classes], 1).astype(np.float32))


MaskOptions = Annotated[Any, OptionsOf(MaskTasks, without=("examples", "masks", "classes", "name", "preprocessor"))]
"""Arguments of `MaskTasks` that factories pass on: ways, shots, queries, train_queries, on_too_few and seed."""
