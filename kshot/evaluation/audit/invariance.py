"""Audits of invariances: other queries, any order and padding must not change a prediction.

They compare predictions of a copy of the learner in double precision, where rounding is far below any true effect.

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

from kshot.evaluation.audit.findings import Audit, Question
from kshot.learner import Learner
from kshot.training.fit import seeded
from kshot.types import Batch, Task, Tree, tree_leaves, tree_map

EXACT, ROUNDED = 1e-6, 1e-3
"""Tolerances for rounding, relative to the size of predictions: in double precision, and in the learner's own."""

OTHER_QUERIES = Question("other queries", "Does a prediction change if the other queries are removed or replaced?")
QUERY_ORDER = Question("query order", "Does a prediction change if the queries are reordered?")
SUPPORT_ORDER = Question("support order", "Does a prediction change if the support set is reordered?")
PADDING = Question("padding", "Do rows of weight 0 have an effect?")


class Probe:
    """A learner for repeated predictions with the same random numbers.

    Attributes:
        learner: a copy in double precision, or the learner itself if that is not possible.
        tasks, states, predictions: the tasks, the states adapted to them, and the predictions for their queries.
        tolerance, reason: the largest difference that counts as rounding, and why.
        random: whether predictions depend on random numbers, so that they cannot be compared.
    """

    def __init__(self, learner: Learner, tasks: Sequence[Task], *, double: bool) -> None:
        self.learner = learner
        self.tolerance = EXACT if double else ROUNDED
        self.reason = "rounding in double precision is far smaller" if double else "rounding is smaller"
        self.tasks: list[Task] = [_double(task) for task in tasks] if double else list(tasks)
        self.states = [self.adapt(task.support) for task in self.tasks]
        self.predictions = [self.predict(state, task.query.inputs) for state, task in zip(self.states, self.tasks)]
        again = self.predict(self.adapt(self.tasks[0].support, seed=1), self.tasks[0].query.inputs, seed=1)
        self.random = not gap(self.predictions[0], again) <= self.tolerance

    @classmethod
    def of(cls, learner: Learner, tasks: Sequence[Task]) -> Probe:
        """A probe in double precision if the learner allows it."""
        try:
            return cls(copy.deepcopy(learner).double(), tasks, double=True)
        except Exception:  # learners that cannot be copied or cast raise errors of many types
            return cls(learner, tasks, double=False)

    def adapt(self, support: Batch, seed: int = 0) -> Tree:
        with seeded(seed):
            return self.learner.adapt(support)

    def predict(self, state: Tree, inputs: Tree, seed: int = 0) -> Tree:
        with seeded(seed):
            return self.learner.predict(state, inputs)

    def __iter__(self) -> Iterator[tuple[Task, Tree, Tree]]:
        return zip(self.tasks, self.states, self.predictions)

    def judge(self, question: Question, gaps: Sequence[float], change: str) -> Audit:
        if self.random:
            return question.skip("The learner draws random numbers, so that two predictions cannot be compared.")
        worst = max(gaps)
        finding = f"With {change}, predictions change by at most {worst:.2g} of their size."
        return question.judge(worst, self.tolerance, finding, self.reason)


def gap(one: Tree, other: Tree) -> float:
    """The largest difference between two trees of numbers, relative to the size of the first."""
    worst = 0.0
    for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
        if a.shape != b.shape:
            return math.inf
        a, b = a.double(), b.double()
        same = (a == b) | (a.isnan() & b.isnan())
        ordinary = a[a.abs() < 1e30]  # absent classes have the lowest finite number
        size = ordinary.square().mean().sqrt().clamp_min(1e-8) if len(ordinary) else a.new_ones(())
        worst = max(worst, float(torch.where(same, 0.0, (a - b).abs() / size).max()))
    return worst


def _double(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, tree)


def _rows(tree: Tree, index: Any) -> Tree:
    return tree_map(lambda leaf: leaf[index], tree)


def _shuffle(count: int) -> Tensor:
    """A permutation of `count` rows other than the identity."""
    order = torch.from_numpy(np.random.default_rng(count).permutation(count))
    return order if not torch.equal(order, torch.arange(count)) else order.flip(0)


