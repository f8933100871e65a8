"""The objective of a task: a loss to minimise and metrics to report.

Shape legend: n examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kshot.objectives.outputs import in_float32, scored_part
from kshot.types import Batch, Task, Tree


def _same(targets: Any) -> Any:
    return targets


class Objective(NamedTuple):
    """Loss and metrics of a kind of task: all that a learner knows about the domain.

    Attributes:
        loss, metrics: (prediction, batch) -> (), differentiable, and {name: ()}. Rows of weight 0 have no effect.
        task_specific_classes: True if the classes differ from task to task. A class without support examples then does
            not belong to the task, and learners give it probability 0.
        as_prediction: targets -> the prediction, in the form that `loss` and `metrics` take, that is certain of them.
        predicts: what a prediction is: logits of classes (n, C), one of which is true; logits of labels (n, C), any
            number of which are true; values of the targets' shape; the mean and standard deviation of a normal
            distribution; logits of tokens (n, L, V); or logits of the pixels of masks (n, K, h, w). None if it is
            something else.
        check_targets: raises ValueError if the shape or dtype of targets does not suit the loss. It reads no values,
            so it also runs under `vmap` and in compiled code.
        check_values: raises ValueError if values of a batch's targets do not suit the loss, in rows of positive weight.
            `Learner.adapt` calls it where reading values costs nothing: on a CPU, outside `vmap` and compiled code.
            `fit` and `evaluate` call it for each task before they move it to an accelerator.
        name: as in `from_name`; None if files cannot refer to the objective.
    """

    loss: Callable[[Tree, Batch], Tensor]
    metrics: Callable[[Tree, Batch], dict[str, Tensor]]
    task_specific_classes: bool = False
    as_prediction: Callable[[Tree], Tree] = _same
    predicts: Literal["classes", "labels", "values", "distribution", "tokens", "masks"] | None = None
    check_targets: Callable[[Tree], object] = _same
    check_values: Callable[[Batch], object] = _same
    name: str | None = None

    @property
    def classifies(self) -> bool:
        """Whether the targets are classes, of each task or shared by all tasks."""
        return self.task_specific_classes or self.predicts == "classes"

    def scored(self, output: Any) -> Tree:
        """The part of a model's output that is scored: the output itself if it is a tensor.

        Of a mapping (such as the `ModelOutput` of `transformers`), a dataclass or a NamedTuple it is the field
        "logits"; for a normal distribution the fields "mean" and "std". An objective that does not declare what it
        `predicts` scores the output as it is. Under `torch.autocast` it is in at least float32.

        Raises:
            ValueError: another output of several parts; `models.select` says which part is scored.

        Example:
            >>> from kshot.objectives import classification
            >>> classification.scored({"loss": None, "logits": torch.zeros(2, 3)}).shape
            torch.Size([2, 3])
        """
        if isinstance(output, Tensor) or self.predicts is None:
            return in_float32(output)
        return in_float32(scored_part(output, distribution=self.predicts == "distribution"))


def check_task_values(objective: Objective, task: Task) -> None:
    """Check the values of the targets of a task, or of a stack of tasks; the error says in which set they are."""
    for name, batch in zip(Task._fields, task):
        try:
            objective.check_values(batch)
        except ValueError as error:
            raise ValueError(f"{name} set: {error}") from None


def refuse_parts(objective: Objective, learner: str) -> None:
    """Raise ValueError if targets are multi-hot or masks, for a learner that needs one class for each example."""
    if objective.predicts in ("labels", "masks"):
        what = "any number of labels" if objective.predicts == "labels" else "a class for each pixel"
        raise ValueError(
            f"{learner} expects one class for each example, and {objective.name or 'this objective'} has {what}: use a "
            "head that fits each of them, as protonet, r2d2 and logistic_regression have, or a learner that adapts a "
            "model by gradient steps, such as maml, anil or fine_tune"
        )


def name_with_options(name: str, options: Mapping[str, Any]) -> str:
    """The name of an objective that a function returns for these options: 'forecast {"season": 24, "unit": 1.0}'."""
    return f"{name} {json.dumps(dict(options))}"


CERTAIN_LOGIT = 100.0
"""The logit of a certain event, which leaves a probability of e^-100 to anything else."""


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    r"""$\sum_i w_i v_i / \sum_i w_i$ of values (n,) under weights (n,); 0 if all weights are 0."""
    return (values * weight).sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
