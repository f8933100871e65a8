"""Audits of invariances: other queries, any order and padding must not change a prediction.

They compare predictions of a copy of the learner in double precision, where rounding is far below any true effect.
Learners that draw random numbers are compared under equal seeds, and by the distribution of their predictions over
seeds where the change itself leads to other random numbers, as one dropout mask for all queries does.

Shape legend: n examples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kshot.evaluation.audit.findings import Audit, Question
from kshot.learner import Learner
from kshot.training.fit import seeded
from kshot.types import Batch, Task, Tree, tree_leaves, tree_map

EXACT, ROUNDED = 1e-6, 1e-3
"""Tolerances for rounding, relative to the size of predictions: in double precision, and in the learner's own."""

DRAWS = 32  # seeds before and after a change, for learners that draw random numbers
MOST_PAIRS = 2  # changes that are compared so, those of the largest effect first
FALSE_ALARM = 1e-5
"""Upper bound on the probability that a statistical audit fails a correct evaluation."""

OTHER_QUERIES = Question("other queries", "Does a prediction change if the other queries are removed or replaced?")
QUERY_ORDER = Question("query order", "Does a prediction change if the queries are reordered?")
SUPPORT_ORDER = Question("support order", "Does a prediction change if the support set is reordered?")
PADDING = Question("padding", "Do rows of weight 0 have an effect?")


class Pair(NamedTuple):
    """Two functions of a random seed whose results must be equal: predictions before and after a change."""

    before: Callable[[int], Tree]
    after: Callable[[int], Tree]


class Probe:
    """A learner for repeated predictions with the same random numbers.

    Attributes:
        learner: a copy in double precision, or the learner itself if that is not possible.
        tasks, states, predictions: the tasks, the states adapted to them, and the predictions for their queries, by
            seed 0.
        tolerance, reason: the largest difference that counts as rounding, and why.
        random: whether predictions depend on random numbers.
    """

    def __init__(self, learner: Learner, tasks: Sequence[Task], *, double: bool) -> None:
        self.learner = learner
        self.tolerance = EXACT if double else ROUNDED
        self.reason = "rounding in double precision is far smaller" if double else "rounding is smaller"
        self.tasks: list[Task] = [_double(task) for task in tasks] if double else list(tasks)
        self.states = [self.adapt(task.support) for task in self.tasks]
        self.predictions = [self.predict(state, task.query.inputs) for state, task in zip(self.states, self.tasks)]
        again = [self.adapt_and_predict(self.tasks[0].support, self.tasks[0].query.inputs, seed) for seed in (1, 0)]
        self.random = not max(gap(self.predictions[0], other) for other in again) <= self.tolerance

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
        with seeded(seed, 1):  # other numbers than those of `adapt`, as within an evaluation
            return self.learner.predict(state, inputs)

    def adapt_and_predict(self, support: Batch, inputs: Tree, seed: int) -> Tree:
        return self.predict(self.adapt(support, seed), inputs, seed)

    def __iter__(self) -> Iterator[tuple[Task, Tree, Tree]]:
        return zip(self.tasks, self.states, self.predictions)

    def judge(self, question: Question, pairs: Sequence[Pair], change: str) -> Audit:
        """Compare predictions under equal seeds, and by their distributions if a change also changes random numbers."""
        gaps = [gap(pair.before(0), pair.after(0)) for pair in pairs]
        worst = max(gaps)
        if not self.random or worst <= self.tolerance:
            seeds = ", under the same random numbers," if self.random else ""
            finding = (
                f"With {change}, predictions{seeds} change by at most {_size(worst)} of their size (their root mean "
                f"square over a query set). Rounding alone changes them by up to {self.tolerance:.0e}."
            )
            return question.judge(worst, self.tolerance, finding, self.reason)
        distance, limit = compare_distributions([pairs[number] for number in np.argsort(gaps)[::-1][:MOST_PAIRS]])
        finding = (
            f"The learner draws random numbers, and {change} also changes which. Over {DRAWS} seeds each, the "
            f"predictions before and after differ by {distance:.3g} times their spread over seeds (energy distance); "
            f"if there is no effect, it is above {limit:.3g} at most once in {round(1 / FALSE_ALARM):,} times."
        )
        return question.judge(distance, limit, finding, "chance alone reaches it")


def compare_distributions(pairs: Sequence[Pair]) -> tuple[float, float]:
    r"""The energy distance of predictions before and after a change, over random seeds, and what chance gives at most.

    With $d(i, j)$ the distance of draws i and j, and $s_i = \pm 1$ for draws before and after, the distance is
    $-s^T d s / n^2$ for n draws each. If the change has no effect on the distribution, all signs are equally likely:
    the limit is the largest value of 1/`FALSE_ALARM` permutations, an exact test.

    References:
        Székely, Rizzo: Energy statistics, Journal of Statistical Planning and Inference 143, 2013.
    """
    random = np.random.default_rng(0)
    before: list[np.ndarray] = []
    after: list[np.ndarray] = []
    for seed in range(DRAWS):  # in turns, and first one and then the other, so that no drift of a learner is an effect
        for is_before in random.permutation([True, False]):
            own = [pair.before(seed) if is_before else pair.after(DRAWS + seed) for pair in pairs]
            (before if is_before else after).append(_vector(own))
    draws = np.stack([*before, *after])  # (2 n, values)
    spread = draws.std(0)
    draws = draws[:, spread > 0] / spread[spread > 0]
    distances = np.sqrt(np.maximum(_squared_distances(draws), 0)) / max(draws.shape[1], 1) ** 0.5
    signs = np.repeat([1.0, -1.0], DRAWS)
    permuted = random.permuted(np.tile(signs, (round(1 / FALSE_ALARM), 1)), axis=1)
    by_chance = -np.einsum("pi,pi->p", permuted @ distances, permuted) / DRAWS**2
    return float(-signs @ distances @ signs / DRAWS**2), float(by_chance.max())


