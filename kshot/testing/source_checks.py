"""The contract of a task source as checks: what learners, trainers and evaluations assume of its tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_leaves, tree_map

from kshot import types
from kshot.checking.duplicates import content_hashes
from kshot.objectives import Objective
from kshot.tasks.source import TaskSource
from kshot.testing.running import Check, is_close, is_equal, named_checks, require, run_checks
from kshot.types import SPLITS, Batch, Split, Task, Tree

COPIES = 0.01
"""Share of copied examples that real data may hold."""


def check_source(source: TaskSource, *, splits: Sequence[Split] = SPLITS, num_tasks: int = 8) -> None:
    """Check that a source keeps the contract of `TaskSource`, on the first tasks of each split.

    Args:
        source: the source.
        splits: splits that it has; all three for most.
        num_tasks: number of tasks of each split that are drawn, at least 2.

    Raises:
        AssertionError: a check fails; the message has a sentence for each failure, headed by the name of the check.

    Example:
        >>> import kshot
        >>> check_source(kshot.sources.sinusoids())
    """
    run_checks(f"the source {type(source).__name__}", source_checks(source, splits=splits, num_tasks=num_tasks))


def source_checks(source: TaskSource, *, splits: Sequence[Split] = SPLITS, num_tasks: int = 8) -> Iterator[Check]:
    """The checks of `check_source`, for example for `pytest.mark.parametrize`.

    Args:
        source, splits, num_tasks: as in `check_source`.

    Yields:
        (name, check), the check a function without arguments that raises AssertionError.

    Example:
        >>> import kshot
        >>> [name for name, _ in source_checks(kshot.sources.sinusoids())]
        ['shapes', 'values', 'objective', 'purity', 'stack', ...]
    """
    return named_checks(_Contract(source, splits, num_tasks).checks())


class _Contract:
    def __init__(self, source: TaskSource, splits: Sequence[Split], num_tasks: int) -> None:
        if num_tasks < 2:
            raise ValueError(f"num_tasks must be at least 2, got {num_tasks}")
        self.source, self.splits, self.num_tasks = source, splits, num_tasks
        self.drawn: dict[Split, list[Task]] = {}

    def checks(self) -> Iterator[tuple[str, Callable[[], None]]]:
        yield "shapes", self.shapes
        yield "values", self.values
        if self.source.objective.task_specific_classes:
            yield "targets", self.targets
        yield "objective", self.objective
        yield "purity", self.purity
        yield "stack", self.stack
        yield "support and query", self.support_and_query
        yield "splits", self.disjoint_splits
        yield "pretraining", self.pretraining
        yield "units", self.units
        yield "description", self.description

    def tasks(self, split: Split) -> list[Task]:
        if split not in self.drawn:
            self.drawn[split] = [self.source.task(split, index) for index in range(self.num_tasks)]
        return self.drawn[split]

    def batches(self) -> Iterator[tuple[str, Batch]]:
        """Each support and query batch of the drawn tasks, and where it is from."""
        for split in self.splits:
            for index, task in enumerate(self.tasks(split)):
                for name, batch in zip(Task._fields, task):
                    yield f"the {name} of task {index} of {split}", batch

    def shapes(self) -> None:
        """Batches whose leaves have one row for each weight, and the same shape of a row in support and query."""
        for where, batch in self.batches():
            require(isinstance(batch, Batch), f"{where} is a {type(batch).__name__}, not a kshot.Batch")
            require(batch.weight.ndim == 1, f"{where} has weight {tuple(batch.weight.shape)}, expected (n,)")
            for name in ("inputs", "targets"):
                sizes = {len(leaf) for leaf in tree_leaves(getattr(batch, name))}
                require(
                    sizes == {len(batch.weight)},
                    f"{where} has {len(batch.weight)} weights, and {name} of {sorted(sizes)} rows",
                )
        for split in self.splits:
            for index, task in enumerate(self.tasks(split)):
                for name in ("inputs", "targets"):
                    support, query = (
                        [tuple(leaf.shape[1:]) for leaf in tree_leaves(getattr(batch, name))] for batch in task
                    )
                    require(
                        support == query,
                        f"a row of {name} has the shapes {support} in the support of task {index} of {split}, and "
                        f"{query} in its query",
                    )

    def values(self) -> None:
        """Finite numbers; weights of 0 or more, with a row of positive weight in each batch."""
        for where, batch in self.batches():
            require(
                batch.weight.is_floating_point(), f"{where} has weights of type {batch.weight.dtype}, expected float"
            )
            require(
                bool(torch.isfinite(batch.weight).all() and (batch.weight >= 0).all()),
                f"{where} has a weight that is negative or not finite",
            )
            require((batch.weight > 0).any(), f"{where} has no row of positive weight")
            for name in ("inputs", "targets"):
                for leaf in tree_leaves(getattr(batch, name)):
                    require(bool(torch.isfinite(leaf).all()), f"{where} has {name} that are not finite")

    def targets(self) -> None:
        """Targets are one-hot or probabilities, (n, ways), and the query's classes have support examples."""
        for where, batch in self.batches():
            targets = batch.targets
            require(
                isinstance(targets, Tensor) and targets.ndim == 2 and targets.is_floating_point(),
                f"{where} has targets that are not one-hot (n, ways); pass class ids through kshot.one_hot",
            )
            rows = _real(batch).targets
            require(
                bool((rows >= 0).all()) and is_close(rows.sum(1), torch.ones_like(rows[:, 0])),
                f"{where} has targets that are no probabilities: each row must be 0 or more, and sum to 1",
            )
        unseen = total = 0
        for task in (task for split in self.splits for task in self.tasks(split)):
            support, query = (_real(batch).targets for batch in task)
            unseen += int((query @ support.sum(0).sign() == 0).sum())
            total += len(query)
        require(2 * unseen < total, f"{unseen} of {total} queries are of a class without support examples")

    def objective(self) -> None:
        """Loss and metrics are finite numbers for the targets themselves, and ignore rows of weight 0."""
        objective = self.source.objective
        require(isinstance(objective, Objective), "source.objective is not a kshot.Objective")
        for where, batch in self.batches():
            figures = _figures(objective, batch)
            for name, figure in figures.items():
                require(
                    isinstance(figure, Tensor) and figure.ndim == 0,
                    f"{name} of {where} is no tensor of shape (), but {figure!r}",
                )
                require(torch.isfinite(figure), f"{name} of {where} is not finite, with the targets as prediction")
            longer = Batch(*tree_map(lambda leaf: torch.cat([leaf, leaf[:1]]), tuple(batch)))
            longer.weight[-1] = 0
            for name, figure in _figures(objective, longer).items():
                require(is_close(figure, figures[name]), f"a row of weight 0 changes {name} of {where}")

    def purity(self) -> None:
        """A task is a function of (seed, split, index), and no other random numbers are read or changed."""
        for split in self.splits:
            tasks = self.tasks(split)
            for index in reversed(range(self.num_tasks)):
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(index + 1)
                    with _numpy_seeded(index + 1):
                        before = torch.get_rng_state(), _numpy_state()
                        again = self.source.task(split, index)
                        after = torch.get_rng_state(), _numpy_state()
                require(
                    is_equal(tuple(again), tuple(tasks[index])),
                    f"task {index} of {split} is another one when it is drawn again; draw from "
                    "kshot.tasks.source.generator(seed, split, index) alone",
                )
                require(
                    torch.equal(before[0], after[0]) and before[1] == after[1],
                    f"drawing task {index} of {split} advances the global random numbers of torch or numpy",
                )
            require(
                any(not is_equal(tuple(task), tuple(tasks[0])) for task in tasks),
                f"the first {self.num_tasks} tasks of {split} are all the same: the index has no effect",
            )

    def stack(self) -> None:
        """A stack holds the same tasks; only rows of weight 0, and columns of zeros, may be added."""
        for split in self.splits:
            tasks = self.tasks(split)
            order = list(reversed(range(self.num_tasks)))
            stacked = self.source.stack(split, order)
            for index, task in zip(order, types.unstack(stacked)):
                for name, alone, member in zip(Task._fields, tasks[index], task):
                    require(
                        _same_rows(_real(alone), _real(member)),
                        f"the {name} of task {index} of {split} differs in stack({split!r}, indices) from "
                        f"task({split!r}, {index})",
                    )

    def support_and_query(self) -> None:
        """No query is a copy of a support example of its task."""
        copies = total = 0
        for split in self.splits:
            for task in self.tasks(split):
                support, query = (self._keys(batch) for batch in task)
                copies += sum(key in set(support) for key in query)
                total += len(query)
        if not self._few_values():
            require(
                copies <= max(1, COPIES * total),
                f"{copies} of {total} queries are copies of a support example of their task",
            )

    def disjoint_splits(self) -> None:
        """The splits share no examples."""
        contents = {
            split: {key for task in self.tasks(split) for batch in task for key in self._keys(batch)}
            for split in self.splits
        }
        if self._few_values():
            return
        for number, split in enumerate(self.splits):
            for other in self.splits[number + 1 :]:
                shared = len(contents[split] & contents[other])
                require(
                    shared <= max(1, COPIES * min(len(contents[split]), len(contents[other]))),
                    f"{shared} of {len(contents[split])} examples of {split} are in {other} too",
                )

    def pretraining(self) -> None:
        """Pretraining batches are a function of the step, finite, or refused by ValueError."""
        if "train" not in self.splits:
            return
        try:
            batch = self.source.pretraining_batch(0, 16)
        except ValueError:
            return
        again, other = self.source.pretraining_batch(0, 16), self.source.pretraining_batch(1, 16)
        require(
            is_equal(tuple(batch), tuple(again)), "pretraining_batch(0, 16) is another batch when it is drawn again"
        )
        require(not is_equal(tuple(batch), tuple(other)), "pretraining_batch gives the same batch at steps 0 and 1")
        for leaf in tree_leaves(tuple(batch)):
            require(len(leaf) == len(batch.weight), "the leaves of pretraining_batch(0, 16) differ in their rows")
            require(bool(torch.isfinite(leaf).all()), "pretraining_batch(0, 16) has values that are not finite")
        if self.source.objective.task_specific_classes:
            widths = {batch.targets.shape[1], other.targets.shape[1]}
            require(len(widths) == 1, "pretraining_batch must be one-hot over all training classes at each step")

    def units(self) -> None:
        """Units are None, or a number or several for each task, which do not depend on the other tasks."""
        for split in self.splits:
            units = self.source.units(split, range(self.num_tasks))
            require(
                units is None or len(units) == self.num_tasks,
                f"units({split!r}, …) must be None or have one entry for each of {self.num_tasks} tasks",
            )
            if units is not None:
                alone = self.source.units(split, [self.num_tasks - 1])
                same = alone is not None and bool((alone[0] == units[-1]).all())
                require(same, f"units({split!r}, …) of the last task differ if it is the only one")
                names = self.source.unit_names(split)
                require(
                    not names or int(units.max()) < len(names),
                    f"units({split!r}, …) has a number without a name in unit_names",
                )

    def description(self) -> None:
        """`describe()` is a dict that JSON can hold, with the seed."""
        description = self.source.describe()
        require(isinstance(description, dict), "describe() must return a dict")
        require("seed" in description, "describe() must have the entry 'seed'")
        try:
            json.dumps(description, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"describe() cannot be written as JSON: {error}") from error

    def _keys(self, batch: Batch) -> list[bytes]:
        """What makes two examples one: their inputs, and their targets where classes are not a task's own."""
        real = _real(batch)
        return content_hashes(real.inputs if self.source.objective.task_specific_classes else tuple(real[:2]))

    def _few_values(self) -> bool:
        """Whether equal inputs often have different targets, so that equal examples need not be copies."""
        if self.source.objective.task_specific_classes:
            return False
        targets: dict[bytes, bytes] = {}
        ambiguous = total = 0
        for split in self.splits:
            for task in self.tasks(split):
                for batch in map(_real, task):
                    for key, target in zip(content_hashes(batch.inputs), content_hashes(batch.targets)):
                        ambiguous += targets.setdefault(key, target) != target
                        total += 1
        return ambiguous > COPIES * total


@contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """A context in which numpy's global random numbers start from a seed; outside it they are untouched."""
    state = np.random.get_state()  # noqa: NPY002  # whether a source uses this generator is what is checked
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _numpy_state() -> tuple[bytes, int]:
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return state["key"].tobytes(), state["pos"]


def _real(batch: Batch) -> Batch:
    return batch.rows(batch.weight > 0)


def _figures(objective: Objective, batch: Batch) -> dict[str, Tensor]:
    prediction = objective.as_prediction(batch.targets)
    return {"the loss": objective.loss(prediction, batch)} | {
        f"the metric {name!r}": value for name, value in objective.metrics(prediction, batch).items()
    }


def _same_rows(alone: Tree, member: Tree) -> bool:
    """Whether a batch equals another that may have more columns, of zeros."""

    def widened(leaf: Tensor, shape: Iterable[int]) -> Tensor:
        missing = [size - own for size, own in zip(shape, leaf.shape)][1:]
        return pad(leaf, [amount for size in reversed(missing) for amount in (0, max(size, 0))])

    pairs = zip(tree_leaves(tuple(alone)), tree_leaves(tuple(member)))
    return all(is_equal(widened(leaf, wide.shape), wide) for leaf, wide in pairs)
