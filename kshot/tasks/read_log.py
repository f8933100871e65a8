"""Who reads which split of a source, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np

from kshot.tasks.source import TaskSource
from kshot.types import Batch, Split, Task, Tree

EVALUATION = "evaluation"
"""The phase in which `kshot.evaluate` reads, where no other has begun before."""


class Watched(TaskSource):
    """A source that notes which splits are read, and in which phase of the work.

    `fit`, `run_until` and `evaluate` say what they are doing; what is read while nobody says so is noted under the
    phase "". A phase within a phase counts as the outer one: an evaluation that a decision asks for is a decision's.

    Args:
        source: any.
        note: called as `note(phase, split)` when a phase reads a split for the first time, so that a log that outlives
            the process can keep it.
        before: phases and splits that were noted earlier, by an interrupted run.

    Attributes:
        reads: (phase, split) to the number of tasks read.

    Example:
        >>> from kshot.sources.functions import sinusoids
        >>> source = watched(sinusoids())
        >>> with source.during("tuning"):
        ...     task = source.task("val", 0)
        >>> dict(source.reads)
        {('tuning', 'val'): 1}
    """

    def __init__(
        self,
        source: TaskSource,
        note: Callable[[str, Split], object] | None = None,
        before: Iterable[tuple[str, Split]] = (),
    ) -> None:
        self.source, self.objective, self.seed, self.preprocessor = (
            source,
            source.objective,
            source.seed,
            source.preprocessor,
        )
        self.reads: Counter[tuple[str, Split]] = Counter(dict.fromkeys(before, 1))
        self._note, self._phase = note, ""

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """What is read inside is read in this phase, unless an outer one has begun."""
        outer = self._phase
        self._phase = outer or phase
        try:
            yield
        finally:
            self._phase = outer

    def task(self, split: Split, index: int) -> Task:
        self._read(split, 1)
        return self.source.task(split, index)

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        self._read(split, len(indices))
        return self.source.stack(split, indices)

    def pretraining_batch(self, step: int, size: int) -> Batch:
        self._read("train", 1)
        return self.source.pretraining_batch(step, size)

    def outsiders(self, split: Split, index: int, count: int) -> Tree:
        self._read(split, 1)
        return self.source.outsiders(split, index, count)

    def subjects(self, split: Split, indices: Sequence[int]) -> np.ndarray | None:
        return self.source.subjects(split, indices)

    def with_shots(self, shots: int) -> TaskSource:
        """The watched source with other shots; its reads are not logged."""
        return self.source.with_shots(shots)

    def describe(self) -> dict[str, Any]:
        return self.source.describe()

    def _read(self, split: Split, num_tasks: int) -> None:
        if self._note is not None and (self._phase, split) not in self.reads:
            self._note(self._phase, split)
        self.reads[self._phase, split] += num_tasks


watched = Watched  # sources are made by lower-case names throughout


def during(source: TaskSource, phase: str) -> AbstractContextManager[None]:
    """A context in which what is read of a source that is watched is noted under a phase; of others nothing is."""
    return source.during(phase) if isinstance(source, Watched) else nullcontext()
