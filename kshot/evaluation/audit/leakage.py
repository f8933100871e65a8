"""Audits of the tasks' content: copies between support, query and splits, changed tasks, reads of the test split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kshot.checking.contents import PASSAGES, compare_splits
from kshot.checking.duplicates import content_hashes, is_blank
from kshot.checking.near_copies import NearlyShown
from kshot.checking.scan import Scan, scan
from kshot.evaluation.audit.findings import Audit, Evidence, Question, real, stream, task_contents
from kshot.learner import Learner
from kshot.tasks.read_log import EVALUATION, Watched, history_of
from kshot.tasks.source import TaskSource
from kshot.types import SPLITS, Batch, Split, Task, tree_leaves

CHUNK = 8  # tasks drawn at once: different from an evaluation's, which must make no difference
OTHERS = 32  # tasks of each other split whose examples are compared
ENOUGH = 100  # different examples that a split needs for a share of copies to be meaningful

COPIES = 0.01
"""Share of copied examples that passes: real data contain some, and they change an accuracy by at most that much."""

SUPPORT_AND_QUERY = Question("support and query", "Do queries also occur in the support set of their own task?")
SPLIT_OVERLAP = Question("splits", "Do the evaluated tasks share examples with those of other splits?")
EPISODES = Question("episodes", "Are the tasks the same if they are drawn again?")
TEST_READS = Question("test reads", "Was the test split read by anything other than its evaluation?")

QUERY_WEIGHTS = Question("query weights", "Does every query count, and count equally?")

_FEW_VALUES = "The data have so few different values that equal examples with different targets are common."
_COPIES = "real data contain a few copies, and so many change an accuracy by no more"


class Contents:
    """The examples of a split's tasks by their content, without blank ones."""

    def __init__(self, source: TaskSource) -> None:
        self.task_specific = source.objective.task_specific_classes
        self.num_queries = self.num_copies = self.num_ambiguous = 0
        self.keys: set[Any] = set()
        self._targets: dict[bytes, bytes] = {}
        self._nearly = NearlyShown()

    def see(self, task: Task, examples: Sequence[list[bytes]]) -> None:
        """Add a task, whose inputs have the hashes `examples` (support, query)."""
        support, query = (self._pairs(batch, hashes) for batch, hashes in zip(task, examples))
        # An example is its inputs and target, or the inputs alone if labels are specific to a task.
        shown, asked = ([pair[0] if self.task_specific else pair for pair in pairs] for pairs in (support, query))
        self.num_queries += len(query)
        copies = [key in set(shown) for key in asked]
        self.num_copies += sum(copies)
        targets = {} if self.task_specific else self._targets  # labels hold within a task if classes are its own
        self.num_ambiguous += sum(targets.setdefault(inputs, target) != target for inputs, target in query)
        self.keys.update(shown, asked)
        self._nearly.add(self._not_blank(task.support), self._not_blank(task.query), copies)

    def _pairs(self, batch: Batch, inputs: list[bytes]) -> list[tuple[bytes, bytes]]:
        batch = real(batch)
        pairs = zip(inputs, content_hashes(batch.targets))
        return [pair for pair, blank in zip(pairs, is_blank(batch.inputs)) if not blank]

    def _not_blank(self, batch: Batch) -> Any:
        batch = real(batch)
        batch = batch.rows(~torch.tensor(is_blank(batch.inputs), dtype=torch.bool))
        return batch.inputs if self.task_specific else (batch.inputs, batch.targets)

    @property
    def few_values(self) -> bool:
        """Whether examples of different targets are often equal, so that equal examples need not be copies."""
        return self.num_ambiguous > COPIES * self.num_queries

    def audit(self) -> Audit:
        if self.few_values:
            return SUPPORT_AND_QUERY.idle(_FEW_VALUES)
        count, near = max(self.num_queries, 1), self._nearly.count()
        finding = (
            f"{self.num_copies + near:,} of {self.num_queries:,} queries ({(self.num_copies + near) / count:.2%}) also "
            f"occur in the support set of their own task, where their answer is given: {self.num_copies:,} exactly, "
            f"and {near:,} up to noise, resizing or re-encoding."
        )
        # Of few queries, one may be a copy.
        return SUPPORT_AND_QUERY.judge((self.num_copies + near) / count, max(COPIES, 1 / count), finding, _COPIES)


