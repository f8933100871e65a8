"""Predictions and targets as numbers in the unit of the metrics.

Shape legend: n examples, d dimensions of a target.
"""

from __future__ import annotations

from torch import Tensor

from kshot.objectives.base import Objective
from kshot.objectives.ratings import LevelMetrics, RatingMetrics
from kshot.objectives.regression import InUnits, ScaledError
from kshot.types import Batch, Tree

Numbers = dict[str, tuple[Tensor, Tensor]]


def as_numbers(objective: Objective, prediction: Tree, batch: Batch) -> Numbers:
    """Predicted and true numbers (n, d) in the unit of the metrics, by the name of the target if there are several.

    Empty if the objective predicts none. Ratings are clipped to their scale; of levels, the number is the mean.

    Example:
        >>> import torch
        >>> from kshot.objectives import in_units
        >>> batch = Batch.of(torch.zeros(1, 1), torch.tensor([[2.0]]))
        >>> as_numbers(in_units([10.0], ["price"]), torch.tensor([[1.0]]), batch)
        {'': (tensor([[10.]]), tensor([[20.]]))}
    """
    metrics, targets = objective.metrics, batch.targets
    if isinstance(metrics, LevelMetrics) and len(metrics.values) > 2:
        values = prediction.new_tensor(metrics.values)[:, None]
        return {"": (prediction.softmax(-1) @ values, targets.to(prediction.dtype) @ values)}
    if objective.predicts == "distribution":
        return {"": (prediction["mean"], targets)}
    if objective.predicts != "values":
        return {}
    if isinstance(metrics, RatingMetrics):
        predicted, truth = (metrics.mean + metrics.std * values for values in (prediction, targets))
        return {"": (predicted.clamp(metrics.low, metrics.high), truth)}
    if isinstance(metrics, InUnits):
        several = len(metrics.names) > 1
        return {
            name if several else "": (scale * prediction[:, [column]], scale * targets[:, [column]])
            for column, (scale, name) in enumerate(zip(metrics.scales, metrics.names))
        }
    unit = metrics.unit if isinstance(metrics, ScaledError) else 1.0
    return {"": (unit * prediction, unit * targets)}
