"""Audits against chance: statistical tests of whether accuracy or class order exceed what luck allows.

Shape legend: C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kshot.evaluation.audit.findings import Audit, Evidence, Question, real, score_again
from kshot.evaluation.audit.invariance import FALSE_ALARM, Probe, gap
from kshot.learner import Learner, predict_query
from kshot.objectives import classes_present
from kshot.tasks.source import TaskSource
from kshot.training.fit import seeded
from kshot.types import Batch, Split, Task, Tree, tree_leaves, tree_map

CLASS_ORDER = Question("class order", "Does the learner do better on classes in the order that the source gives them?")
LABEL_ORDER = Question("label order", "Do labels in earlier tasks predict those of the next without its support set?")
CHANCE = Question("chance", "Is accuracy at chance level if the learner gets another task's support set?")


class Guessing:
    r"""A test of whether answers agree with randomly permuted labels more often than chance allows.

    A task is a table $a$ (C, C), with $a_{ij}$ the weight of answers "class i" to queries with label j. If the labels
    of a task are a random permutation $\pi$ independent of the answers, the number of hits $\sum_j a_{\pi(j) j}$ has
    mean and variance (Hoeffding's combinatorial sums)

    $$ \mu = \frac1C \sum_{ij} a_{ij}, \qquad
       \sigma^2 = \frac{1}{C-1} \sum_{ij} (a_{ij} - a_{i \cdot} - a_{\cdot j} + a_{\cdot \cdot})^2, $$

    for any answers, where a dot is a mean over that index. Both add up over tasks, and Bennett's inequality, in
    Freedman's form for answers that depend on earlier tasks, bounds the probability of as many hits by chance:

    $$ p \le \exp\Bigl(-\frac{V}{b^2} \, h\Bigl(\frac{b t}{V}\Bigr)\Bigr), \qquad h(u) = (1 + u) \ln(1 + u) - u, $$

    with $V = \sum \sigma^2$, $t$ the hits in excess of $\sum \mu$ and $b$ the largest possible excess of one task.

    Example:
        >>> always_right, lucky = Guessing(), Guessing()
        >>> for number in range(30):
        ...     always_right.add(np.eye(5) / 5)
        ...     lucky.add(np.roll(np.eye(5), number % 5, 0) / 5)
        >>> always_right.p_value() < 1e-5, lucky.p_value() == 1
        (True, True)

    References:
        Hoeffding: A combinatorial central limit theorem, Annals of Mathematical Statistics 22, 1951.
        Freedman: On tail probabilities for martingales, Annals of Probability 3, 1975.
    """

    def __init__(self) -> None:
        self.num_tasks, self.hits, self.expected, self.variance, self.total = 0, 0.0, 0.0, 0.0, 0.0
        self._max_excess, self._sum_excess = 0.0, 0.0  # of one task, and of all tasks, if all answers were right

    def add(self, table: np.ndarray) -> None:
        classes = len(table)
        if classes < 2 or not table.any():
            return
        mean = float(table.sum()) / classes
        centred = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
        excess = float(table.max(0).sum()) - mean
        self.num_tasks += 1
        self.hits += float(np.trace(table))
        self.total += float(table.sum())
        self.expected += mean
        self.variance += float(np.square(centred).sum()) / (classes - 1)
        self._max_excess = max(self._max_excess, excess)
        self._sum_excess += excess

    @property
    def conclusive(self) -> bool:
        """Whether there are enough tasks: if all answers were right, the test would fail."""
        return self._tail(self._sum_excess) < FALSE_ALARM

    def p_value(self) -> float:
        """Upper bound on the probability of as many hits by chance."""
        return self._tail(self.hits - self.expected)

    def limit(self) -> float:
        """The number of hits above which the p value is below `FALSE_ALARM`."""
        low, high = 0.0, self.total
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._tail(middle) > FALSE_ALARM else (low, middle)
        return self.expected + high

    def _tail(self, excess: float) -> float:
        if excess <= 0 or self._max_excess <= 0 or self.variance <= 0:
            return 1.0
        u = self._max_excess * excess / self.variance
        return math.exp(-self.variance / self._max_excess**2 * ((1 + u) * math.log1p(u) - u))

    def audit(self, question: Question, what: str, inconclusive: str) -> Audit:
        """An audit that fails if the share of hits is above the limit."""
        if not self.conclusive:
            return question.idle(inconclusive)
        share, expected, limit = (value / self.total for value in (self.hits, self.expected, self.limit()))
        finding = (
            f"On {self.num_tasks:,} tasks, {share:.1%} {what}. Labels that were dealt at random for each task would "
            f"give {expected:.1%}, and more than {limit:.1%} at most once in {round(1 / FALSE_ALARM):,} times."
        )
        reason = "shares between these two occur by luck"
        return question.judge(share, limit, finding, reason)


class ClassOrder:
    """Tests whether a learner does better on a task's classes in their given order than in another.

    If predictions are equivariant to relabelling, order cannot matter. A head that was meta-learned class by class need
    not be equivariant: it must then do as well on the classes reversed, which is a fair coin flip if the source assigns
    labels at random. Reversal is its own inverse, both orders are equally likely, and so the sign test is exact.
    """

    def __init__(self, learner: Learner, source: TaskSource, split: Split, probe: Probe, evidence: Evidence) -> None:
        self.learner, self.source, self.probe, self.evidence = learner, source, probe, evidence
        self.why_skip = _why_skip(learner, split)
        self.gap = math.inf
        if not self.why_skip:
            self.gap = max(self._relabelling_gap(*entry) for entry in probe)
        self.equivariant = self.gap <= probe.tolerance
        self.better = self.worse = 0

    def _relabelling_gap(self, task: Task, _: Tree, prediction: Tree) -> float:
        """The gap between the predictions for classes shifted by one and the shifted predictions."""
        order = _reordered(task.support, shift=True)
        actual = self.probe.predict(self.probe.adapt(_relabelled(task.support, order)), task.query.inputs)
        return gap(
            tree_map(lambda leaf: leaf[..., order] if leaf.shape[-1] == len(order) else leaf, prediction), actual
        )

    def see(self, number: int, task: Task) -> None:
        """Compare the loss on the classes reversed with that of the evaluation."""
        if self.why_skip or self.equivariant:
            return
        support, query = (_relabelled(batch, _reordered(task.support)) for batch in task)
        reversed_loss = score_again(self.learner, Task(support, query), self.source.seed, number)
        loss = self.evidence.figures["loss"][number]
        if abs(reversed_loss - loss) > 1e-6 * abs(loss):
            self.better += loss < reversed_loss
            self.worse += loss > reversed_loss

    def audit(self) -> Audit:
        if self.why_skip:
            return CLASS_ORDER.skip(self.why_skip)
        if self.equivariant:
            finding = (
                f"If the classes are numbered differently, predictions are renumbered with them, and change by at most "
                f"{self.gap:.2g} of their size (their root mean square)."
            )
            return CLASS_ORDER.judge(self.gap, self.probe.tolerance, finding, self.probe.reason)
        count = self.better + self.worse
        if count == 0 or 0.5**count > FALSE_ALARM:
            return CLASS_ORDER.idle(
                f"Predictions depend on the numbers of the classes, and {count} tasks are too few to decide whether "
                "that gives an advantage."
            )
        from scipy.stats import binom

        limit = int(binom.isf(FALSE_ALARM, count, 0.5))
        finding = (
            f"Predictions depend on the numbers of the classes; a meta-learned head need not treat them alike. On "
            f"{self.better} of {count} tasks the loss is lower with the classes in their given order than reversed; if "
            f"the order has no information, that is a coin flip, and more than {limit} occur once in "
            f"{round(1 / FALSE_ALARM):,} times."
        )
        reason = "so many tasks occur by luck"
        return CLASS_ORDER.judge(self.better / count, limit / count, finding, reason)


def _why_skip(learner: Learner, split: Split) -> str:
    """Why prior knowledge of labels cannot be tested; empty if it can."""
    if learner.objective.predicts in ("labels", "masks"):
        return "The examples have labels or masks, and no class each that could be guessed."
    if not learner.objective.task_specific_classes:
        return "All tasks share their targets, so that another task's support set may be informative."
    return "A learner may know the tasks that it was trained on." if split == "train" else ""


def _reordered(support: Batch, *, shift: bool = False) -> Tensor:
    """An order of the classes (C,): those present reversed, or shifted by one."""
    order = torch.arange(support.targets.shape[-1], device=support.weight.device)
    present = classes_present(support).nonzero().flatten()
    order[present] = present.roll(-1) if shift else present.flip(0)
    return order


def _relabelled(batch: Batch, order: Tensor) -> Batch:
    return batch._replace(targets=batch.targets[..., order])


class LabelOrder:
    """Tests whether the label of an example in earlier tasks predicts its label in the next."""

    def __init__(self, source: TaskSource) -> None:
        self.task_specific = source.objective.task_specific_classes
        self.votes: dict[bytes, np.ndarray] = {}  # content -> counts of its labels (C,)
        self.guessing = Guessing()

    def see(self, task: Task, examples: Sequence[list[bytes]]) -> None:
        """Add a task, whose inputs have the hashes `examples` (support, query)."""
        if not self.task_specific:
            return
        ways, keys = task.query.targets.shape[-1], [key for hashes in examples for key in hashes]
        labels = [label for batch in task for label in real(batch).targets.argmax(-1).tolist()]
        table = np.zeros((ways, ways))  # earlier label × label
        for key, label in zip(keys, labels):
            earlier = self.votes.get(key, np.zeros(0))[:ways]  # of a task with other ways
            if earlier.any():
                table[: len(earlier), label] += earlier / earlier.sum()
        present = sorted(set(labels))
        table = table[np.ix_(present, present)]
        self.guessing.add(table / np.maximum(table.sum(0), 1e-12))
        for key, label in zip(keys, labels):
            votes = self.votes.get(key, np.zeros(0))
            self.votes[key] = np.pad(votes, (0, max(0, ways - len(votes))))
            self.votes[key][label] += 1

    def audit(self) -> Audit:
        if not self.task_specific:
            return LABEL_ORDER.skip("Classes, if there are any, are the same in all tasks.")
        what = "of the classes with examples that occurred in earlier tasks have the label that those had there"
        return self.guessing.audit(LABEL_ORDER, what, "Too few examples occur in several tasks to recognise a class.")


def _row_shapes(task: Task) -> list[tuple[int, ...]]:
    """The shapes of one example's inputs and targets."""
    return [tuple(leaf.shape[1:]) for leaf in tree_leaves((task.support.inputs, task.support.targets))]


class Chance:
    """Measures accuracy with the support set of another task: what remains without adaptation to the task."""

    def __init__(self, learner: Learner, split: Split, tasks: Sequence[Task]) -> None:
        self.why_skip, self.why_idle = _why_skip(learner, split), ""
        self.learner, self.guessing = learner, Guessing()
        self.states: list[Tree] = []
        self.shapes = [_row_shapes(task) for task in tasks]
        if not self.why_skip:
            with seeded(0):
                self.states = [learner.adapt(task.support) for task in tasks]

    def see(self, number: int, task: Task) -> None:
        if self.why_skip or self.why_idle or len(self.states) < 2:
            return
        ways, other = task.query.targets.shape[-1], (number + 1) % len(self.states)
        if _row_shapes(task) != self.shapes[other]:  # examples of the other task have other inputs, or classes
            return
        query = real(task.query).rows(slice(2 * ways))  # enough: which class is mistaken for which differs by task
        with seeded(number, device=query.weight.device):
            prediction = predict_query(self.learner, self.states[other], query)
        if not isinstance(prediction, Tensor) or prediction.ndim != 2 or len(prediction) != len(query.targets):
            self.why_idle = "Predictions are not logits (n, classes)."
            return
        answers, labels = prediction.argmax(-1).tolist(), query.targets.argmax(-1).tolist()
        table = np.zeros((ways, ways))
        np.add.at(table, (answers, labels), 1 / len(labels))
        present = classes_present(task.support).nonzero().flatten().tolist()
        self.guessing.add(table[np.ix_(present, present)])

    def audit(self) -> Audit:
        if self.why_skip:
            return CHANCE.skip(self.why_skip)
        if self.why_idle:
            return CHANCE.idle(self.why_idle)
        what = "of the queries are answered correctly by a learner that adapted to another task's support set"
        inconclusive = "There are too few tasks, or too uniform answers, to tell knowledge from luck."
        return self.guessing.audit(CHANCE, what, inconclusive)