def splits(source: TaskSource, split: Split, contents: Contents) -> Audit:
    """Compare the examples of a split with those of the others; "test" is read only if it is the split.

    All rows of a source that has rows are compared, as many as `scan` takes in its time; of another source, the
    examples of the tasks that were evaluated with those of the first tasks of the other splits.
    """
    others: list[Split] = [other for other in SPLITS if other != split and (other != "test" or split == "test")]
    if (scanned := scan(source, [split, *others])) and scanned.contents.get(split):
        return _of_rows(scanned, split, others)
    return _of_tasks(source, split, others, contents)


def _of_rows(scanned: Scan, split: Split, others: Sequence[Split]) -> Audit:
    if any(contents.few_values for of_split in scanned.contents.values() for contents in of_split):
        return SPLIT_OVERLAP.idle(_FEW_VALUES)
    mine = scanned.contents[split]
    num_symbols = sum(len(contents.keys) for contents in mine if contents.kind in ("", PASSAGES))
    if 0 < num_symbols < ENOUGH:  # short sequences of symbols may be equal by chance, unlike pictures, rows and texts
        return SPLIT_OVERLAP.idle(f"{num_symbols} examples are too few to distinguish copies from chance.")
    found = {other: compare_splits(mine, theirs) for other in others if (theirs := scanned.contents.get(other))}
    if not found:
        return SPLIT_OVERLAP.idle("The source has no examples of another split.")
    shares = {other: (len(each.exact) + len(each.near)) / max(each.num_examples, 1) for other, each in found.items()}
    worst = max(shares, key=lambda other: shares[other])
    exact, near, num_examples, _ = found[worst]
    extent = "all" if scanned.looked_at == scanned.total else f"{scanned.looked_at:,} of the"
    finding = (
        f"{len(exact) + len(near):,} of {num_examples:,} {split} examples ({shares[worst]:.2%}) also occur in {worst}: "
        f"{len(exact):,} exactly, and {len(near):,} up to noise, resizing, re-encoding, case or punctuation. Compared "
        f"were {extent} {scanned.total:,} examples of {', '.join([split, *found])}"
        f"{'' if scanned.looked_at == scanned.total else ', drawn at random, as many as the time of an audit allows'}."
    )
    return SPLIT_OVERLAP.judge(shares[worst], max(COPIES, 1 / max(num_examples, 1)), finding, _COPIES)


def _of_tasks(source: TaskSource, split: Split, others: Sequence[Split], contents: Contents) -> Audit:
    worst, other_split, num_compared = 0.0, "another split", 0
    for other in others:
        theirs = Contents(source)
        try:
            for _, task in stream(source, other, OTHERS, chunk=CHUNK):
                theirs.see(task, task_contents(task))
        except ValueError:  # the source has no such split, or no more tasks of it
            pass
        if contents.few_values or theirs.few_values:
            return SPLIT_OVERLAP.idle(_FEW_VALUES)
        num_compared += len(theirs.keys)
        share = len(contents.keys & theirs.keys) / max(len(contents.keys), 1)
        if share > worst:
            worst, other_split = share, other
    if len(contents.keys) < ENOUGH:
        return SPLIT_OVERLAP.idle(f"{len(contents.keys)} different examples are too few to tell copies from chance.")
    if not num_compared:
        return SPLIT_OVERLAP.idle("The source has no tasks of another split.")
    finding = (
        f"{worst:.2%} of the {len(contents.keys):,} different examples of the evaluated tasks also occur, exactly, in "
        f"{other_split}. They were compared with {num_compared:,} examples of {OTHERS} tasks of each other split, "
        "since the source does not list its examples."
    )
    return SPLIT_OVERLAP.judge(worst, COPIES, finding, _COPIES)


