"""Outer losses of a gradient learner: what its adaptation is judged by while it is meta-trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from kshot.learner import Learner
from kshot.types import Batch, Task

if TYPE_CHECKING:
    from kshot.learners.gradient.maml import GradientLearner

Outer = Callable[["GradientLearner", Task], Tensor]
"""(learner, task) -> (), the loss that meta-training descends."""

TrainOn = Literal["support", "both"]


def query_loss(learner: Learner, task: Task) -> Tensor:
    r"""The query loss after adapting, $L_{\text{query}}(\theta_K)$."""
    return learner.objective.loss(learner.predict(learner.adapt(task.support), task.query.inputs), task.query)


class MultiStepLoss:
    r"""The query losses after every step, annealed to that after the last one:

    $$ \sum_{k=1}^{K} v_k L_{\text{query}}(\theta_k), \qquad v_{k<K} = \frac{1 - t}{K}, \quad
       v_K = 1 - \frac{(K - 1)(1 - t)}{K}, \quad t = \min\Bigl(1, \frac{\text{progress}}{\text{until}}\Bigr) $$

    Args:
        until: the part of meta-training, from 0 to 1, over which it is annealed.

    References:
        Antoniou, Edwards, Storkey: How to train your MAML, arXiv:1810.09502, section 4 (MSL).
    """

    def __init__(self, until: float) -> None:
        if not 0 <= until <= 1:
            raise ValueError(f"until must be a part of the training, from 0 to 1, got {until}")
        self.until = until

    def weights(self, steps: int, progress: float) -> list[float]:
        """$v_1 … v_K$ at a progress from 0 to 1."""
        early = 0.0 if progress >= self.until else (1 - progress / self.until) / steps
        return [early] * (steps - 1) + [1 - early * (steps - 1)]

    def __call__(self, learner: GradientLearner, task: Task) -> Tensor:
        weights = self.weights(max(learner.solver.steps, 1), learner.progress)
        if weights[0] == 0.0 or len(weights) == 1:
            return query_loss(learner, task)
        states = learner.trajectory(task.support)[1:]
        losses = [learner.objective.loss(learner.predict(state, task.query.inputs), task.query) for state in states]
        return sum(weight * loss for weight, loss in zip(weights, losses))  # type: ignore[return-value]


class ReptileLoss:
    r"""A loss whose gradient is Reptile's, $\theta_0 - \theta_K$, and whose value is the query loss.

    $$ \tfrac12 \lVert \theta_0 - \operatorname{sg}(\theta_K) \rVert^2 + \operatorname{const} $$

    Args:
        train_on: "both" adapts to support and query together while training; "support" to the support alone.
    """

    def __init__(self, train_on: TrainOn) -> None:
        if train_on not in get_args(TrainOn):
            raise ValueError(f"train_on must be one of {', '.join(get_args(TrainOn))}, got {train_on!r}")
        self.train_on = train_on

    def __call__(self, learner: GradientLearner, task: Task) -> Tensor:
        examples = task.support
        if self.train_on == "both":
            examples = Batch(*tree_map(lambda a, b: torch.cat([a, b]), tuple(task.support), tuple(task.query)))
        state = learner.adapt(examples)
        start = learner.adaptable_params()
        away = [(value - state["params"][name].detach()).square().sum() for name, value in start.items()]
        half = 0.5 * torch.stack(away).sum()
        with torch.no_grad():
            value = learner.objective.loss(learner.predict(state, task.query.inputs), task.query)
        return value.detach() + half - half.detach()
