"""Out-of-scope detection: novelty scores, their threshold, and how well they separate the classes from the rest.

Shape legend: n examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from kshot.annotations import FractionBelowOne, PositiveInt
from kshot.evaluation.evaluate import Scored, evaluate
from kshot.evaluation.intervals import Interval, interval
from kshot.learner import Learner
from kshot.tasks.source import TaskSource
from kshot.types import Split, to

Score = Literal["energy", "nearest", "probability"]
"""Novelty scores of logits, see `novelty`."""

OUTSIDE = "out of scope"
"""The label of an example that belongs to none of the classes."""


def novelty(logits_nC: Tensor, score: Score = "energy") -> Tensor:
    r"""Novelty score (n,) of examples: the larger, the less an example resembles any of the task's classes.

    | score | novelty |
    | --- | --- |
    | energy | $-\log \sum_c \exp \hat y_c$ |
    | nearest | $-\max_c \hat y_c$: for prototypes, the distance to the nearest one |
    | probability | $1 - \max_c \mathrm{softmax}(\hat y)_c$ |

    The first two need logits whose absolute value is meaningful, such as distances. Logits of `plda` are log-likelihood
    ratios against an unseen class, and energy is then Bayes' rule. Softmax keeps only differences of logits.

    Args:
        logits_nC: logits of the task's classes; classes without examples have the lowest finite number.
        score: one of the above.

    Raises:
        ValueError: an unknown score.

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
    """Area under the ROC curve of novelty scores in scope and out of scope; ties count for a half.

    From ranks, which is exact where scikit-learn's sum of trapezoids is rounded: perfect separation is 1.
    """
    ordered = np.sort(inside)
    lower = np.searchsorted(ordered, outside, "left") + np.searchsorted(ordered, outside, "right")
    return float(lower.mean() / (2 * len(inside)))


def fpr95(inside: np.ndarray, outside: np.ndarray) -> float:
    """The share of out-of-scope examples that are accepted where the threshold accepts 95 % of those in scope."""
    return float((outside <= threshold_at(inside, 0.05)).mean())


def threshold_at(inside: Sequence[float] | np.ndarray, false_rejection: float) -> float:
    """The lowest threshold that rejects at most the share `false_rejection` of in-scope scores.

    Raises:
        ValueError: `false_rejection` is not in [0, 1), or there are no scores.

    Example:
        >>> threshold_at([0.0, 1.0, 2.0, 3.0], 0.25)
        2.0
    """
    if not 0 <= false_rejection < 1:
        raise ValueError(f"false_rejection must be a share in [0, 1), got {false_rejection}")
    ordered = np.sort(np.asarray(inside, np.float64))
    if not len(ordered):
        raise ValueError("a threshold needs the scores of at least one example in scope")
    return float(ordered[math.ceil(len(ordered) * (1 - false_rejection) - 1e-9) - 1])


class Rejection(NamedTuple):
    """Performance of a learner in out-of-scope detection.

    Attributes:
        score, threshold: novelty score of logits; examples whose novelty is above the threshold are rejected.
        false_rejection: the share of in-scope queries that the threshold rejects on validation tasks.
        auroc, fpr95: see the functions; means over tasks.
        rejected_inside, rejected_outside: mean share of examples in scope and out of scope that are rejected.
    """

    score: Score
    threshold: float
    false_rejection: float
    auroc: Interval
    fpr95: Interval
    rejected_inside: Interval
    rejected_outside: Interval


def calibrate_threshold(
    learner: Learner,
    source: TaskSource,
    *,
    score: Score = "energy",
    false_rejection: FractionBelowOne = 0.05,
    split: Split = "val",
    num_tasks: int = 100,
) -> float:
    """The novelty threshold that rejects a given share of the queries of validation tasks.

    No out-of-scope examples are needed.

    Args:
        learner, source: classifier, and tasks with the numbers of ways and shots that the threshold is used for.
        score, false_rejection: novelty score of logits, and the share of in-scope queries to reject.
        split, num_tasks: as in `evaluate`.
    """
    scores = [inside for inside, _ in _scores(learner, source, split, num_tasks, score, 0)]
    return threshold_at(np.concatenate(scores), false_rejection)


def rejection(
    learner: Learner,
    source: TaskSource,
    *,
    threshold: float,
    score: Score = "energy",
    false_rejection: FractionBelowOne = 0.05,
    split: Split = "test",
    num_tasks: int = 600,
    outsiders: PositiveInt = 50,
) -> Rejection:
    """Evaluate how well a learner separates a task's queries from out-of-scope examples.

    Args:
        learner: classifier.
        source: task source with out-of-scope examples, such as `kshot.sources.text(…, out_of_scope_label="oos")`.
        threshold: result of `calibrate_threshold` with the same score.
        score, false_rejection: as for `calibrate_threshold`.
        split, num_tasks: as in `evaluate`.
        outsiders: number of out-of-scope examples for each task.

    Raises:
        ValueError: the source has no out-of-scope examples.
    """
    figures = [
        (auroc(inside, outside), fpr95(inside, outside), (inside > threshold).mean(), (outside > threshold).mean())
        for inside, outside in _scores(learner, source, split, num_tasks, score, outsiders)
    ]
    return Rejection(score, threshold, false_rejection, *(interval([*map(float, each)]) for each in zip(*figures)))


def _scores(
    learner: Learner, source: TaskSource, split: Split, num_tasks: int, score: Score, outsiders: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The novelty of each task's queries, without padding, and of its out-of-scope examples."""
    scores = []

    def observe(scored: Scored) -> None:
        outside = np.zeros(0)
        if outsiders:
            inputs = source.out_of_scope_inputs(split, scored.number, outsiders)
            logits = learner.predict(scored.state, to(inputs, scored.task.support.weight.device))
            outside = novelty(logits, score).cpu().numpy()
        scores.append((novelty(scored.prediction, score).cpu().numpy(), outside))

    evaluate(learner, source, split=split, num_tasks=num_tasks, observe=observe, audit=False)
    return scores
