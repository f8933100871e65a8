"""What only chance may move: what pure guessing would score, and the audits that go by it.

Shape legend: C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kshot.evaluation.audit.findings import Audit, Evidence, idle, judged, real
from kshot.evaluation.audit.invariance import Probe, gap
from kshot.learner import Learner
from kshot.objectives import classes_present
from kshot.tasks.source import TaskSource
from kshot.training.fit import seeded
from kshot.types import Batch, Split, Task, Tree, tree_map

FALSE_ALARM = 1e-5
"""The chance at most that one test by guessing or by coin fails what is in order."""


class Guessing:
    r"""Answers scored against labels that were dealt to a task's classes at random: what may be hit by luck.

    A task is a table $a$ (C, C): $a_{ij}$ is how much of the answers "class i" stands where the label is j. If the
    labels of a task are a random permutation $\pi$ that the answers know nothing of, the hits $\sum_j a_{\pi(j) j}$
    have mean and variance (Hoeffding's combinatorial sums)

    $$ \mu = \frac1C \sum_{ij} a_{ij}, \qquad
       \sigma^2 = \frac{1}{C-1} \sum_{ij} (a_{ij} - a_{i \cdot} - a_{\cdot j} + a_{\cdot \cdot})^2, $$

    whatever the answers are: a dot is a mean over that index. Over tasks both add up, and Bennett's inequality, in
    Freedman's form for answers that learn from earlier tasks, bounds the chance of as many hits by luck:

    $$ p \le \exp\Bigl(-\frac{V}{b^2} \, h\Bigl(\frac{b t}{V}\Bigr)\Bigr), \qquad h(u) = (1 + u) \ln(1 + u) - u, $$

    with $V = \sum \sigma^2$, $t$ the hits beyond $\sum \mu$ and $b$ the most that one task can have beyond its $\mu$.

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
        self.tasks, self.hits, self.expected, self.variance, self.total = 0, 0.0, 0.0, 0.0, 0.0
        self._most, self._beyond = 0.0, 0.0

    def add(self, table: np.ndarray) -> None:
        """One task, a table (C, C) of the classes that it has."""
        classes = len(table)
        if classes < 2 or not table.any():
            return
        mean = float(table.sum()) / classes
        centred = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
        beyond = float(table.max(0).sum()) - mean
        self.tasks += 1
        self.hits += float(np.trace(table))
        self.total += float(table.sum())
        self.expected += mean
        self.variance += float(np.square(centred).sum()) / (classes - 1)
        self._most = max(self._most, beyond)
        self._beyond += beyond

    @property
    def tells(self) -> bool:
        """Whether there is enough to tell knowing from guessing: if all were hit, it would not be luck."""
        return self._tail(self._beyond) < FALSE_ALARM

    def p_value(self) -> float:
        """The chance, at most, of so many hits by luck."""
        return self._tail(self.hits - self.expected)

    def limit(self) -> float:
        """The hits from which on the chance is below `FALSE_ALARM`."""
        low, high = 0.0, self.total
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._tail(middle) > FALSE_ALARM else (low, middle)
        return self.expected + high

    def _tail(self, excess: float) -> float:
        if excess <= 0 or self._most <= 0 or self.variance <= 0:
            return 1.0
        u = self._most * excess / self.variance
        return math.exp(-self.variance / self._most**2 * ((1 + u) * math.log1p(u) - u))


class ClassOrder:
    """Whether a learner does better on a task's classes in the order that they come in than in another.

    Where predictions follow a relabelling exactly, no order can matter. A head that was meta-learned class by class
    does not follow it, and need not: it must do as well on the classes reversed, which is a fair coin where the source
    deals out the labels at random. Reversing is its own inverse: both orders are as likely, and the sign test is exact.
    """

    name, asks = "class order", "Does a learner do better on classes in the order that the source gives them?"

    def __init__(self, learner: Learner, source: TaskSource, split: Split, probe: Probe, evidence: Evidence) -> None:
        self.learner, self.source, self.probe, self.evidence = learner, source, probe, evidence
        self.idle = _why_idle(learner, split)
        self.own = not self.idle
        self.gap = math.inf
        if self.own and not probe.random:
            self.gap = max(gap(*self._both_ways(*asked)) for asked in probe.asked())
        self.follows = self.gap <= probe.tolerance
        self.better = self.worse = 0

    def _both_ways(self, task: Task, _: Tree, whole: Tree) -> list[Tree]:
        """Predictions with the classes moved on by one: what they should be, and what they are."""
        order = _reordered(task.support, turn=True)
        found = self.probe.predict(self.probe.adapt(_relabelled(task.support, order)), task.query.inputs)
        return [tree_map(lambda leaf: leaf[..., order] if leaf.shape[-1] == len(order) else leaf, whole), found]

    def see(self, number: int, task: Task) -> None:
        if not self.own or self.follows:
            return
        support, query = (_relabelled(batch, _reordered(task.support)) for batch in task)
        reversed_ = _loss(self.learner, Task(support, query), self.source.seed, number)
        given = self.evidence.figures["loss"][number]
        if abs(reversed_ - given) > 1e-6 * abs(given):
            self.better += given < reversed_
            self.worse += given > reversed_

    def audit(self) -> Audit:
        if self.idle:
            return idle(self.name, self.asks, self.idle)
        if self.follows:
            found = f"Predictions follow a relabelling of the classes up to {self.gap:.2g} of their size."
            return judged(self.name, self.asks, self.gap, self.probe.tolerance, found, self.probe.because)
        from scipy.stats import binom

        both = self.better + self.worse
        if both == 0 or 0.5**both > FALSE_ALARM:
            why = f"Predictions do not follow a relabelling, and {both} tasks are too few to tell whether it matters."
            return idle(self.name, self.asks, why)
        limit = int(binom.isf(FALSE_ALARM, both, 0.5))
        found = (
            f"Predictions do not follow a relabelling, as those of a meta-learned head need not; on {self.better} of "
            f"{both} tasks the loss is lower with the classes as they come than reversed."
        )
        because = f"more than {limit} of {both} come by chance once in {round(1 / FALSE_ALARM):,} times"
        return judged(self.name, self.asks, self.better / both, limit / both, found, because)


def _why_idle(learner: Learner, split: Split) -> str:
    """Why nothing can be said of what a learner knows of labels beforehand; empty where something can."""
    if not learner.objective.task_specific_classes:
        return "Tasks share what they ask, so that another task's support may well be of use."
    return "A learner may know the very tasks it was trained on." if split == "train" else ""


def _reordered(support: Batch, *, turn: bool = False) -> Tensor:
    """An order of the classes (C,): those present reversed, or each in the place of the next."""
    order = torch.arange(support.targets.shape[-1], device=support.weight.device)
    present = classes_present(support).nonzero().flatten()
    order[present] = present.roll(-1) if turn else present.flip(0)
    return order


def _relabelled(batch: Batch, order: Tensor) -> Batch:
    return batch._replace(targets=batch.targets[..., order])


def _loss(learner: Learner, task: Task, seed: int, number: int) -> float:
    """The loss of a task, with the random numbers that an evaluation gives it."""
    with seeded(seed, number, device=task.support.weight.device):
        prediction = learner.predict(learner.adapt(task.support), task.query.inputs)
        return float(learner.objective.loss(prediction, task.query))


class LabelOrder:
    """Whether the label that an example had in earlier tasks tells which it has in the next."""

    name, asks = "label order", "Do the labels of earlier tasks tell those of the next, with no support seen?"

    def __init__(self, source: TaskSource) -> None:
        self.own = source.objective.task_specific_classes
        self.votes: dict[bytes, np.ndarray] = {}  # content to how often it had which label (C,)
        self.guessing = Guessing()

    def see(self, task: Task, examples: Sequence[list[bytes]]) -> None:
        if not self.own:
            return
        ways, keys = task.query.targets.shape[-1], [key for own in examples for key in own]
        labels = [label for batch in task for label in real(batch).targets.argmax(-1).tolist()]
        table = np.zeros((ways, ways))  # remembered label × label
        for key, label in zip(keys, labels):
            if key in self.votes:
                table[:, label] += self.votes[key] / self.votes[key].sum()
        present = sorted(set(labels))
        table = table[np.ix_(present, present)]
        self.guessing.add(table / np.maximum(table.sum(0), 1e-12))
        for key, label in zip(keys, labels):
            self.votes.setdefault(key, np.zeros(ways))[label] += 1

    def audit(self) -> Audit:
        if not self.own:
            return idle(self.name, self.asks, "The classes, if there are any, are the same in all tasks.")
        what = "of classes whose examples were seen in earlier tasks have the label they had there"
        none = "Too few examples stand in more than one of the tasks to recognise a class by."
        return _guessed(self.name, self.asks, self.guessing, what, none)


class Chance:
    """What a learner scores on a task from the support of another one: what is left when adaptation is taken away."""

    name, asks = "chance", "Is accuracy at chance where a learner was given the support of another task?"

    def __init__(self, learner: Learner, split: Split, tasks: Sequence[Task]) -> None:
        self.idle = _why_idle(learner, split)
        self.learner, self.guessing, self.fits = learner, Guessing(), not self.idle
        self.states: list[Tree] = []
        if self.fits:
            with seeded(0):
                self.states = [learner.adapt(task.support) for task in tasks]

    def see(self, number: int, task: Task) -> None:
        if not self.fits or len(self.states) < 2:
            return
        ways = task.query.targets.shape[-1]
        query = real(task.query).rows(slice(2 * ways))  # enough: which class is taken for which varies between tasks
        with seeded(number, device=query.weight.device):
            prediction = self.learner.predict(self.states[(number + 1) % len(self.states)], query.inputs)
        if not isinstance(prediction, Tensor) or prediction.shape != query.targets.shape:
            self.fits = False
            return
        answers, labels = prediction.argmax(-1).tolist(), query.targets.argmax(-1).tolist()
        table = np.zeros((ways, ways))
        np.add.at(table, (answers, labels), 1 / len(labels))
        present = classes_present(task.support).nonzero().flatten().tolist()
        self.guessing.add(table[np.ix_(present, present)])

    def audit(self) -> Audit:
        if self.idle:
            return idle(self.name, self.asks, self.idle)
        if not self.fits:
            return idle(
                self.name, self.asks, "Predictions are no logits (n, classes), whose largest would be the answer."
            )
        what = "of the queries are answered rightly from another task's support"
        return _guessed(
            self.name,
            self.asks,
            self.guessing,
            what,
            "There are too few tasks, or too much the same answers, to tell luck from knowledge.",
        )


def _guessed(name: str, asks: str, guessing: Guessing, what: str, none: str) -> Audit:
    if not guessing.tells:
        return idle(name, asks, none)
    share, expected, limit = (value / guessing.tasks for value in (guessing.hits, guessing.expected, guessing.limit()))
    found = f"{share:.1%} {what}; by chance it would be {expected:.1%}."
    because = f"by chance it is above {limit:.1%} at most once in {round(1 / FALSE_ALARM):,} times"
    return judged(name, asks, share, limit, found, because)
