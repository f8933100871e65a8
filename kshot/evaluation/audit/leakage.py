"""Audits of the tasks' content: copies between support, query and splits, changed tasks, reads of the test split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kshot.checking.duplicates import content_hashes, is_blank
from kshot.evaluation.audit.findings import Audit, Evidence, Question, real, stream, task_contents
from kshot.tasks.read_log import EVALUATION, Watched
from kshot.tasks.source import TaskSource
from kshot.types import SPLITS, Batch, Split, Task

CHUNK = 8  # tasks drawn at once: different from an evaluation's, which must make no difference
OTHERS = 32  # tasks of each other split whose examples are compared
ENOUGH = 100  # different examples that a split needs for a share of copies to be meaningful

COPIES = 0.01
"""Share of copied examples that passes: real data contain some, and they change an accuracy by at most that much."""

SUPPORT_AND_QUERY = Question("support and query", "Do queries also occur in the support set of their own task?")
SPLIT_OVERLAP = Question("splits", "Do the evaluated tasks share examples with those of other splits?")
EPISODES = Question("episodes", "Are the tasks the same if they are drawn again?")
TEST_READS = Question("test reads", "Was the test split read by anything other than its evaluation?")

_FEW_VALUES = "The data have so few different values that equal examples with different targets are common."
_COPIES = "real data contain a few copies, and so many change an accuracy by no more"


class Contents:
    """The examples of a split's tasks by their content, without blank ones."""

    def __init__(self, source: TaskSource) -> None:
        self.task_specific = source.objective.task_specific_classes
        self.num_queries = self.num_copies = self.num_ambiguous = 0
        self.keys: set[Any] = set()
        self._targets: dict[bytes, bytes] = {}

    def see(self, task: Task, examples: Sequence[list[bytes]]) -> None:
        """Add a task, whose inputs have the hashes `examples` (support, query)."""
        support, query = (self._pairs(batch, hashes) for batch, hashes in zip(task, examples))
        # An example is its inputs and target, or the inputs alone if labels are specific to a task.
        shown, asked = ([pair[0] if self.task_specific else pair for pair in pairs] for pairs in (support, query))
        self.num_queries += len(query)
        self.num_copies += sum(map(set(shown).__contains__, asked))
        targets = {} if self.task_specific else self._targets  # labels hold within a task if classes are its own
        self.num_ambiguous += sum(targets.setdefault(inputs, target) != target for inputs, target in query)
        self.keys.update(shown, asked)

    def _pairs(self, batch: Batch, inputs: list[bytes]) -> list[tuple[bytes, bytes]]:
        batch = real(batch)
        pairs = zip(inputs, content_hashes(batch.targets))
        return [pair for pair, blank in zip(pairs, is_blank(batch.inputs)) if not blank]

    @property
    def few_values(self) -> bool:
        """Whether examples of different targets are often equal, so that equal examples need not be copies."""
        return self.num_ambiguous > COPIES * self.num_queries

    def audit(self) -> Audit:
        if self.few_values:
            return SUPPORT_AND_QUERY.skip(_FEW_VALUES)
        count = max(self.num_queries, 1)
        finding = f"{self.num_copies:,} of {self.num_queries:,} queries equal an example of their support set."
        # Of few queries, one may be a copy.
        return SUPPORT_AND_QUERY.judge(self.num_copies / count, max(COPIES, 1 / count), finding, _COPIES)


def splits(source: TaskSource, split: Split, contents: Contents) -> Audit:
    """Compare the examples of a split with those of the others; "test" is read only if it is the split."""
    worst, other_split, num_compared = 0.0, "another split", 0
    for other in (other for other in SPLITS if other != split and (other != "test" or split == "test")):
        theirs = Contents(source)
        try:
            for _, task in stream(source, other, OTHERS, chunk=CHUNK):
                theirs.see(task, task_contents(task))
        except ValueError:  # the source has no such split, or no more tasks of it
            pass
        if contents.few_values or theirs.few_values:
            return SPLIT_OVERLAP.skip(_FEW_VALUES)
        num_compared += len(theirs.keys)
        share = len(contents.keys & theirs.keys) / max(len(contents.keys), 1)
        if share > worst:
            worst, other_split = share, other
    if len(contents.keys) < ENOUGH:
        return SPLIT_OVERLAP.skip(f"{len(contents.keys)} different examples are too few to tell copies from chance.")
    if not num_compared:
        return SPLIT_OVERLAP.skip("The source has no tasks of another split.")
    finding = (
        f"{worst:.2%} of {len(contents.keys):,} examples also occur in {other_split}; they were compared with "
        f"{num_compared:,} examples of the other splits."
    )
    return SPLIT_OVERLAP.judge(worst, COPIES, finding, _COPIES)


def redrawn(evidence: Evidence, hashes: Sequence[tuple[int, str]]) -> Audit:
    """Compare the number and `short_hash` of tasks that were drawn again with those that were evaluated."""
    seen = {number for number, _ in hashes}
    changed = {number for number, episode in hashes if episode != evidence.episodes[number]}
    finding = f"All {len(seen)} tasks have the same content as before."
    if changed:
        finding = (
            f"{len(changed)} of {len(seen)} tasks, such as task {min(changed)}, have different content from before: "
            "the source is not a pure function of (seed, split, index)."
        )
    return EPISODES.judge(len(changed), 0, finding, "a test set must be the same whenever it is used")


def test_reads(source: TaskSource, split: Split) -> Audit:
    if split != "test":
        return TEST_READS.skip(f"These are {split} tasks, which may be used for decisions.")
    if not isinstance(source, Watched):
        return TEST_READS.skip(
            "Reads of the source were not recorded; train, select and evaluate on kshot.tasks.watched(source)."
        )
    reads = {key: count for key, count in source.reads.items() if key[0] != EVALUATION}
    if not reads:
        return TEST_READS.skip("No reads by training or model selection were recorded.")
    named = [(phase or "outside any phase", read) for phase, read in reads]
    phases = sorted(phase for phase, read in named if read == "test")
    count = sum(number for (_, read), number in reads.items() if read == "test")
    recorded = ", ".join(sorted({f"{phase}: {read}" for phase, read in named}))
    finding = f"It was read before, in {', '.join(phases)}." if phases else f"It was not; recorded reads: {recorded}."
    return TEST_READS.judge(count, 0, finding, "a figure that was used for a choice is not a test figure")