def _squared_distances(rows: np.ndarray) -> np.ndarray:
    squares = np.square(rows).sum(1)
    return squares[:, None] + squares - 2 * rows @ rows.T


def _vector(trees: Sequence[Tree]) -> np.ndarray:
    """All values of predictions; those of absent classes, which have the lowest finite number, are constant."""
    leaves = [leaf.detach().cpu().double().reshape(-1) for leaf in tree_leaves(list(trees))]
    return torch.nan_to_num(torch.cat(leaves)).clamp(-1e30, 1e30).numpy()


def _size(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "an infinite multiple"


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
        return OTHER_QUERIES.idle("The learner is declared transductive, and its figures are reported as such.")
    pairs = []
    for number, (task, state, prediction) in enumerate(probe):
        inputs, half = task.query.inputs, len(task.query.weight) // 2
        if not half:
            return OTHER_QUERIES.idle("Query sets have one example.")
        foreign = tree_map(lambda leaf: leaf.flip(0), probe.tasks[number - 1].query.inputs)
        mixed = tree_map(
            lambda leaf, other, half=half: torch.cat([leaf[:half], _like(other, leaf)[half:]]), inputs, foreign
        )
        for queries, count in ((_rows(inputs, slice(1)), 1), (_rows(inputs, slice(half)), half), (mixed, half)):
            first = partial(_rows, index=slice(count))
            pairs.append(_pair(probe, task, state, prediction, queries=queries, before=first, after=first))
    return probe.judge(OTHER_QUERIES, pairs, "the other queries removed or replaced")


def query_order(probe: Probe) -> Audit:
    if probe.learner.causal_queries:
        return QUERY_ORDER.idle("The learner is declared to read its queries in order, each after the previous ones.")
    pairs = []
    for task, state, prediction in probe:
        if len(task.query.weight) < 2:
            return QUERY_ORDER.idle("Query sets have one example.")
        order = _shuffle(len(task.query.weight))
        reorder = partial(_rows, index=order)
        queries = _rows(task.query.inputs, order)
        pairs.append(_pair(probe, task, state, prediction, queries=queries, before=reorder))
    return probe.judge(QUERY_ORDER, pairs, "the queries in another order")


def support_order(probe: Probe) -> Audit:
    if probe.learner.ordered:
        return SUPPORT_ORDER.idle("The learner is declared to depend on the order of its support set.")
    pairs = []
    for task, state, prediction in probe:
        if len(task.support.weight) < 2:
            return SUPPORT_ORDER.idle("Support sets have one example.")
        shuffled = task.support.rows(_shuffle(len(task.support.weight)))
        pairs.append(_pair(probe, task, state, prediction, support=shuffled))
    return probe.judge(SUPPORT_ORDER, pairs, "the support set in another order")


def padding(probe: Probe) -> Audit:
    pairs = []
    for number, (task, state, prediction) in enumerate(probe):
        support, query = (_padded(batch, junk) for batch, junk in zip(task, probe.tasks[number - 1]))
        added = len(query.weight) - len(task.query.weight)
        longer = tree_map(lambda leaf, added=added: torch.cat([leaf, leaf[:added].flip(0)]), prediction)
        figures, padded = (_figures(probe.learner, *each) for each in ((prediction, task.query), (longer, query)))
        if (worst := gap(figures, padded)) > probe.tolerance:
            finding = f"With rows of weight 0 added to a query set, its loss or metrics change by {_size(worst)}."
            return PADDING.judge(worst, probe.tolerance, finding, probe.reason)
        pairs.append(_pair(probe, task, state, prediction, support=support))
    if probe.learner.ordered:
        return PADDING.idle("The learner is declared to depend on the order of its support set, including padding.")
    return probe.judge(PADDING, pairs, "rows of weight 0 added to the support set")


def _pair(
    probe: Probe,
    task: Task,
    state: Tree,
    prediction: Tree,
    *,
    support: Batch | None = None,
    queries: Tree | None = None,
    before: Callable[[Tree], Tree] = lambda tree: tree,
    after: Callable[[Tree], Tree] = lambda tree: tree,
) -> Pair:
    """Predictions on a task and with a changed support or query set; `before` and `after` select what must be equal."""
    inputs = task.query.inputs if queries is None else queries

    def original(seed: int) -> Tree:
        return before(probe.adapt_and_predict(task.support, task.query.inputs, seed) if seed else prediction)

    def changed(seed: int) -> Tree:
        if support is None and not seed:
            return after(probe.predict(state, inputs))
        return after(probe.adapt_and_predict(task.support if support is None else support, inputs, seed))

    return Pair(original, changed)


def _padded(batch: Batch, junk: Batch) -> Batch:
    """A batch with up to two rows of another one appended at weight 0."""
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
