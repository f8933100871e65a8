"""A log of which splits of a source are read, and in which phase; and of test evaluations between trainings."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

from kshot.tasks.source import TaskSource
from kshot.tasks.wrapped import Wrapped
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


class Watched(Wrapped):
    """A source whose reads are logged, see `watched`: `reads` is (phase, split) to the number of tasks read."""

    def __init__(self, source: TaskSource, note: Note | None, before: Iterable[tuple[str, Split]]) -> None:
        super().__init__(source)
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
        self.log_read(split, 1)
        return self.source.task(split, index)

    def stack(self, split: Split, indices: Sequence[int]) -> Task:
        self.log_read(split, len(indices))
        return self.source.stack(split, indices)

    def pretraining_batch(self, step: int, size: int) -> Batch:
        self.log_read("train", 1)
        return self.source.pretraining_batch(step, size)

    def training_groups(self, most: int) -> list[Batch]:
        self.log_read("train", 1)
        return self.source.training_groups(most)

    def out_of_scope_inputs(self, split: Split, index: int, count: int) -> Tree:
        self.log_read(split, 1)
        return self.source.out_of_scope_inputs(split, index, count)

    @property
    def raw(self) -> TaskSource:
        raw = self.source.raw  # its reads are not logged: it holds no inputs
        return self if raw is self.source else raw

    def with_training(self, **settings: Any) -> Watched:
        """The source with other training tasks, whose reads are logged with those of this one."""
        other = copy(self)
        other.source = self.source.with_training(**settings)
        return other

    def with_shots(self, shots: int) -> TaskSource:
        """The source with other shots, whose reads are not logged."""
        return self.source.with_shots(shots)

    def log_read(self, split: Split, num_tasks: int) -> None:
        """Log that tasks of a split, or its rows, were read."""
        if self._note is not None and (self._phase, split) not in self.reads:
            self._note(self._phase, split)
        self.reads[self._phase, split] += num_tasks


def unwatched(source: TaskSource) -> TaskSource:
    """The source inside `watched`, whose reads are not logged; other sources unchanged."""
    return unwatched(source.source) if isinstance(source, Watched) else source


def during(source: TaskSource, phase: str) -> AbstractContextManager[None]:
    """A context in which reads of a watched source are logged under a phase; without effect on other sources."""
    return source.during(phase) if isinstance(source, Watched) else nullcontext()


class History(NamedTuple):
    """What this process did with the weights of a learner, and with the test split of a source.

    Attributes:
        trained: whether kshot trained the learner to its present weights.
        trained_after_test: whether it was trained on after it had been scored on test tasks, of any source.
        num_others: how many learners of other trained weights were scored on the source's test tasks before.
    """

    trained: bool
    trained_after_test: bool
    num_others: int


class _Marks:
    """The past of a learner, kept with it, so that its copies have it too: hashes of its weights at the time.

    Attributes:
        trained: weights that a training ended with.
        tested: those of them that were scored on test tasks.
        after_test: weights that a training which started from one of those, or from one of these, ended with.
    """

    def __init__(self) -> None:
        self.trained: set[bytes] = set()
        self.tested: set[bytes] = set()
        self.after_test: set[bytes] = set()


def _marks(learner: nn.Module) -> _Marks:
    marks: _Marks = vars(learner).setdefault("_marks_of_kshot", _Marks())
    return marks


_scored: WeakKeyDictionary[TaskSource, set[bytes]] = WeakKeyDictionary()  # source -> trained weights scored on test


@contextmanager
def training(learner: nn.Module) -> Iterator[None]:
    """A context in which a learner is trained, whatever source is read; a run of several rounds is a chain of them."""
    marks = _marks(learner)
    before = weights_of(learner) if marks.tested else b""
    try:
        yield
    finally:
        if after := weights_of(learner):
            marks.trained.add(after)
            if after != before and before in marks.tested | marks.after_test:
                marks.after_test.add(after)


def note_test(learner: nn.Module, source: TaskSource) -> None:
    """Note that a learner was scored on test tasks; those that kshot did not train are a reference, and not noted."""
    weights, marks = weights_of(learner), _marks(learner)
    if weights in marks.trained:
        marks.tested.add(weights)
        _scored_on(source).add(weights)


def history_of(learner: nn.Module, source: TaskSource) -> History:
    """The history of a learner and of the test split of a source in this process."""
    weights, marks = weights_of(learner), _marks(learner)
    others = _scored_on(source) - {weights}
    return History(weights in marks.trained, weights in marks.after_test, len(others))


def _scored_on(source: TaskSource) -> set[bytes]:
    try:
        return _scored.setdefault(unwatched(source), set())
    except TypeError:  # a source that has no hash
        return set()


def weights_of(learner: nn.Module) -> bytes:
    """A hash of the parameters that are trained; empty if there are none."""
    digest = hashlib.blake2b(digest_size=16)
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    for parameter in trained:
        digest.update(str(tuple(parameter.shape)).encode())
        digest.update(parameter.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.digest() if trained else b""
