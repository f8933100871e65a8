"""A log of which splits of a source are read, and in which phase of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from kshot.tasks.source import TaskSource
from kshot.types import Batch, Split, Task, Tree

EVALUATION = "evaluation"
"""The phase of reads by `kshot.evaluate`, unless another phase encloses it."""

Note = Callable[[str, Split], object]


def watched(source: TaskSource, note: Note | None = None, before: Iterable[tuple[str, Split]] = ()) -> Watched:
    """Log which splits of a source are read, and in which phase.

    `fit`, `run_until` and `evaluate` declare their phase; other reads are logged under the phase "". A nested phase
    counts as the outer one: an evaluation within a decision is a read of the decision.

    Args:
        note: called as `note(phase, split)` at the first read of a split in a phase, so that a log can be persisted.
        before: phases and splits that an interrupted run has logged already.

    Example:
        >>> from kshot.sources.functions import sinusoids
        >>> source = watched(sinusoids())
        >>> with source.during("tuning"):
        ...     task = source.task("val", 0)
        >>> dict(source.reads)
        {('tuning', 'val'): 1}
    """
    return Watched(source, note, before)


class Watched(TaskSource):
    """A source whose reads are logged, see `watched`: `reads` is (phase, split) to the number of tasks read."""

    def __init__(self, source: TaskSource, note: Note | None, before: Iterable[tuple[str, Split]]) -> None:
        self.source, self.objective, self.seed = source, source.objective, source.seed
        for name in ("preprocessor", "member", "unit", "texts", "copies_are_errors", "forecasts"):
            setattr(self, name, getattr(source, name))
        self.reads: Counter[tuple[str, Split]] = Counter(dict.fromkeys(before, 1))
        self._note, self._phase = note, ""

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """A context whose reads are logged under a phase, unless an outer phase encloses it."""
        outer = self._phase
        self._phase = outer or phase
        try:
            yield
        finally:
            self._phase = outer

    def task(self, split: Split, index: int) -> Task:
        self._log(split, 1)
        return self.source.task(split, index)

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        self._log(split, len(indices))
        return self.source.stack(split, indices)

    def pretraining_batch(self, step: int, size: int) -> Batch:
        self._log("train", 1)
        return self.source.pretraining_batch(step, size)

    def training_groups(self, most: int) -> list[Batch]:
        self._log("train", 1)
        return self.source.training_groups(most)

    def out_of_scope_inputs(self, split: Split, index: int, count: int) -> Tree:
        self._log(split, 1)
        return self.source.out_of_scope_inputs(split, index, count)

    def units(self, split: Split, indices: Sequence[int]) -> np.ndarray | None:
        return self.source.units(split, indices)

    def unit_names(self, split: Split) -> Sequence[str]:
        return self.source.unit_names(split)

    def members(self, split: Split) -> dict[str, np.ndarray]:
        return self.source.members(split)

    def sizes(self, split: Split) -> dict[str, int]:
        return self.source.sizes(split)

    def num_tasks(self, split: Split) -> int | None:
        return self.source.num_tasks(split)

    def with_shots(self, shots: int) -> TaskSource:
        """The source with other shots, whose reads are not logged."""
        return self.source.with_shots(shots)

    def describe(self) -> dict[str, Any]:
        return self.source.describe()

    def _log(self, split: Split, num_tasks: int) -> None:
        if self._note is not None and (self._phase, split) not in self.reads:
            self._note(self._phase, split)
        self.reads[self._phase, split] += num_tasks


def during(source: TaskSource, phase: str) -> AbstractContextManager[None]:
    """A context in which reads of a watched source are logged under a phase; without effect on other sources."""
    return source.during(phase) if isinstance(source, Watched) else nullcontext()
