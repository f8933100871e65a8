"""What a task asks of a prediction: a loss to descend, and metrics that a person reads.

An `Objective` is all that a learner knows about the domain.

Shape legend: n examples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.types import Batch, Tree


class Objective(NamedTuple):
    """Loss and metrics of a kind of task.

    Attributes:
        loss: (prediction, batch) -> (); differentiable, rows of weight 0 have no effect.
        metrics: (prediction, batch) -> {name: ()}; what a person reads.
        own_classes: whether each task has classes of its own. A class without support examples is then none of the
            task's, and learners give it no probability.
    """

    loss: Callable[[Tree, Batch], Tensor]
    metrics: Callable[[Tree, Batch], dict[str, Tensor]]
    own_classes: bool = False


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    r"""$\sum_i w_i v_i / \sum_i w_i$ of values (n,) under weights (n,); 0 where all weights are."""
    return (values * weight).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


def classes_present(support: Batch) -> Tensor:
    """Which classes (C,) of a classification task have support examples; bool."""
    return (support.targets * support.weight[:, None]).sum(0) > 0


def only_present(logits: Tensor, present: Tensor) -> Tensor:
    """The logits (n, C), the lowest finite number where a class is not present: it gets no probability."""
    return torch.where(present, logits, torch.finfo(logits.dtype).min)


def _cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    _check_ways(logits, batch.targets)
    return weighted_mean(-(batch.targets * torch.log_softmax(logits, -1)).sum(-1), batch.weight)


def _accuracy(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    _check_ways(logits, batch.targets)
    hit = (logits.argmax(-1) == batch.targets.argmax(-1)).to(batch.weight.dtype)
    return {"accuracy": weighted_mean(hit, batch.weight)}


def _check_ways(logits: Tensor, targets: Tensor) -> None:
    if targets.ndim != 2:
        raise ValueError(
            f"targets must be one-hot (n, ways), got {tuple(targets.shape)}; pass class ids through one_hot()"
        )
    if logits.shape != targets.shape:
        raise ValueError(
            f"the model predicts {tuple(logits.shape)} but the targets are {tuple(targets.shape)} (n, ways): "
            "give its last layer as many outputs as the task has ways"
        )


def _squared_error(prediction: Tensor, batch: Batch) -> Tensor:
    if prediction.shape != batch.targets.shape:
        raise ValueError(
            f"the model predicts {tuple(prediction.shape)} but the targets are {tuple(batch.targets.shape)}; "
            "they must agree, or broadcasting would silently average over the wrong pairs"
        )
    return weighted_mean((prediction - batch.targets).square().flatten(1).mean(1), batch.weight)


mse = Objective(_squared_error, lambda prediction, batch: {"mse": _squared_error(prediction, batch)})
r"""Regression: $\frac{1}{\sum w} \sum_i w_i \lVert \hat y_i - y_i \rVert^2 / d$; prediction and targets (n, ...)."""

classification = Objective(_cross_entropy, _accuracy, own_classes=True)
r"""Classification, each task with classes of its own:
$-\frac{1}{\sum w} \sum_i w_i \sum_c y_{ic} \log \mathrm{softmax}(\hat y_i)_c$; logits (n, C),
one-hot or soft targets (n, C). Metric: accuracy, in 0 … 1."""

shared_classification = Objective(_cross_entropy, _accuracy)
"""As `classification`, with the same classes in all tasks, such as pass and fail: one may be missing from a support."""


def named(name: str) -> Objective:
    """The objective of this module that goes by a name.

    Raises:
        ValueError: there is none.

    Example:
        >>> named("mse") is mse
        True
    """
    found = globals().get(name)
    if not isinstance(found, Objective):
        known = [known for known, value in globals().items() if isinstance(value, Objective)]
        raise ValueError(f"there is no objective {name!r}; known are {', '.join(known)}")
    return found


def name_of(objective: Objective) -> str:
    """The name that an objective of this module goes by, so that a file can say it.

    Raises:
        ValueError: it is none of this module's.
    """
    for name, value in globals().items():
        if isinstance(value, Objective) and value == objective:
            return name
    raise ValueError("the objective is none of kshot.objectives, so no file can name it")
