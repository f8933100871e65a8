"""The objective of a task: a loss to minimise and metrics to report.

Shape legend: n examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kshot.types import Batch, Tree


def _same(targets: Tree) -> Tree:
    return targets


class Objective(NamedTuple):
    """Loss and metrics of a kind of task: all that a learner knows about the domain.

    Attributes:
        loss, metrics: (prediction, batch) -> (), differentiable, and {name: ()}. Rows of weight 0 have no effect.
        task_specific_classes: True if the classes differ from task to task. A class without support examples then does
            not belong to the task, and learners give it probability 0.
        as_prediction: targets -> the prediction, in the form that `loss` and `metrics` take, that is certain of them.
        predicts: what a prediction is: logits of classes (n, C), values of the targets' shape, the mean and standard
            deviation of a normal distribution, or logits of tokens (n, L, V); None if it is something else.
        check_targets: raises ValueError if the shape or dtype of targets does not suit the loss. It reads no values,
            so it also runs under `vmap` and in compiled code.
        name: as in `from_name`; None if files cannot refer to the objective.
    """

    loss: Callable[[Tree, Batch], Tensor]
    metrics: Callable[[Tree, Batch], dict[str, Tensor]]
    task_specific_classes: bool = False
    as_prediction: Callable[[Tree], Tree] = _same
    predicts: Literal["classes", "values", "distribution", "tokens"] | None = None
    check_targets: Callable[[Tree], object] = _same
    name: str | None = None

    @property
    def classifies(self) -> bool:
        """Whether the targets are classes, of each task or shared by all tasks."""
        return self.task_specific_classes or self.predicts == "classes"


def name_with_options(name: str, options: Mapping[str, Any]) -> str:
    """The name of an objective that a function returns for these options: 'forecast {"season": 24, "unit": 1.0}'."""
    return f"{name} {json.dumps(dict(options))}"


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    r"""$\sum_i w_i v_i / \sum_i w_i$ of values (n,) under weights (n,); 0 if all weights are 0."""
    return (values * weight).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
