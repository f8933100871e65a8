"""The meta-gradient of one step: the mean outer loss over a stack of tasks, and its gradient. Two ways, one result.

`loop` goes through the tasks one by one and frees each one's graph before the next: least memory, and the fastest for
convolutions on a CPU. `vmap` runs all tasks in one batched pass: the fastest for small dense models. Only this file
knows the difference.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from kshot.inner.explaining import differentiated
from kshot.learner import Learner
from kshot.types import Task, unstack

Mode = Literal["loop", "vmap"]


def meta_gradient(learner: Learner, tasks: Task, mode: Mode = "loop") -> Tensor:
    r"""Add $\nabla_\theta \frac1T \sum_t L_t(\theta)$ to the `.grad` of the learner's parameters.

    Args:
        learner: whose `forward` gives a task's outer loss.
        tasks: a stack of T tasks.
        mode: "loop" or "vmap".

    Returns:
        The mean loss over tasks, (), detached.

    Example:
        >>> from kshot.learners.gradient import maml
        >>> from kshot.objectives import mse
        >>> from kshot.tasks.synthetic import sinusoids
        >>> learner = maml(torch.nn.Linear(1, 1), inner_lr=0.01, objective=mse)
        >>> loss = meta_gradient(learner, sinusoids().stack("train", range(4)), mode="vmap")
        >>> learner.model.weight.grad.shape
        torch.Size([1, 1])
    """
    if mode == "vmap":
        with differentiated(learner, lambda: learner(unstack(tasks)[0])):
            loss = torch.vmap(learner, randomness="different")(tasks).mean()
            loss.backward()
        return loss.detach()
    if mode == "loop":
        each = unstack(tasks)
        total = tasks.support.weight.new_zeros(())
        for task in each:
            with differentiated(learner, lambda task=task: learner(task)):  # type: ignore[misc]
                loss = learner(task) / len(each)
                loss.backward()
            total += loss.detach()
        return total
    raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
