"""What must not matter at all: other queries, any order, padding. Asked of a learner in double precision.

Shape legend: n examples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.evaluation.audit.findings import Audit, idle, judged
from kshot.learner import Learner
from kshot.training.fit import seeded
from kshot.types import Batch, Task, Tree, tree_leaves, tree_map

EXACT, ROUNDED = 1e-6, 1e-3
"""Differences that are rounding, relative to the size of predictions: in double precision, and as the learner is."""


class Probe:
    """A learner to be asked the same in different ways, always with the same random numbers.

    Args:
        tasks: what it is asked on.
        double: whether the learner is one in double precision.

    Attributes:
        learner: a copy in double precision, or the learner itself where it has none.
        tasks, states, whole: what it is asked on, its states after adapting, and what it predicts for the queries.
        tolerance, because: what is rounding, and why.
        random: whether predictions depend on random numbers, so that no two ways can be compared.
    """

    def __init__(self, learner: Learner, tasks: Sequence[Task], *, double: bool) -> None:
        self.learner, self.double = learner, double
        self.tolerance = EXACT if double else ROUNDED
        self.because = "rounding in double precision is far below" if double else "rounding is below"
        self.tasks = [self.cast(task) for task in tasks]
        self.states = [self.adapt(task.support) for task in self.tasks]
        self.whole = [self.predict(state, task.query.inputs) for state, task in zip(self.states, self.tasks)]
        again = self.predict(self.adapt(self.tasks[0].support, seed=1), self.tasks[0].query.inputs, seed=1)
        self.random = not gap(self.whole[0], again) <= self.tolerance

    @classmethod
    def of(cls, learner: Learner, tasks: Sequence[Task]) -> Probe:
        try:
            return cls(copy.deepcopy(learner).double(), tasks, double=True)
        except Exception:  # what cannot be copied, or not in double precision, says so in many ways
            return cls(learner, tasks, double=False)

    def adapt(self, support: Batch, seed: int = 0) -> Tree:
        with seeded(seed):
            return self.learner.adapt(support)

    def predict(self, state: Tree, inputs: Tree, seed: int = 0) -> Tree:
        with seeded(seed):
            return self.learner.predict(state, inputs)

    def cast(self, tree: Any) -> Any:
        if not self.double:
            return tree
        return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tree)

    def asked(self) -> Iterator[tuple[Task, Tree, Tree]]:
        """Each task, the state after adapting to it, and what is predicted for its queries."""
        return zip(self.tasks, self.states, self.whole)

    def judge(self, name: str, asks: str, gaps: Sequence[float], what: str) -> Audit:
        """An audit of the differences between predictions that should be the same."""
        if self.random:
            return idle(name, asks, "The learner draws random numbers, so that no two ways of asking can be compared.")
        worst = max(gaps)
        found = f"{what} by {worst:.2g} of their size at most."
        return judged(name, asks, worst, self.tolerance, found, self.because)


def gap(one: Tree, other: Tree) -> float:
    """The largest difference between two trees of numbers, relative to the size of the first."""
    worst = 0.0
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        if a.shape != b.shape:
            return math.inf
        a, b = a.double(), b.double()
        same = (a == b) | (a.isnan() & b.isnan())
        ordinary = a[a.abs() < 1e30]  # absent classes stand at the lowest finite number
        size = ordinary.square().mean().sqrt().clamp_min(1e-8) if len(ordinary) else a.new_ones(())
        worst = max(worst, float(torch.where(same, 0.0, (a - b).abs() / size).max()))
    return worst


def _rows(tree: Tree, which: Any) -> Tree:
    return tree_map(lambda leaf: leaf[which], tree)


def _shuffle(count: int) -> Tensor:
    """An order of `count` rows that is not the one they have."""
    order = torch.from_numpy(np.random.default_rng(count).permutation(count))
    return order if not torch.equal(order, torch.arange(count)) else order.flip(0)


def other_queries(probe: Probe) -> Audit:
    name, asks = "other queries", "Does a query's prediction change when the other queries go, or are others?"
    if probe.learner.transductive and not probe.learner.causal_queries:  # what is asked below is of the first queries
        return idle(name, asks, "The learner is declared transductive, and its figures are called so.")
    gaps = []
    for number, (task, state, whole) in enumerate(probe.asked()):
        inputs, half = task.query.inputs, len(task.query.weight) // 2
        if not half:
            return idle(name, asks, "A query holds one example.")
        foreign = tree_map(lambda leaf: leaf.flip(0), probe.tasks[number - 1].query.inputs)
        mixed = tree_map(lambda own, other, half=half: torch.cat([own[:half], other[half:]]), inputs, foreign)
        for asked, kept in ((_rows(inputs, slice(1)), 1), (_rows(inputs, slice(half)), half), (mixed, half)):
            found = probe.predict(state, asked)
            gaps.append(gap(_rows(whole, slice(kept)), _rows(found, slice(kept))))
    return probe.judge(name, asks, gaps, "With other queries, predictions change")


def query_order(probe: Probe) -> Audit:
    name, asks = "query order", "Does a query's prediction change when the queries come in another order?"
    if probe.learner.causal_queries:
        return idle(name, asks, "The learner is declared to read its queries in order, each after those before it.")
    gaps = []
    for task, state, whole in probe.asked():
        if len(task.query.weight) < 2:
            return idle(name, asks, "A query holds one example.")
        order = _shuffle(len(task.query.weight))
        gaps.append(gap(_rows(whole, order), probe.predict(state, _rows(task.query.inputs, order))))
    return probe.judge(name, asks, gaps, "With the queries in another order, predictions change")


def support_order(probe: Probe) -> Audit:
    name, asks = "support order", "Does a prediction change when the support comes in another order?"
    if probe.learner.ordered:
        return idle(name, asks, "The learner is declared to go by the order of its support.")
    gaps = []
    for task, _, whole in probe.asked():
        if len(task.support.weight) < 2:
            return idle(name, asks, "A support holds one example.")
        moved = task.support.rows(_shuffle(len(task.support.weight)))
        gaps.append(gap(whole, probe.predict(probe.adapt(moved), task.query.inputs)))
    return probe.judge(name, asks, gaps, "With the support in another order, predictions change")


def padding(probe: Probe) -> Audit:
    name, asks = "padding", "Do rows of weight 0 have an effect?"
    if probe.learner.ordered:
        return idle(name, asks, "The learner is declared to go by the order of its support, padding among it.")
    gaps = []
    for number, (task, _, whole) in enumerate(probe.asked()):
        support, query = (_padded(own, junk) for own, junk in zip(task, probe.tasks[number - 1]))
        gaps.append(gap(whole, probe.predict(probe.adapt(support), task.query.inputs)))
        longer = tree_map(lambda leaf: torch.cat([leaf, leaf[:2].flip(0)]), whole)
        gaps.append(gap(*(_figures(probe.learner, *pair) for pair in ((whole, task.query), (longer, query)))))
    return probe.judge(name, asks, gaps, "With rows of weight 0 added, predictions and figures change")


def _padded(batch: Batch, junk: Batch) -> Batch:
    """A batch and two rows of another one, at weight 0."""
    inputs, targets = tree_map(lambda own, other: torch.cat([own, other[:2]]), tuple(batch[:2]), tuple(junk[:2]))
    return Batch(inputs, targets, torch.cat([batch.weight, torch.zeros_like(junk.weight[:2])]))


def _figures(learner: Learner, prediction: Tree, query: Batch) -> dict[str, Tensor]:
    return {"loss": learner.objective.loss(prediction, query)} | learner.objective.metrics(prediction, query)
