"""What tasks hold: copies between support and query, between splits, tasks that change; and who read the test split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kshot.checking.duplicates import content_hashes, is_blank
from kshot.evaluation.audit.findings import Audit, Evidence, idle, judged, real, stream, task_contents
from kshot.tasks.read_log import EVALUATION, Watched
from kshot.tasks.source import TaskSource, short_hash
from kshot.types import SPLITS, Batch, Split, Task

OTHERS = 32  # tasks of each other split, whose examples are compared
ENOUGH = 100  # different examples of a split, for a share of them to mean anything

COPIES = 0.01
"""Share of copied examples that is let pass: real data hold some, and they move an accuracy by that much at most."""


class Contents:
    """The examples of a split's tasks by their content, blank ones left out."""

    name, asks = "support and query", "Do queries stand in the support of their own task?"

    def __init__(self, source: TaskSource) -> None:
        self.own = source.objective.task_specific_classes
        self.asked = self.shown = self.ambiguous = 0
        self.keys: set[Any] = set()
        self._targets: dict[bytes, bytes] = {}

    def see(self, task: Task, examples: Sequence[list[bytes]]) -> None:
        support, query = (self._pairs(batch, own) for batch, own in zip(task, examples))
        shown = {self._key(*example) for example in support}
        self.asked += len(query)
        self.shown += sum(self._key(*example) in shown for example in query)
        targets = {} if self.own else self._targets  # classes of one's own have their label within a task only
        self.ambiguous += sum(targets.setdefault(inputs, target) != target for inputs, target in query)
        self.keys |= shown | {self._key(*example) for example in query}

    def _key(self, inputs: bytes, target: bytes) -> Any:
        """What makes two examples one; where labels are a task's own, the inputs alone."""
        return inputs if self.own else (inputs, target)

    def _pairs(self, batch: Batch, inputs: list[bytes]) -> list[tuple[bytes, bytes]]:
        batch = real(batch)
        pairs = zip(inputs, content_hashes(batch.targets))
        return [pair for pair, blank in zip(pairs, is_blank(batch.inputs)) if not blank]

    @property
    def few_values(self) -> bool:
        """Whether examples of different targets are often equal, so that equal ones need not be copies."""
        return self.ambiguous > COPIES * self.asked

    def audit(self) -> Audit:
        if self.few_values:
            return idle(self.name, self.asks, _FEW_VALUES)
        share = self.shown / max(self.asked, 1)
        tolerance = max(COPIES, 1 / max(self.asked, 1))  # of few queries, one may be a copy
        found = f"{self.shown:,} of {self.asked:,} queries have the same content as an example of their support."
        return judged(self.name, self.asks, share, tolerance, found, _COPIES)


_FEW_VALUES = "Dataset have so few different values that equal ones with different targets are common."
_COPIES = "real data hold a few copies, and so many change an accuracy by no more"


def splits(source: TaskSource, split: Split, contents: Contents) -> Audit:
    name, asks = "splits", "Do the evaluated tasks share examples with those of the other splits?"
    worst, at, looked_at = 0.0, "", 0
    for other in (other for other in SPLITS if other != split and (other != "test" or split == "test")):
        theirs = Contents(source)
        try:
            for _, task in stream(source, other, OTHERS):
                theirs.see(task, task_contents(task))
        except ValueError:  # the source has no such split, or no more tasks of it
            pass
        if contents.few_values or theirs.few_values:
            return idle(name, asks, _FEW_VALUES)
        looked_at += len(theirs.keys)
        share = len(contents.keys & theirs.keys) / max(len(contents.keys), 1)
        if share > worst:
            worst, at = share, other
    if len(contents.keys) < ENOUGH:
        return idle(name, asks, f"{len(contents.keys)} different examples are too few to tell copies from coincidence.")
    if not looked_at:
        return idle(name, asks, "The source has no tasks of another split.")
    found = (
        f"{worst:.2%} of {len(contents.keys):,} examples stand in {at or 'another split'} too; {looked_at:,} of the "
        "other splits were looked at."
    )
    return judged(name, asks, worst, COPIES, found, _COPIES)


class Drawn:
    """Whether the tasks are the same when they are drawn again."""

    name, asks = "episodes", "Are the tasks the same when they are drawn again?"

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.seen: set[int] = set()
        self.changed: set[int] = set()

    def see(self, number: int, task: Task) -> None:
        self.seen.add(number)
        if short_hash(task) != self.evidence.episodes[number]:
            self.changed.add(number)

    def audit(self) -> Audit:
        found = f"All {len(self.seen)} tasks have the same content as before."
        if self.changed:
            found = (
                f"{len(self.changed)} of {len(self.seen)} tasks, such as task {min(self.changed)}, have another "
                "content than before: the source is not pure in (seed, split, index)."
            )
        because = "a test set is the same set whenever it is used"
        return judged(self.name, self.asks, len(self.changed), 0, found, because)


def test_reads(source: TaskSource, split: Split) -> Audit:
    name, asks = "test reads", "Was the test split read by anything but its evaluation?"
    if split != "test":
        return idle(name, asks, f"These are {split} tasks, which are there to decide by.")
    if not isinstance(source, Watched):
        return idle(
            name, asks, "Nobody noted who read the source; train, choose and evaluate on tasks.watched(source)."
        )
    reads = {key: count for key, count in source.reads.items() if key[0] != EVALUATION}
    if not reads:
        return idle(name, asks, "Nothing was noted of how the learner came about.")
    phases = sorted(f"{phase or 'outside any phase'}" for phase, read in reads if read == "test")
    count = sum(number for (_, read), number in reads.items() if read == "test")
    seen = ", ".join(sorted({f"{phase or 'outside any phase'}: {read}" for phase, read in reads}))
    found = f"It was read before, in {', '.join(phases)}." if phases else f"It was not; noted were {seen}."
    return judged(name, asks, count, 0, found, "a figure that anything was chosen by is no test")
