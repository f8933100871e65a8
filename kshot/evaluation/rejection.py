"""Telling what belongs to none of a task's classes: scores of novelty, a threshold, and how well they part.

Shape legend: n examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from kshot.annotations import FractionBelowOne, PositiveInt
from kshot.evaluation.intervals import Interval, interval
from kshot.learner import Learner
from kshot.tasks.read_log import EVALUATION, during
from kshot.tasks.source import TaskSource
from kshot.types import Split, to

Score = Literal["energy", "nearest", "probability"]
"""How novelty is read off logits, see `novelty`."""

OUTSIDE = "out of scope"
"""What an example is called that is none of the classes."""


def novelty(logits_nC: Tensor, score: Score = "energy") -> Tensor:
    r"""How little examples look like any of a task's classes (n,): the larger, the less.

    | score | novelty |
    | --- | --- |
    | energy | $-\log \sum_c \exp \hat y_c$ |
    | nearest | $-\max_c \hat y_c$: of prototypes, the distance to the nearest |
    | probability | $1 - \max_c \mathrm{softmax}(\hat y)_c$ |

    The first two are of use where logits mean something by themselves, as a distance does. Those of `plda` are
    likelihoods against those of a class never seen, and energy then is Bayes' rule. Softmax keeps differences alone.

    Args:
        logits_nC: of classes that the task has; those without examples have the lowest number there is.
        score: one of the above.

    Example:
        >>> novelty(torch.tensor([[1.0, -9.0], [-8.0, -9.0]]), "nearest")
        tensor([-1.,  8.])

    References:
        Liu et al.: Energy-based Out-of-distribution Detection, NeurIPS 2020, arXiv:2010.03759; Hendrycks, Gimpel,
        ICLR 2017, arXiv:1610.02136.
    """
    if score not in get_args(Score):
        raise ValueError(f"score must be one of {', '.join(get_args(Score))}, got {score!r}")
    if score == "energy":
        return -logits_nC.logsumexp(1)
    if score == "nearest":
        return -logits_nC.amax(1)
    return 1 - logits_nC.softmax(1).amax(1)


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The chance that something from outside scores higher than something from inside; ties count for a half."""
    order = np.sort(inside)
    below = np.searchsorted(order, outside, "left") + np.searchsorted(order, outside, "right")
    return float(below.mean() / (2 * len(inside)))


def fpr95(inside: np.ndarray, outside: np.ndarray) -> float:
    """The share of what is outside that passes for inside, where the threshold lets 95 % of what is inside pass."""
    return float((outside <= threshold_at(inside, 0.05)).mean())


def threshold_at(inside: Sequence[float] | np.ndarray, false_rejection: float) -> float:
    """The lowest threshold above which no more than a share of these scores lies.

    Example:
        >>> threshold_at([0.0, 1.0, 2.0, 3.0], 0.25)
        2.0
    """
    if not 0 <= false_rejection < 1:
        raise ValueError(f"false_rejection is a share, 0 … 1, got {false_rejection}")
    ordered = np.sort(np.asarray(inside, np.float64))
    if not len(ordered):
        raise ValueError("a threshold needs scores of examples that are in scope")
    return float(ordered[math.ceil(len(ordered) * (1 - false_rejection) - 1e-9) - 1])


class Rejection(NamedTuple):
    """How a learner tells what is out of scope.

    Attributes:
        score: how novelty is read off logits.
        threshold: what is above it is rejected.
        false_rejection: the share of queries in scope that it was to reject on validation tasks.
        auroc, fpr95: see there; over tasks.
        rejected_inside, rejected_outside: the shares that the threshold rejects; over tasks.
    """

    score: Score
    threshold: float
    false_rejection: float
    auroc: Interval
    fpr95: Interval
    rejected_inside: Interval
    rejected_outside: Interval

    def to_json(self) -> dict[str, Any]:
        return {
            name: value._asdict() if isinstance(value, Interval) else value for name, value in self._asdict().items()
        }


def calibrated(
    learner: Learner,
    source: TaskSource,
    *,
    score: Score = "energy",
    false_rejection: FractionBelowOne = 0.05,
    split: Split = "val",
    tasks: int = 100,
) -> float:
    """The threshold of novelty that rejects a share of the queries of validation tasks; no outsiders are needed.

    Args:
        learner: for classes.
        source: whose tasks have as many ways and shots as what the threshold is for.
        score: how novelty is read off logits.
        false_rejection: the share.
        split: where the tasks are from.
        tasks: how many.
    """
    return threshold_at(
        np.concatenate([inside for inside, _ in _scores(learner, source, split, tasks, score, 0)]), false_rejection
    )


def rejection(
    learner: Learner,
    source: TaskSource,
    *,
    threshold: float,
    score: Score = "energy",
    false_rejection: FractionBelowOne = 0.05,
    split: Split = "test",
    tasks: int = 600,
    outsiders: PositiveInt = 50,
) -> Rejection:
    """Score a learner on telling a task's queries from examples that are out of scope.

    Args:
        learner: for classes.
        source: that has what is out of scope, such as `kshot.sources.text(…, out_of_scope_label="oos")`.
        threshold: of `calibrated`, by the same score.
        score, false_rejection: as for `calibrated`.
        split: where the tasks are from.
        tasks: how many.
        outsiders: examples out of scope beside each task.

    Raises:
        ValueError: a source without anything out of scope.
    """
    found: dict[str, list[float]] = {"auroc": [], "fpr95": [], "rejected_inside": [], "rejected_outside": []}
    for inside, outside in _scores(learner, source, split, tasks, score, outsiders):
        values = (
            auroc(inside, outside),
            fpr95(inside, outside),
            (inside > threshold).mean(),
            (outside > threshold).mean(),
        )
        for own, value in zip(found.values(), values):
            own.append(float(value))
    return Rejection(score, threshold, false_rejection, **{name: interval(values) for name, values in found.items()})


@torch.no_grad()
def _scores(
    learner: Learner, source: TaskSource, split: Split, tasks: int, score: Score, outsiders: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The novelty of each task's queries, padding left out, and of examples out of scope."""
    device = next((p.device for p in learner.parameters()), None)
    was_training = learner.training
    learner.eval()
    found = []
    try:
        with during(source, EVALUATION):
            for index in range(tasks):
                task = to(source.task(split, index), device)
                state = learner.adapt(task.support)
                logits = learner.predict(state, task.query.inputs)[task.query.weight > 0]
                outside = np.zeros(0)
                if outsiders:
                    others = to(source.out_of_scope_inputs(split, index, outsiders), device)
                    outside = novelty(learner.predict(state, others), score).cpu().numpy()
                found.append((novelty(logits, score).cpu().numpy(), outside))
    finally:
        learner.train(was_training)
    return found
