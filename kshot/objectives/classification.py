"""Classification: cross-entropy and accuracy.

Shape legend: n examples, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kshot.objectives.base import Objective, weighted_mean
from kshot.types import Batch


def classes_present(support: Batch) -> Tensor:
    """Mask (C,), bool, of the classes of a classification task that have support examples."""
    return (support.targets * support.weight[:, None]).sum(0) > 0


def only_present(logits: Tensor, present: Tensor) -> Tensor:
    """Logits (n, C) with the lowest finite number at the classes outside the mask `present` (C,): probability 0."""
    return torch.where(present, logits, torch.finfo(logits.dtype).min)


def check_one_hot(targets: Tensor) -> None:
    """Raise ValueError unless the targets have the shape and dtype of one-hot rows, floating point (n, ways)."""
    if targets.ndim != 2 or not targets.is_floating_point():
        raise ValueError(
            f"targets must be one-hot (n, ways), got {str(targets.dtype).removeprefix('torch.')} "
            f"{tuple(targets.shape)}; pass class ids through one_hot() or Batch.of(..., ways=...)"
        )


def check_logits(logits: Tensor, targets: Tensor) -> None:
    """Raise ValueError unless logits and one-hot targets are both (n, ways)."""
    check_one_hot(targets)
    if logits.shape != targets.shape:
        raise ValueError(
            f"the model predicts {tuple(logits.shape)} but the targets are {tuple(targets.shape)} (n, ways): "
            "give its last layer as many outputs as the task has ways"
        )


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Weighted mean cross-entropy (), in nats, of logits (n, C)."""
    check_logits(logits, batch.targets)
    return weighted_mean(-(batch.targets * torch.log_softmax(logits, -1)).sum(-1), batch.weight)


def _accuracy(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    check_logits(logits, batch.targets)
    correct = (logits.argmax(-1) == batch.targets.argmax(-1)).to(batch.weight.dtype)
    return {"accuracy": weighted_mean(correct, batch.weight)}


classification = Objective(
    cross_entropy,
    _accuracy,
    task_specific_classes=True,
    predicts="classes",
    check_targets=check_one_hot,
    name="classification",
)
r"""Classification where the classes differ from task to task:
$-\frac{1}{\sum w} \sum_i w_i \sum_c y_{ic} \log \mathrm{softmax}(\hat y_i)_c$; logits (n, C),
one-hot or soft targets (n, C). Metric: accuracy, in 0 … 1."""

shared_classification = classification._replace(task_specific_classes=False, name="shared_classification")
"""As `classification`, with the same classes in all tasks, such as pass and fail; a support set may lack one."""
