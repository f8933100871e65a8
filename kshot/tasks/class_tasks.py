"""N-way K-shot classification from a pool of examples: the standard few-shot task.

Shape legend: T tasks, N classes of a task (largest number of ways), S support and Q query examples of a class at most,
K = S + Q.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.annotations import FractionBelowOne, OptionsOf, Size, Ways
from kshot.argument_checks import check_arguments
from kshot.data.dataset import Dataset, ImageDataset
from kshot.data.images.augment import Augment as ImageAugment
from kshot.supplied import Seed
from kshot.tasks.pool import OnTooFew, Pool, PooledSource, RowNumbers, Rows, plural
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.sampling import BySplit, Range, distinct
from kshot.tasks.source import generator, if_any
from kshot.types import Batch, Split, Task

Augment = Callable[[Tensor, np.random.Generator], Tensor]
"""Varies the inputs (n, ...) of a training task; a function of the generator."""

DEFAULT_WAYS = 5

Imbalance = Literal["random", "linear", "step"]
"""Shots over the classes of a task: drawn for each class, evenly spaced, or half of the classes low and half high."""


class ClassTasks(PooledSource):
    r"""Classify N classes from K examples of each; a task is a random choice of classes and of their examples.

    A task has `ways` classes of its split, chosen uniformly, and `shots + queries` distinct examples of each, which
    form the support and the query set. Labels 0 … ways-1 are assigned at random and rows are shuffled, so that neither
    carries information.

    Inputs are the examples, (ways * shots, ...) in the support and (ways * queries, ...) in the query; targets are
    one-hot float32 (n, ways).

    Args:
        examples: uint8 images (num_images, C, H, W), or any `Dataset`; of all splits.
        classes: class names of each split, with the rows of their examples. Splits share no class.
        ways, shots, queries: number of classes of a task, and of support and query examples of each class. Ranges
            (low, high) are drawn uniformly for each task. Shapes are then those of the largest task; smaller ones are
            padded with copies of their first row of weight 0, and have the first labels.
            Ways are by default 5, or the classes of the smallest split if these are fewer; "all" are all classes of the
            split.
        train_ways, test_ways: number of classes of a training or test task, `ways` by default, for learners that accept
            any number. More ways make harder tasks, which improve prototypical networks.
        train_queries: number of query examples in training tasks, `queries` by default. Fewer make a training step
            cheaper, and so allow more tasks in the same time.
        within: class to domain, such as the alphabet of a character. The classes of a task then come from one domain,
            chosen uniformly.
        imbalance: how shots of a range (low, high) are distributed over the classes of a task: "random" draws them for
            each class, "linear" spaces them evenly, "step" gives half of the classes low and the others high.
        label_noise: expected share of support labels that are flipped to another class of the task. One example of
            each class keeps its label, so that at most k - 1 of k shots are flipped; queries are clean.
        on_too_few: treatment of a class with fewer than `shots + queries` examples (upper ends of ranges): "error";
            "drop" leaves it out; "shrink" uses fewer queries, then fewer shots within the range, and leaves it out if
            that does not suffice. "drop" and "shrink" also leave out domains with too few classes.
        augment: varies the inputs of training tasks and pretraining batches.
        same_classes: whether the splits have the same classes, each with examples of its own, see `splitting.by_rows`.
        seed, name: random seed of task sampling, and the name of the source for reports and messages.
        preprocessor, left_out: of the files that the examples were read from, and what was left out: reason to count.

    Attributes:
        class_names: of each split; pretraining targets number the training classes in this order.
        dropped: what was left out in all: reason to count.

    Raises:
        ValueError: images that are not uint8 (num_images, C, H, W), sizes out of bounds, a class with too few examples
            or no domain, a split or domain with fewer classes than `ways`, an example or class in two splits.

    Example:
        >>> images = np.zeros((60, 1, 28, 28), np.uint8)
        >>> pool = {f"class {c}": range(20 * c, 20 * (c + 1)) for c in range(3)}
        >>> task = ClassTasks(images, {"train": pool}, ways=3, shots=1, queries=15).task("train", 0)
        >>> task.query.inputs.shape, task.query.targets.shape
        (torch.Size([45, 1, 28, 28]), torch.Size([45, 3]))

    References:
        Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra: Matching Networks for One Shot Learning, NeurIPS 2016,
        arXiv:1606.04080, section 4. Ranges and domains: Triantafillou et al.: Meta-Dataset, ICLR 2020,
        arXiv:1903.03096, section 3. Imbalance: Ochal et al.: Few-Shot Learning with Class Imbalance, arXiv:2101.02523.
    """

    objective = objectives.classification
    member = "class"

    @check_arguments
    def __init__(
        self,
        examples: np.ndarray | Dataset,
        classes: BySplit[Mapping[str, Rows]],
        *,
        ways: Ways | None = None,
        shots: Size = 1,
        queries: Size = 15,
        train_ways: Ways | None = None,
        test_ways: Ways | None = None,
        train_queries: Size | None = None,
        within: Mapping[str, str] | None = None,
        imbalance: Imbalance | None = None,
        label_noise: FractionBelowOne = 0.0,
        on_too_few: OnTooFew = "error",
        augment: Augment | None = None,
        same_classes: bool = False,
        seed: Seed = 0,
        name: str = "classes",
        preprocessor: Preprocessor | None = None,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        self._asked: dict[Split, Any] = {
            "train": ways if train_ways is None else train_ways,
            "val": ways,
            "test": ways if test_ways is None else test_ways,
        }
        for which, asked in zip(("train_ways", "ways", "test_ways"), self._asked.values()):
            _check_ways(asked, which, within)
        self.imbalance, self.label_noise, self.augment, self._within = imbalance, label_noise, augment, within
        self.same_classes = same_classes
        super().__init__(
            ImageDataset(examples) if isinstance(examples, np.ndarray) else examples, classes,
            shots=shots, queries=queries, train_queries=train_queries, on_too_few=on_too_few, seed=seed, name=name,
            preprocessor=preprocessor, left_out=left_out,
        )  # fmt: skip

    def _check_pools(self) -> None:
        if self.imbalance and self.shots.fixed:
            raise ValueError(f"imbalance {self.imbalance!r} needs shots as a range like [1, 9], got {self.shots.low}")
        if self.label_noise and self.shots.high == 1:
            raise ValueError("label_noise needs at least 2 shots: one example of each class keeps its label")
        sizes = {split: max(2, len(pool)) for split, pool in self._pools.items()}
        default = min(DEFAULT_WAYS, *sizes.values()) if self._within is None else DEFAULT_WAYS
        self._asked = {split: default if asked is None else asked for split, asked in self._asked.items()}
        self.ways = {
            split: Range(*[sizes.get(split, 2)] * 2) if asked == "all" else Range.of(asked, "ways", 2)
            for split, asked in self._asked.items()
        }
        self._domains = {split: self._domain_pool(split) for split in self._pools}
        self.class_names = {split: pool.names for split, pool in self._pools.items()}

    def with_shots(self, shots: int) -> Self:
        even = copy(self)
        even.imbalance = None
        return super(ClassTasks, even).with_shots(shots)

    @property
    def training_settings(self) -> dict[str, Any]:
        """The numbers of `ways`, `shots` and `queries`; and how images are augmented, as in `images`."""
        settings = super().training_settings | {"ways": self.ways["train"].plain()}
        if not self._has_images or not isinstance(self.augment, ImageAugment | None):
            return settings
        return settings | {"augment": asdict(self.augment) if self.augment else {}}

    def with_training(
        self, *, ways: Ways | None = None, augment: Mapping[str, Any] | None = None, **sizes: Any
    ) -> Self:
        other = copy(self)
        if ways is not None:
            _check_ways(ways, "ways", self._within)
            other._asked = self._asked | {"train": ways}
        if augment is not None:
            other.augment = ImageAugment(**augment) if augment else None
        return super(ClassTasks, other).with_training(**sizes)

    @property
    def _has_images(self) -> bool:
        """Whether an example is one image (C, H, W)."""
        example = self.examples.take(self._all_pools["train"].flat[:1])
        return isinstance(example, Tensor) and example.ndim == 4

    def classes(self, split: Split) -> dict[str, np.ndarray]:
        """Class names of a split with the rows of their examples."""
        return dict(self._pool(split).items())

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        pool = self._pool(split)
        N, S, Q = self.ways[split].high, self.shots.high, self.queries[split].high
        # Draws of options added later come last, so that the tasks of recorded runs stay the same.
        parts = [2 * N, 2 * N * (S + Q), N * S, N * Q, 4, N, 2 * N * S]
        generators = [generator(self.seed, split, index) for index in indices]
        draws = np.stack([random.random(sum(parts)) for random in generators])
        draws_of_parts = np.split(draws, np.cumsum(parts)[:-1], axis=1)
        of_classes, of_examples, order_S, order_Q, of_task, of_shots, of_noise = draws_of_parts
        chosen_TN, ways_T = self._chosen(split, of_classes, of_task)
        sizes_TN = pool.sizes[chosen_TN]
        shots_TN = np.minimum(self._shots(of_task[:, 2], of_shots, ways_T), sizes_TN - 1)
        queries_TN = np.minimum(self.queries[split].at(of_task[:, 3])[:, None], sizes_TN - shots_TN)
        taken_TNK = distinct(of_examples.reshape(-1, N, 2, S + Q), sizes_TN, shots_TN + queries_TN)
        rows_TNK = pool.flat[pool.starts[chosen_TN][..., None] + taken_TNK]
        present_TN1 = (np.arange(N) < ways_T[:, None])[..., None]
        batches = []
        for first_TN, size_TN, most, order in (
            (0 * shots_TN, shots_TN, S, order_S),
            (shots_TN, queries_TN, Q, order_Q),
        ):
            columns = first_TN[..., None] + np.arange(most)
            real = present_TN1 & (np.arange(most) < size_TN[..., None])
            rows = np.take_along_axis(rows_TNK, np.minimum(columns, S + Q - 1), 2)
            labels = np.broadcast_to(np.arange(N)[:, None], rows.shape)
            if order is order_S and self.label_noise:
                labels = self._flipped(labels, of_noise, shots_TN, ways_T)
            batch = self._batch(rows, labels, real, order, N)
            if split == "train" and self.augment:
                batch = batch._replace(inputs=torch.stack([*map(self.augment, batch.inputs, generators)]))
            batches.append(batch)
        return Task(*batches)

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray:
        """The classes (T, N) of each task, by position in `class_names`, in the order of the targets."""
        N, S, Q = self.ways[split].high, self.shots.high, self.queries[split].high
        before = 2 * N * (S + Q) + N * (S + Q)  # draws between those of the classes and those of the task
        draws = np.stack([generator(self.seed, split, index).random(2 * N + before + 4) for index in indices])
        chosen_TN, ways_T = self._chosen(split, draws[:, : 2 * N], draws[:, -4:])
        return np.where(np.arange(N) < ways_T[:, None], chosen_TN, -1)

    def example_rows(self, split: Split, index: int) -> tuple[np.ndarray, np.ndarray]:
        numbered = copy(self)
        numbered.examples, numbered.augment = RowNumbers(len(self.examples), targets=False), None
        support, query = ClassTasks.stack(numbered, split, [index])
        return support.inputs[0].numpy(), query.inputs[0].numpy()

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """`size` random training examples; targets one-hot over all training classes, (size, num_train_classes)."""
        pool = self._pool("train")
        positions, random = self._pretraining_positions(step, size)
        inputs = self.examples.take(pool.flat[positions])
        inputs = self.augment(inputs, random) if self.augment else inputs
        return Batch(inputs, _one_hot(pool.member_of(positions), len(pool)), torch.ones(size))

    def describe(self) -> dict[str, Any]:
        images = getattr(self.examples, "images", None)
        train_ways = self.ways["train"].plain() if self.ways["train"] != self.ways["val"] else None
        test_ways = self.ways["test"].plain()
        val_ways = self.ways["val"].plain()
        return {
            "source": self.name,
            "ways": test_ways,
            **if_any(train_ways=train_ways, val_ways=val_ways if val_ways != test_ways else None),
            **self._described_sizes(),
            **if_any(imbalance=self.imbalance, label_noise=self.label_noise),
            "seed": self.seed,
            **if_any(same_classes="the same classes in all splits, with other examples" * self.same_classes),
            "classes": {split: len(names) for split, names in self.class_names.items()},
            **({"domains": {split: len(pool) for split, pool in self._domains.items()}} if self._within else {}),
            **({"image_size": list(images.shape[1:])} if images is not None else {}),
            **self._described_data(),
        }

    def _chosen(self, split: Split, of_classes: np.ndarray, of_task: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The classes (T, N) of tasks, and how many of them (T,) a task has."""
        domains, N = self._domains[split], self.ways[split].high
        domain_T = (of_task[:, 0] * len(domains)).astype(np.int64)
        count_T = domains.sizes[domain_T]
        ways_T = self.ways[split].at(of_task[:, 1], most=count_T)
        chosen_TN = distinct(of_classes.reshape(-1, 2, N), count_T, ways_T)
        return domains.flat[domains.starts[domain_T][:, None] + chosen_TN], ways_T

    def _shots(self, of_task_T: np.ndarray, of_class_TN: np.ndarray, ways_T: np.ndarray) -> np.ndarray:
        """The number of shots (T, N) of each class."""
        low, high = self.shots
        if self.imbalance is None:
            return np.broadcast_to(self.shots.at(of_task_T)[:, None], of_class_TN.shape)
        if self.imbalance == "random":
            return self.shots.at(of_class_TN)
        ways_T1 = ways_T[:, None]
        absent = np.arange(of_class_TN.shape[1]) >= ways_T1
        rank_TN = (of_class_TN + absent).argsort(1).argsort(1)
        if self.imbalance == "step":
            return np.where(rank_TN < ways_T1 // 2, low, high)
        spread = low - 0.499 + rank_TN * (high - low + 0.998) / (ways_T1 - 1)
        return np.minimum(spread.round().astype(np.int64), high)

    def _flipped(self, labels: np.ndarray, draws: np.ndarray, shots_TN: np.ndarray, ways_T: np.ndarray) -> np.ndarray:
        """The labels (T, N, S), some of them flipped to another class of the task; never the first of a class."""
        flip, other = draws.reshape(len(draws), 2, *labels.shape[1:]).swapaxes(0, 1)
        chance_TN1 = (self.label_noise * shots_TN / np.maximum(shots_TN - 1, 1))[..., None]
        flipped = (flip < chance_TN1) & (np.arange(labels.shape[2]) > 0)
        others = (other * (ways_T[:, None, None] - 1)).astype(np.int64)
        return np.where(flipped, others + (others >= labels), labels)

    def _batch(self, rows: np.ndarray, labels: np.ndarray, real: np.ndarray, order: np.ndarray, ways: int) -> Batch:
        """Rows, labels and mask (T, N, k) of each class's examples as a batch (T, N * k) with padding at the end."""
        real = real.reshape(order.shape)
        order = (order + ~real).argsort(1)  # padding last
        real = np.take_along_axis(real, order, 1)
        first = np.where(real, order, order[:, :1])
        rows, labels = (np.take_along_axis(values.reshape(order.shape), first, 1) for values in (rows, labels))
        weight = torch.from_numpy(real.astype(np.float32))
        return Batch(self.examples.take(rows), _one_hot(labels, ways), weight)

    def _domain_pool(self, split: Split) -> Pool:
        """The class numbers of each domain; without domains, all classes form one."""
        names, least, within = self._pools[split].names, self.ways[split].low, self._within
        members: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            if within is not None and name not in within:
                raise ValueError(f"{self.name}: class {name!r} in {split} has no domain; give each class one")
            members.setdefault("" if within is None else within[name], []).append(number)
        domains = Pool.of(members, self.name)
        short = domains.sizes < least
        if short.any() and within is not None and self.on_too_few != "error":
            self.dropped[f"domains in {split} with fewer than {least} classes"] = int(short.sum())
            domains, short = domains.without(short), short[:0]
        if short.any() or not len(domains):
            what = f"domain {domains.names[int(short.argmax())]!r} of the" if within else "the"
            count = domains.sizes[short][0] if short.any() else 0
            left_out = f" ({', '.join(self.dropped)} were left out)" if self.dropped else ""
            todo = "lower ways or add classes" if count > 1 else "add classes"
            if within:
                todo += ", or leave such domains out by on_too_few: drop"
            elif count < 2 and not left_out:
                todo += (
                    ", or, if only these classes matter, split the examples of each: split: {rows: [0.5, 0.25, 0.25]}"
                )
            raise ValueError(
                f"{self.name}: {what} {split} split has {count} {self.member if count == 1 else plural(self.member)}, "
                f"fewer than the {least} ways of a task{left_out}; {todo}"
            )
        return domains


ClassOptions = Annotated[
    Any,
    OptionsOf(
        ClassTasks,
        without=("examples", "classes", "within", "augment", "same_classes", "name", "preprocessor", "left_out"),
    ),
]
"""Arguments of `ClassTasks` that factories pass on: ways, shots, queries, train_ways, test_ways, train_queries,
imbalance, label_noise, on_too_few and seed."""


def _check_ways(ways: Ways | None, name: str, within: Mapping[str, str] | None) -> None:
    if ways is None:
        return
    if ways != "all":
        Range.of(ways, name, 2)  # type: ignore[arg-type]  # another word than "all" is refused there
    elif within is not None:
        raise ValueError("ways: all takes all classes of a split, and within those of a domain: give one of them")


def _one_hot(labels: np.ndarray, ways: int) -> Tensor:
    """Valid class ids (..., n) as one-hot rows (..., n, ways)."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels), ways).to(torch.float32)
