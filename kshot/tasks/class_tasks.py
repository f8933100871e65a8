"""N-way K-shot classification from a pool of examples: the classic few-shot task.

Shape legend: T tasks, N classes of a task (most ways), S support and Q query examples of a class at most, K = S + Q.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from kshot import objectives
from kshot.data.dataset import Dataset, ImageDataset
from kshot.tasks.pool import OnTooFew, Pool, Rows, check_apart, large_enough
from kshot.tasks.preprocessor import Preprocessor
from kshot.tasks.sampling import Range, Size, distinct
from kshot.tasks.source import TaskSource, generator
from kshot.types import SPLITS, Batch, Split, Task, tree_map

Augment = Callable[[Tensor, np.random.Generator], Tensor]
"""Varies the inputs (n, ...) of a training task, as the generator says and nothing else."""

Imbalance = Literal["random", "linear", "step"]
"""How shots differ within a task: each class draws its own, they are spread evenly, or half are low and half high."""


class ClassTasks(TaskSource):
    r"""Tell N classes apart from K examples of each; a task is a draw of classes and of their examples.

    A task takes `ways` classes of its split, all equally likely, and `shots + queries` different examples of each,
    `shots` for the support and `queries` for the query. The labels 0 … ways-1 fall on the classes at random, and the
    rows are shuffled, so that neither a label nor a position tells anything beyond the task.

    Inputs are what the examples give, (ways * shots, ...) in the support and (ways * queries, ...) in the query;
    targets are one-hot float32 (n, ways).

    `ways`, `shots` and `queries` may be ranges, drawn anew for each task. The shapes are then those of the largest
    task; a smaller one ends in padding, which repeats its first row with weight 0, and its labels are the first ones.

    Args:
        examples: uint8 images (num_images, C, H, W), or any `Dataset`; all of all splits.
        classes: for each split, the class names, and for each name the rows of its examples. A class stands in one
            split only.
        ways: classes of a task; a range ends at the number of classes there are.
        shots: support examples of each class.
        queries: query examples of each class.
        train_ways: classes of a training task, as many as `ways` by default, for learners that take any number: more
            of them make harder tasks, which prototypical networks learn better from.
        train_queries: query examples of each class in training tasks, as many as `queries` by default. Fewer make a
            training step cheaper, and so buy more tasks for the same time.
        within: class to its domain, such as the alphabet of a character. All classes of a task then come from one
            domain, each of which is equally likely.
        imbalance: how shots given as a range (low, high) differ between the classes of a task: "random" draws them
            for each class on its own, "linear" spreads them evenly from low to high, "step" gives half of the classes
            low and the others high. None: all classes of a task have the same.
        label_noise: the share of support labels, in expectation, that are flipped to another class of the task. One
            example of each class keeps its label, so at most k - 1 of k shots are flipped, and the query is clean.
        on_too_few: what becomes of a class with fewer than `shots + queries` examples (the most of a range): "error";
            "drop" leaves it out; "shrink" takes fewer queries of it, then fewer shots within the range, and leaves it
            out where even that fails. With "drop" and "shrink" a domain with too few classes is left out too.
        augment: varies the inputs of training tasks and pretraining batches; all other splits stay as they are.
        seed: names the sequence of tasks.
        name: of the source, for reports and messages.
        preprocessor: of the files that the examples were read from.
        left_out: what was left out of the data before: reason to count.

    Attributes:
        examples: what the rows point at.
        class_names: for each split its class names; pretraining targets count the training classes in this order.
        dropped: what was left out: reason to count.

    Raises:
        ValueError: images that are not uint8 (num_images, C, H, W), sizes out of bounds, a class with too few examples,
            a split or domain with fewer classes than `ways`, an example or class that stands in two splits, a class
            without a domain.

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

    def __init__(
        self,
        examples: np.ndarray | Dataset,
        classes: Mapping[Split, Mapping[str, Rows]],
        *,
        ways: Size = 5,
        shots: Size = 1,
        queries: Size = 15,
        train_ways: Size | None = None,
        train_queries: Size | None = None,
        within: Mapping[str, str] | None = None,
        imbalance: Imbalance | None = None,
        label_noise: float = 0.0,
        on_too_few: OnTooFew = "error",
        augment: Augment | None = None,
        seed: int = 0,
        name: str = "classes",
        preprocessor: Preprocessor | None = None,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        asked = Range.of(ways, "ways", 2)
        train = asked if train_ways is None else Range.of(train_ways, "train_ways", 2)
        self.ways = dict.fromkeys(SPLITS, asked) | {"train": train}
        asked = Range.of(queries, "queries", 1)
        train = asked if train_queries is None else Range.of(train_queries, "train_queries", 1)
        self.queries = dict.fromkeys(SPLITS, asked) | {"train": train}
        if imbalance not in (None, "random", "linear", "step"):
            raise ValueError(f"imbalance must be random, linear or step, got {imbalance!r}")
        if not 0 <= label_noise < 1:
            raise ValueError(f"label_noise is a share of the support labels, 0 … 1, got {label_noise}")
        self.label_noise, self.on_too_few = label_noise, on_too_few
        self.augment, self.seed, self.name, self.preprocessor = augment, seed, name, preprocessor
        self.examples: Dataset = ImageDataset(examples) if isinstance(examples, np.ndarray) else examples
        pools = {split: Pool(own, f"{name}: class") for split, own in classes.items()}
        check_apart(pools, len(self.examples), name, "class")
        self._all_pools, self._within, self._left_out = pools, within, dict(left_out or {})
        self._set_shots(Range.of(shots, "shots", 1), imbalance)

    def _set_shots(self, shots: Range, imbalance: Imbalance | None) -> None:
        """Set the number of shots, and keep the classes and domains that are large enough for it."""
        if imbalance and shots.fixed:
            raise ValueError(f"imbalance {imbalance!r} needs shots as a range such as [1, 9], got {shots.low}")
        if self.label_noise and shots.high == 1:
            raise ValueError("label_noise needs at least 2 shots: one example of each class keeps its label")
        self.shots, self.imbalance = shots, imbalance
        self._pools, self.dropped = large_enough(
            self._all_pools, shots, self.queries, self.on_too_few, self.name, "class"
        )
        self._domains = {split: self._of_domains(split, self._within) for split in self._pools}
        self.class_names = {split: pool.names for split, pool in self._pools.items()}
        self.dropped |= self._left_out

    def classes(self, split: Split) -> dict[str, np.ndarray]:
        """The classes of a split: name to the rows of its examples."""
        return dict(self._pool(split).items())

    def task(self, split: Split, index: int) -> Task:
        return tree_map(lambda leaf: leaf[0], self.stack(split, [index]))

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        pool, domains = self._pool(split), self._domains[split]
        N, S, Q = self.ways[split].high, self.shots.high, self.queries[split].high
        # What later options draw comes last, so that recorded tasks stay the same.
        parts = [2 * N, 2 * N * (S + Q), N * S, N * Q, 4, N, 2 * N * S]
        generators = [generator(self.seed, split, index) for index in indices]
        draws = np.stack([random.random(sum(parts)) for random in generators])
        of_classes, of_examples, order_S, order_Q, of_task, of_shots, of_noise = np.split(
            draws, np.cumsum(parts)[:-1], axis=1
        )
        domain_T = (of_task[:, 0] * len(domains)).astype(np.int64)
        count_T = domains.sizes[domain_T]
        ways_T = self.ways[split].at(of_task[:, 1], most=count_T)
        chosen_TN = distinct(of_classes.reshape(-1, 2, N), count_T, ways_T)
        chosen_TN = domains.flat[domains.starts[domain_T][:, None] + chosen_TN]
        sizes_TN = pool.sizes[chosen_TN]
        shots_TN = np.minimum(self._shots(of_task[:, 2], of_shots, ways_T), sizes_TN - 1)
        queries_TN = np.minimum(self.queries[split].at(of_task[:, 3])[:, None], sizes_TN - shots_TN)
        taken_TNK = distinct(of_examples.reshape(-1, N, 2, S + Q), sizes_TN, shots_TN + queries_TN)
        rows_TNK = pool.flat[pool.starts[chosen_TN][..., None] + taken_TNK]
        present_TN1 = (np.arange(N) < ways_T[:, None])[..., None]
        batches = []
        for first_TN, end_TN, most, order in (
            (np.zeros_like(shots_TN), shots_TN, S, order_S),
            (shots_TN, shots_TN + queries_TN, Q, order_Q),
        ):
            own = first_TN[..., None] + np.arange(most)
            real = present_TN1 & (own < end_TN[..., None])
            rows = np.take_along_axis(rows_TNK, np.minimum(own, S + Q - 1), 2)
            labels = np.broadcast_to(np.arange(N)[:, None], rows.shape)
            if order is order_S and self.label_noise:
                labels = self._flipped(labels, of_noise, shots_TN, ways_T)
            batch = self._batch(rows, labels, real, order, N)
            if split == "train" and self.augment:
                batch = batch._replace(inputs=torch.stack([*map(self.augment, batch.inputs, generators)]))
            batches.append(batch)
        return Task(*batches)

    def pretraining_batch(self, step: int, size: int) -> Batch:
        """`size` random training examples; targets one-hot over all training classes, (size, num_train_classes)."""
        pool = self._pool("train")
        random = np.random.default_rng([self.seed, len(SPLITS), step])  # no split's number: other draws than any task's
        places = random.integers(len(pool.flat), size=size)
        labels = pool.member_of(places)
        inputs = self.examples.take(pool.flat[places])
        inputs = self.augment(inputs, random) if self.augment else inputs
        return Batch(inputs, _one_hot(labels, len(pool)), torch.ones(size))

    def with_shots(self, shots: int) -> Self:
        other = copy(self)
        other._set_shots(Range.of(shots, "shots", 1), None)
        return other

    def describe(self) -> dict[str, Any]:
        images = getattr(self.examples, "images", None)
        return {
            "source": self.name,
            "ways": self.ways["test"].plain(),
            **({"train_ways": self.ways["train"].plain()} if self.ways["train"] != self.ways["test"] else {}),
            "shots": self.shots.plain(),
            "queries": self.queries["test"].plain(),
            "train_queries": self.queries["train"].plain(),
            **({"imbalance": self.imbalance} if self.imbalance else {}),
            **({"label_noise": self.label_noise} if self.label_noise else {}),
            "seed": self.seed,
            "classes": {split: len(names) for split, names in self.class_names.items()},
            **(
                {"domains": {split: len(own) for split, own in self._domains.items()}}
                if self._within is not None
                else {}
            ),
            **({"image_size": list(images.shape[1:])} if images is not None else {}),
            **(self.preprocessor.describe() if self.preprocessor else {}),
            **({"dropped": self.dropped} if self.dropped else {}),
        }

    def _shots(self, of_task_T: np.ndarray, of_class_TN: np.ndarray, ways_T: np.ndarray) -> np.ndarray:
        """The shots (T, N) of each class."""
        low, high = self.shots
        if self.imbalance is None:
            return np.broadcast_to(self.shots.at(of_task_T)[:, None], of_class_TN.shape)
        if self.imbalance == "random":
            return self.shots.at(of_class_TN)
        ways_T1 = ways_T[:, None]
        present = np.arange(of_class_TN.shape[1]) < ways_T1
        rank_TN = np.where(present, of_class_TN, 1 + of_class_TN).argsort(1).argsort(1)
        if self.imbalance == "step":
            return np.where(rank_TN < ways_T1 // 2, low, high)
        spread = low - 0.499 + rank_TN * (high - low + 0.998) / (ways_T1 - 1)
        return np.minimum(spread.round().astype(np.int64), high)

    def _flipped(
        self, labels_TNS: np.ndarray, draws: np.ndarray, shots_TN: np.ndarray, ways_T: np.ndarray
    ) -> np.ndarray:
        """The labels, some of them another class of the task; never a class's first."""
        flip, other = draws.reshape(len(draws), 2, *labels_TNS.shape[1:]).swapaxes(0, 1)
        chance_TN1 = (self.label_noise * shots_TN / np.maximum(shots_TN - 1, 1))[..., None]
        flipped = (flip < chance_TN1) & (np.arange(labels_TNS.shape[2]) > 0)
        others = (other * (ways_T[:, None, None] - 1)).astype(np.int64)
        return np.where(flipped, others + (others >= labels_TNS), labels_TNS)

    def _batch(self, rows: np.ndarray, labels: np.ndarray, real: np.ndarray, order: np.ndarray, ways: int) -> Batch:
        """Rows, labels and reality (T, N, k) of each class's examples as a batch (T, N * k), the padding last."""
        real = real.reshape(order.shape)
        order = np.where(real, order, 1 + order).argsort(1)
        real = np.take_along_axis(real, order, 1)
        first = np.where(real, order, order[:, :1])
        rows, labels = (np.take_along_axis(values.reshape(order.shape), first, 1) for values in (rows, labels))
        weight = torch.from_numpy(real.astype(np.float32))
        return Batch(self.examples.take(rows), _one_hot(labels, ways), weight)

    def _pool(self, split: Split) -> Pool:
        if split not in self._pools:
            raise ValueError(
                f"{self.name} has no {split!r} split, only {', '.join(self._pools)}; give it classes there"
            )
        return self._pools[split]

    def _of_domains(self, split: Split, within: Mapping[str, str] | None) -> Pool:
        """The class numbers of each domain; without domains, all classes are one."""
        names, least = self._pools[split].names, self.ways[split].low
        members: dict[str, list[int]] = {} if within is not None else {"": list(range(len(names)))}
        for number, name in enumerate(names if within is not None else ()):
            if within is None or name not in within:
                raise ValueError(f"{self.name}: class {name!r} in {split} has no domain; give each class one")
            members.setdefault(within[name], []).append(number)
        domains = Pool(members, self.name)
        short = domains.sizes < least
        if short.any() and within is not None and self.on_too_few != "error":
            self.dropped[f"domains in {split} with fewer than {least} classes"] = int(short.sum())
            domains, short = domains.without(short), short[:0]
        if short.any() or not len(domains):
            what = f"domain {domains.names[int(short.argmax())]!r} of the" if within else "the"
            count = domains.sizes[short][0] if short.any() else 0
            left_out = f" ({', '.join(self.dropped)} were left out)" if self.dropped else ""
            raise ValueError(
                f"{self.name}: {what} {split} split has {count} classes, fewer than the {least} ways of a task"
                f"{left_out}; lower ways or add classes"
                f"{', or leave such domains out by on_too_few: drop' if within else ''}"
            )
        return domains


def _one_hot(labels: np.ndarray, ways: int) -> Tensor:
    """Class ids (..., n), known to be right, as one-hot rows (..., n, ways)."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels), ways).to(torch.float32)