class QueryWeights:
    """Counts queries whose weight is not 1, and those of weight 0 that are no padding."""

    def __init__(self, source: TaskSource) -> None:
        self.declared = getattr(source, "weighted_queries", False)
        self.num_queries = self.num_weighted = self.num_hidden = 0
        self.extremes = (1.0, 1.0)

    def see(self, task: Task) -> None:
        weight, (inputs, targets, _) = task.query.weight, task.query
        is_real = weight > 0
        self.num_queries += int(is_real.sum())
        other = weight[is_real & (weight != 1)]
        self.num_weighted += len(other)
        if len(other):
            self.extremes = min(self.extremes[0], float(other.min())), max(self.extremes[1], float(other.max()))
        if not is_real.all():
            hashes = content_hashes((inputs, targets))
            known = {hashed for hashed, own in zip(hashes, is_real.tolist()) if own}
            empty = _all_zero((inputs, targets))
            self.num_hidden += sum(
                not own and not blank and hashed not in known
                for hashed, own, blank in zip(hashes, is_real.tolist(), empty)
            )

    def audit(self) -> Audit:
        low, high = self.extremes
        finding = f"All {self.num_queries:,} queries have weight 1; rows of weight 0 are copies of others, or zeros."
        if self.num_weighted or self.num_hidden:
            finding = (
                f"{self.num_weighted:,} of {self.num_queries:,} queries have weights other than 1, from {low:.3g} to "
                f"{high:.3g}, so that figures are weighted means; {self.num_hidden:,} further rows have weight 0 and "
                "content of their own, and are left out of all figures."
            )
            if self.declared:
                return QUERY_WEIGHTS.judge(0, 0, f"As the source declares: {finding}", "the weights are declared")
            finding += " A source declares this by weighted_queries = True."
        return QUERY_WEIGHTS.judge(
            self.num_weighted + self.num_hidden, 0, finding, "a weight that is not declared hides queries"
        )


def _all_zero(tree: Any) -> list[bool]:
    """Whether all values of each example (n,) are 0."""
    leaves = [leaf.reshape(len(leaf), -1) for leaf in tree_leaves(tree)]
    return torch.stack([(leaf == 0).all(1) for leaf in leaves]).all(0).tolist()


def redrawn(evidence: Evidence, hashes: Sequence[tuple[int, str]]) -> Audit:
    """Compare the number and `short_hash` of tasks that were drawn again with those that were evaluated."""
    seen = {number for number, _ in hashes}
    changed = {number for number, episode in hashes if episode != evidence.episodes[number]}
    finding = f"All {len(seen)} of {len(seen)} tasks that were drawn a second time have the same content as before."
    if changed:
        finding = (
            f"{len(changed)} of {len(seen)} tasks, such as task {min(changed)}, have different content from before: "
            "the source is not a pure function of (seed, split, index)."
        )
    return EPISODES.judge(len(changed), 0, finding, "a test set must be the same whenever it is used")


def test_reads(source: TaskSource, split: Split, learner: Learner) -> Audit:
    """Whether the test split had a part in training or selection, by the log of a watched source and by the weights."""
    if split != "test":
        return TEST_READS.skip(f"These are {split} tasks, which may be used for decisions.")
    history = history_of(learner, source)
    others = (
        f" In this process, {history.num_others} other trained learners were scored on its test tasks before: the best "
        "of several is too high a figure." if history.num_others else ""
    )  # fmt: skip
    if history.trained_after_test:
        finding = (
            f"This learner was scored on test tasks and then trained on, so that the result may have guided it.{others}"
        )
        return TEST_READS.judge(1, 0, finding, _USED)
    reads = {}
    if isinstance(source, Watched):
        reads = {key: count for key, count in source.reads.items() if key[0] != EVALUATION}
    if not reads and not history.trained:
        return TEST_READS.idle(
            "No training or model selection on this source was recorded, so that what read its test split is not "
            "known; train, select and evaluate on kshot.tasks.watched(source)."
        )
    named = [(phase or "outside any phase", read) for phase, read in reads]
    phases = sorted(phase for phase, read in named if read == "test")
    count = sum(number for (_, read), number in reads.items() if read == "test")
    phases_read = ", ".join(sorted({f"{phase}: {read}" for phase, read in named}))
    finding = f"No; recorded reads of splits by phase: {phases_read}.{others}"
    if not reads:
        finding = (
            "kshot trained these weights in this process, on the split train, and did not score them on test tasks in "
            f"between; other reads of this source were not recorded.{others}"
        )
    if phases:
        finding = f"{count:,} test tasks were read before, in {', '.join(phases)}.{others}"
    return TEST_READS.judge(count, 0, finding, _USED)


_USED = "a figure that was used for a choice is not a test figure"
