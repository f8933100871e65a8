"""Whether predictions are as sure as they may be: probabilities against frequencies, bands against coverage.

Shape legend: n examples, C classes, B bins, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import torch

from kshot.evaluation.intervals import Interval, interval
from kshot.objectives import Objective, weighted_mean
from kshot.types import Batch, Tree

BINS = 15  # as in Guo et al.
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class Point(NamedTuple):
    """A point of a reliability plot: what was expected, what came, and the share of examples that it stands for."""

    expected: float
    observed: float
    share: float


class Calibration(NamedTuple):
    r"""How well the certainty of predictions fits what came, over the query examples of all tasks.

    Of classes, examples are sorted by the probability of their most likely class into 15 equal bins; a point is a bin's
    mean probability against its accuracy, and the error is the expected calibration error
    $\sum_b \text{share}_b \, \lvert \text{accuracy}_b - \text{probability}_b \rvert$. Of numbers predicted with a
    standard deviation, a point is a central band's nominal coverage against the share of targets within, and the error
    is the mean gap. Both are biased upward by few examples.

    Attributes:
        kind: "classes" or "bands".
        error: 0 is best.
        points: of the reliability plot; empty bins are left out.
        examples: how many were counted.
        nll: mean negative log-likelihood of the targets, over tasks, in nats.
        brier: mean squared distance of the probabilities from the one-hot targets, over tasks; None for numbers.

    References:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.
        Kuleshov, Fenner, Ermon: Accurate Uncertainties for Deep Learning Using Calibrated Regression, ICML 2018,
        arXiv:1807.00263, section 3.
    """

    kind: Literal["classes", "bands"]
    error: float
    points: list[Point]
    examples: int
    nll: Interval
    brier: Interval | None


class Calibrating:
    """Gathers the predictions of one task after another; `result` says how well they were calibrated.

    Args:
        objective: what the tasks ask. Predictions of classes are logits, (n, C); others count if they are
            {"mean", "std"}, each of the targets' shape.

    Example:
        >>> from kshot.objectives import classification
        >>> gathered = Calibrating(classification)
        >>> batch = Batch.of(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]), ways=2)
        >>> gathered.add(torch.tensor([[0.75, 0.25]]).log().expand(4, 2), batch)
        >>> round(gathered.result().error, 6)
        0.0
    """

    def __init__(self, objective: Objective) -> None:
        self.of_classes = objective.classifies
        self.sums = torch.zeros(3, max(BINS, len(LEVELS)), dtype=torch.float64)  # weight, expected, observed
        self.examples = 0
        self.nll: list[float] = []
        self.brier: list[float] = []

    def add(self, prediction: Tree, query: Batch) -> None:
        """Count what was predicted for a task's query set, if it says how sure it is."""
        targets, weight = query.targets, query.weight
        if self.of_classes:
            log_nC = torch.log_softmax(prediction.double(), -1)
            chance_n, chosen_n = log_nC.exp().max(-1)
            hit_n = (chosen_n == targets.argmax(-1)).double()
            counted = torch.where(chance_n.isfinite(), weight.double(), 0.0)  # NaN is in no bin, and shows in the nll
            chance_n = chance_n.nan_to_num()
            which_n = (chance_n * BINS).long().clamp(max=BINS - 1)
            sums = torch.stack([counted, counted * chance_n, counted * hit_n]).cpu()  # (3, n)
            self.sums[:, :BINS] += torch.zeros(3, BINS, dtype=torch.float64).index_add(1, which_n.cpu(), sums)
            self.nll.append(float(weighted_mean(-(targets * log_nC).sum(-1), weight)))
            self.brier.append(float(weighted_mean((log_nC.exp() - targets).square().sum(-1), weight)))
        elif isinstance(prediction, Mapping) and prediction.keys() >= {"mean", "std"}:
            mean, std = prediction["mean"].double(), prediction["std"].double()
            law = torch.distributions.Normal(mean, std, validate_args=False)
            # The level of the band that just reaches the target.
            inside = 1 - 2 * law.cdf(mean - (targets - mean).abs())
            counted = weight.double().reshape(-1, *[1] * (inside.ndim - 1)).expand_as(inside)
            for place, level in enumerate(LEVELS):
                within = (counted * (inside <= level)).sum()
                self.sums[:, place] += torch.stack([counted.sum(), level * counted.sum(), within]).cpu()
            self.nll.append(float(weighted_mean(-law.log_prob(targets).flatten(1).mean(1), weight)))
        else:
            return
        self.examples += int((weight > 0).sum())

    def result(self, subjects: np.ndarray | None = None) -> Calibration | None:
        """What came of it, with intervals over `subjects` of the tasks as in `interval`; None if no prediction said how
        sure it was."""
        if not self.examples:
            return None
        count = BINS if self.of_classes else len(LEVELS)
        total = float(self.sums[0, :count].sum())
        points = [
            Point(expected / weight, observed / weight, weight / total)
            for weight, expected, observed in self.sums[:, :count].T.tolist()
            if weight > 0
        ]
        error = sum(point.share * abs(point.expected - point.observed) for point in points)
        brier = interval(self.brier, subjects) if self.brier else None
        kind: Literal["classes", "bands"] = "classes" if self.of_classes else "bands"
        return Calibration(kind, error, points, self.examples, interval(self.nll, subjects), brier)
