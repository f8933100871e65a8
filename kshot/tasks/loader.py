"""Tasks from iterables of tasks, such as the `DataLoader`s of learn2learn and torchmeta, as a source."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.conversion import to_tensors
from kshot.objectives import Objective, classification
from kshot.tasks.sampling import BySplit, of_splits
from kshot.tasks.source import TaskSource
from kshot.types import Batch, Split, Task, tree_leaves, tree_map

KEPT = 256
"""Training tasks, from the first, that can be read again, as audits do; val and test tasks are all kept."""

PAIRS = (("support", "query"), ("train", "test"))
"""Keys of the two sets of a task: those of most code, and those of torchmeta."""


@check_arguments
def from_loader(
    train: Iterable[Any] | None = None,
    *,
    val: Iterable[Any] | None = None,
    test: Iterable[Any] | None = None,
    objective: Objective = classification,
    ways: PositiveInt | None = None,
    shots: PositiveInt | None = None,
    stacked: bool | None = None,
    units: BySplit[Sequence[Hashable]] | None = None,
    unit: str | None = None,
    seed: int = 0,
) -> LoaderTasks:
    """Make a source of iterables that yield tasks, one for each split.

    What an iterable yields, with tensors, arrays or lists for x and y, is one of

    - a `Task`, or a dict of its sets, {"support": (x, y), "query": (x, y)}, or with the keys "train" and "test" as in
      torchmeta;
    - a tuple (x_support, y_support, x_query, y_query), or ((x_support, y_support), (x_query, y_query));
    - a pair (x, y) as in learn2learn, of which the first `shots` examples of each class are the support set.

    Tasks come in the order of the iterable, so that **they are no function of (seed, split, index)** as in other
    sources. A split is read once, from its start: val and test tasks are kept in memory, so that each evaluation sees
    the same ones; a training split starts again at its end, and can go back to its first 256 tasks only. A resumed
    training skips the tasks of earlier steps; it equals an uninterrupted one only if the iterable yields the same tasks
    in the same order, as a `DataLoader` with `shuffle=False` or a generator of a fixed seed does.

    Args:
        train, val, test: iterables, such as a `DataLoader`; training tasks start again at the end of an iterable that
            can be iterated several times.
        objective: loss and metrics of the tasks.
        ways: number of classes, if targets are class ids 0 … ways-1, which become one-hot.
        shots: support examples of each class, if the iterable yields pairs (x, y).
        stacked: whether what is yielded holds several tasks along a leading axis. By default it does for a `DataLoader`
            with a `batch_size`, since its `collate_fn` adds this axis.
        units: of a split, the unit of each task in the order of the iterable, such as the name of its patient, over
            which intervals are computed; by default each task is its own.
        unit: what a unit is called, such as "patient"; "unit" by default.
        seed: random seed, with the number of the task, of random numbers in an evaluation.

    Raises:
        ValueError: when a task is read, if it has none of these forms, or does not suit the objective.

    Example:
        >>> x, y = torch.randn(20, 4, 2), torch.tensor([0, 1, 0, 1]).expand(20, 4)  # 20 tasks of 4 examples
        >>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5)
        >>> source = from_loader(loader, ways=2, shots=1)
        >>> source.task("train", 7).support.targets
        tensor([[1., 0.],
                [0., 1.]])
    """
    given = {"train": train, "val": val, "test": test}
    loaders: dict[Any, Iterable[Any]] = {split: loader for split, loader in given.items() if loader is not None}
    if not loaders:
        raise ValueError("give at least one iterable of tasks: train, val or test")
    if unknown := [split for split in units or () if split not in loaders]:
        raise ValueError(f"units are given for {unknown[0]}, of which there is no iterable; give {unknown[0]}=…")
    source = LoaderTasks(loaders, objective, ways, shots, stacked, seed, units)
    source.unit = unit or ("unit" if units else None)
    return source


class LoaderTasks(TaskSource):
    """Tasks of `from_loader`, in the order of the iterables."""

    def __init__(
        self,
        loaders: Mapping[Split, Iterable[Any]],
        objective: Objective,
        ways: int | None,
        shots: int | None,
        stacked: bool | None,
        seed: int,
        units: BySplit[Sequence[Hashable]] | None = None,
    ) -> None:
        self.loaders, self.objective, self.seed = dict(loaders), objective, seed
        self.ways, self.shots, self.stacked = ways, shots, stacked
        self._streams: dict[tuple[Split, int], _Stream] = {}
        given = of_splits(units or {}, "units")
        self._names = {split: list(dict.fromkeys(map(_plain, names))) for split, names in given.items()}
        self._units = {split: _positions(self._names[split], names) for split, names in given.items()}

    def task(self, split: Split, index: int) -> Task:
        if split not in self.loaders:
            raise ValueError(
                f"there is no iterable of {split} tasks, only of {', '.join(self.loaders)}; give {split}=…"
            )
        # trainings of different seeds use different ranges of indices, see training.fit.first_task
        first, position = divmod(index, 2**32)
        if (split, first) not in self._streams:
            self._streams[split, first] = _Stream(split, self._tasks(split), KEPT if split == "train" else None)
        return self._streams[split, first].task(position)

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray | None:
        if split not in self._units:
            return None
        units, positions = self._units[split], np.asarray(indices, np.int64) % 2**32
        if len(positions) and positions.max() >= len(units):
            raise ValueError(
                f"units has {len(units)} entries for {split}, but task {positions.max()} was asked for: give the unit "
                "of each task"
            )
        return units[positions]

    def unit_names(self, split: Split) -> Sequence[str]:
        return [str(name) for name in self._names.get(split, ())]

    def num_tasks(self, split: Split) -> int | None:
        """The number of val or test tasks, which reads them all; None for training tasks and for iterators."""
        if split == "train" or isinstance(self.loaders.get(split, iter(())), Iterator):
            return None
        self.task(split, 0)
        return self._streams[split, 0].count()

    def describe(self) -> dict[str, Any]:
        loaders = {split: type(loader).__name__ for split, loader in self.loaders.items()}
        options = {"ways": self.ways, "shots": self.shots}
        return {"source": "iterables of tasks", "loaders": loaders, "seed": self.seed} | {
            name: value for name, value in options.items() if value is not None
        }

    def _tasks(self, split: Split) -> Iterator[Task]:
        """The tasks of a split; those of training without end."""
        loader = self.loaders[split]
        stacked = getattr(loader, "batch_size", None) is not None if self.stacked is None else self.stacked
        while True:
            empty = True
            for item in loader:
                sets = _sets(item)
                for single in _unstacked(sets) if stacked else [sets]:
                    empty = False
                    yield self._make_task(single)
            if empty:
                raise ValueError(
                    f"the iterable of {split} tasks has no more tasks; give one that can be iterated again, such as a "
                    "DataLoader, or take fewer steps"
                )
            if split != "train":
                return

    def _make_task(self, sets: tuple[Any, ...]) -> Task:
        if len(sets) == 1:
            support, query = self._split_by_shots(*sets[0])
        else:
            support, query = (part if isinstance(part, Batch) else Batch.of(*part, ways=self.ways) for part in sets)
        for part in (support, query):
            try:
                self.objective.check_targets(part.targets)
            except ValueError as error:
                advice = "" if self.ways is not None else "; give ways= if the targets are class ids"
                raise ValueError(f"tasks of the iterable do not suit the objective: {error}{advice}") from None
        return Task(support, query)

    def _split_by_shots(self, inputs: Any, labels: Any) -> tuple[Batch, Batch]:
        """The support and query set of a pair: the first examples of each class, and the others."""
        if self.shots is None or self.ways is None:
            raise ValueError(
                "the iterable yields pairs (x, y) without a query set: give ways= and shots=, so that the first "
                "examples of each class become the support set"
            )
        examples = Batch.of(inputs, labels, ways=self.ways)
        rank = (examples.targets.cumsum(0) * examples.targets).sum(1)  # 1 for the first of its class
        support = rank <= self.shots
        counts = examples.rows(support).targets.sum(0)
        if support.all() or (counts < self.shots).any():
            raise ValueError(
                f"a task of {len(support)} examples of {self.ways} classes has too few for {self.shots} shots each and "
                "a query set"
            )
        return examples.rows(support), examples.rows(~support)


def _plain(name: Hashable) -> Hashable:
    """A name; the number of a tensor or array of one number, which are not equal to one another."""
    return name.item() if hasattr(name, "item") else name


def _positions(names: Sequence[Hashable], of_tasks: Sequence[Hashable]) -> np.ndarray:
    number = {name: position for position, name in enumerate(names)}
    return np.array([number[_plain(name)] for name in of_tasks], np.int64)


class _Stream:
    """Tasks of an iterator by position; the first `kept` are kept, all if None."""

    def __init__(self, split: Split, tasks: Iterator[Task], kept: int | None) -> None:
        self.split, self.tasks, self.kept = split, tasks, kept
        self.first: list[Task] = []
        self.latest: dict[int, Task] = {}  # the last that was read
        self.read = 0

    def task(self, position: int) -> Task:
        while self.read <= position:
            try:
                task = next(self.tasks)
            except StopIteration:
                raise ValueError(
                    f"the iterable has {self.read} {self.split} tasks, 0 … {self.read - 1}; task {position} was asked "
                    "for: ask for fewer by num_tasks="
                ) from None
            if self.kept is None or self.read < self.kept:
                self.first.append(task)
            self.latest = {self.read: task}
            self.read += 1
        if position < len(self.first):
            return self.first[position]
        if position in self.latest:
            return self.latest[position]
        raise ValueError(
            f"training task {position} has been read and is not kept, since an iterable cannot go back: make a new "
            "source by from_loader to train again from the start, or give fit another seed"
        )

    def count(self) -> int:
        """The number of all tasks, which are read."""
        self.first += list(self.tasks)
        self.read = len(self.first)
        return self.read


def _sets(item: Any) -> tuple[Any, ...]:
    """What an iterable yields as (support, query), or as ((x, y),) if it does not divide a task."""
    if isinstance(item, Task):
        return tuple(item)
    if isinstance(item, Mapping):
        for names in PAIRS:
            if set(item) == set(names):
                return tuple(_pair(item[name]) for name in names)
    elif isinstance(item, list | tuple):
        if len(item) == 4:
            return tuple(item[:2]), tuple(item[2:])
        if len(item) == 2:
            nested = all(isinstance(part, list | tuple) and len(part) == 2 for part in item)
            return tuple(map(_pair, item)) if nested else (tuple(item),)
    kind = f"a dict of {', '.join(map(str, item))}" if isinstance(item, Mapping) else f"a {type(item).__name__}"
    length = f" of {len(item)}" if isinstance(item, list | tuple) else ""
    raise ValueError(
        f"the iterable yields {kind}{length}, which is no task: expected a kshot.Task, a dict of support and query or "
        "of train and test, each (x, y), a tuple (x_support, y_support, x_query, y_query), or a pair (x, y)"
    )


def _pair(part: Any) -> Any:
    if isinstance(part, Batch):
        return part
    if not isinstance(part, list | tuple) or len(part) != 2:
        raise ValueError(f"each set of a task must be a pair (x, y), got a {type(part).__name__}")
    return tuple(part)


def _unstacked(sets: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The tasks of a stack, each as its sets."""
    tree = tuple(part if isinstance(part, Batch) else to_tensors(part, "inputs") for part in sets)
    for number in range(len(tree_leaves(tree)[0])):
        yield tree_map(lambda leaf, number=number: leaf[number], tree)