def other_queries(probe: Probe) -> Audit:
    if probe.learner.transductive and not probe.learner.causal_queries:  # the rows compared below are the first ones
        return OTHER_QUERIES.skip("The learner is declared transductive, and its figures are reported as such.")
    gaps = []
    for number, (task, state, prediction) in enumerate(probe):
        inputs, half = task.query.inputs, len(task.query.weight) // 2
        if not half:
            return OTHER_QUERIES.skip("Query sets have one example.")
        foreign = tree_map(lambda leaf: leaf.flip(0), probe.tasks[number - 1].query.inputs)
        mixed = tree_map(
            lambda leaf, other, half=half: torch.cat([leaf[:half], _like(other, leaf)[half:]]), inputs, foreign
        )
        for queries, count in ((_rows(inputs, slice(1)), 1), (_rows(inputs, slice(half)), half), (mixed, half)):
            changed = probe.predict(state, queries)
            gaps.append(gap(_rows(prediction, slice(count)), _rows(changed, slice(count))))
    return probe.judge(OTHER_QUERIES, gaps, "other queries")


def query_order(probe: Probe) -> Audit:
    if probe.learner.causal_queries:
        return QUERY_ORDER.skip("The learner is declared to read its queries in order, each after the previous ones.")
    gaps = []
    for task, state, prediction in probe:
        if len(task.query.weight) < 2:
            return QUERY_ORDER.skip("Query sets have one example.")
        order = _shuffle(len(task.query.weight))
        gaps.append(gap(_rows(prediction, order), probe.predict(state, _rows(task.query.inputs, order))))
    return probe.judge(QUERY_ORDER, gaps, "the queries in another order")


def support_order(probe: Probe) -> Audit:
    if probe.learner.ordered:
        return SUPPORT_ORDER.skip("The learner is declared to depend on the order of its support set.")
    gaps = []
    for task, _, prediction in probe:
        if len(task.support.weight) < 2:
            return SUPPORT_ORDER.skip("Support sets have one example.")
        shuffled = task.support.rows(_shuffle(len(task.support.weight)))
        gaps.append(gap(prediction, probe.predict(probe.adapt(shuffled), task.query.inputs)))
    return probe.judge(SUPPORT_ORDER, gaps, "the support set in another order")


def padding(probe: Probe) -> Audit:
    if probe.learner.ordered:
        return PADDING.skip("The learner is declared to depend on the order of its support set, including padding.")
    gaps = []
    for number, (task, _, prediction) in enumerate(probe):
        support, query = (_padded(batch, junk) for batch, junk in zip(task, probe.tasks[number - 1]))
        gaps.append(gap(prediction, probe.predict(probe.adapt(support), task.query.inputs)))
        longer = tree_map(lambda leaf: torch.cat([leaf, leaf[:2].flip(0)]), prediction)
        gaps.append(gap(*(_figures(probe.learner, *pair) for pair in ((prediction, task.query), (longer, query)))))
    return probe.judge(PADDING, gaps, "rows of weight 0 added")


def _padded(batch: Batch, junk: Batch) -> Batch:
    """A batch with two rows of another one appended at weight 0."""
    rows = min(2, len(batch.weight), len(junk.weight))
    inputs, targets = tree_map(
        lambda leaf, other: torch.cat([leaf, _like(other, leaf)[:rows]]), tuple(batch[:2]), tuple(junk[:2])
    )
    return Batch(inputs, targets, torch.cat([batch.weight, torch.zeros_like(junk.weight[:rows])]))


def _like(other: Tensor, leaf: Tensor) -> Tensor:
    """The rows of another task, or those of this one in reverse order if the tasks' rows differ in shape."""
    return other if other.shape[1:] == leaf.shape[1:] else leaf.flip(0)


def _figures(learner: Learner, prediction: Tree, query: Batch) -> dict[str, Tensor]:
    return {"loss": learner.objective.loss(prediction, query)} | learner.objective.metrics(prediction, query)
