"""Calibration of predictions: probabilities against frequencies, central bands against their coverage.

Shape legend: n examples, C classes, B bins, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

from kshot.evaluation.intervals import Interval, Units, interval
from kshot.objectives import Objective, weighted_mean
from kshot.types import Batch, Tree

BINS = 15  # as in Guo et al.
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class Point(NamedTuple):
    """A point of a reliability diagram: expected and observed frequency, and the share of all examples in it."""

    expected: float
    observed: float
    share: float


class Calibration(NamedTuple):
    r"""Calibration of the predictions for the query examples of all tasks.

    For classes, examples are sorted by the probability of their most likely class into 15 equal bins. A point is a
    bin's mean probability against its accuracy, and the error is the expected calibration error
    $\sum_b \text{share}_b \, \lvert \text{accuracy}_b - \text{probability}_b \rvert$. For numbers predicted with a
    standard deviation, a point is a central band's nominal coverage against the share of targets within it, and the
    error is the mean gap. Both errors are biased upwards if there are few examples.

    Attributes:
        error: the calibration error; 0 is best.
        points: points of the reliability diagram, without empty bins.
        nll: mean negative log-likelihood of the targets over tasks, in nats.
        brier: mean squared distance of the probabilities from the one-hot targets over tasks; None for numbers.

    References:
        Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.
        Kuleshov, Fenner, Ermon: Accurate Uncertainties for Deep Learning Using Calibrated Regression, ICML 2018,
        arXiv:1807.00263, section 3.
    """

    kind: Literal["classes", "bands"]
    error: float
    points: list[Point]
    num_examples: int
    nll: Interval
    brier: Interval | None


class CalibrationMeter:
    """Accumulates the predictions of one task after another; `result` computes their calibration.

    Args:
        objective: objective of the tasks. Predictions of classes are logits (n, C); other predictions count if they are
            {"mean", "std"}, each of the targets' shape.

    Example:
        >>> from kshot.objectives import classification
        >>> meter = CalibrationMeter(classification)
        >>> batch = Batch.of(torch.zeros(4, 1), torch.tensor([0, 0, 0, 1]), ways=2)
        >>> meter.add(torch.tensor([[0.75, 0.25]]).log().expand(4, 2), batch)
        >>> round(meter.result().error, 6)
        0.0
    """

    def __init__(self, objective: Objective) -> None:
        self.of_classes = objective.classifies
        self.sums = torch.zeros(3, BINS if self.of_classes else len(LEVELS), dtype=torch.float64)
        """Sums over examples of weight, weighted expected and weighted observed frequency, (3, B or L)."""
        self.num_examples = 0
        self.nll: list[float] = []
        self.brier: list[float] = []

    def add(self, prediction: Tree, query: Batch) -> None:
        """Add the prediction for a task's query set; one without probabilities or standard deviations is ignored."""
        targets, weight = query.targets, query.weight
        if self.of_classes:
            log_nC = torch.log_softmax(prediction.double(), -1)
            confidence_n, class_n = log_nC.exp().max(-1)
            hit_n = (class_n == targets.argmax(-1)).double()
            weight_n = torch.where(confidence_n.isfinite(), weight.double(), 0.0)  # NaN is in no bin; the nll shows it
            confidence_n = confidence_n.nan_to_num()
            bin_n = (confidence_n * BINS).long().clamp(max=BINS - 1)
            sums = torch.stack([weight_n, weight_n * confidence_n, weight_n * hit_n]).cpu()  # (3, n)
            self.sums += torch.zeros_like(self.sums).index_add(1, bin_n.cpu(), sums)
            self.nll.append(float(weighted_mean(-(targets * log_nC).sum(-1), weight)))
            self.brier.append(float(weighted_mean((log_nC.exp() - targets).square().sum(-1), weight)))
        elif isinstance(prediction, Mapping) and prediction.keys() >= {"mean", "std"}:
            mean, std = prediction["mean"].double(), prediction["std"].double()
            law = torch.distributions.Normal(mean, std, validate_args=False)
            level = 1 - 2 * law.cdf(mean - (targets - mean).abs())  # of the band that just reaches the target
            weight_n = weight.double().reshape(-1, *[1] * (level.ndim - 1)).expand_as(level)
            for index, nominal in enumerate(LEVELS):
                within = (weight_n * (level <= nominal)).sum()
                self.sums[:, index] += torch.stack([weight_n.sum(), nominal * weight_n.sum(), within]).cpu()
            self.nll.append(float(weighted_mean(-law.log_prob(targets).flatten(1).mean(1), weight)))
        else:
            return
        self.num_examples += int((weight > 0).sum())

    def result(self, units: Units | None = None) -> Calibration | None:
        """The calibration, with intervals over `units` as in `interval`; None if no prediction was counted."""
        if not self.num_examples:
            return None
        total = float(self.sums[0].sum())
        points = [
            Point(expected / weight, observed / weight, weight / total)
            for weight, expected, observed in self.sums.T.tolist()
            if weight > 0
        ]
        error = sum(point.share * abs(point.expected - point.observed) for point in points)
        brier = interval(self.brier, units) if self.brier else None
        kind: Literal["classes", "bands"] = "classes" if self.of_classes else "bands"
        return Calibration(kind, error, points, self.num_examples, interval(self.nll, units), brier)
