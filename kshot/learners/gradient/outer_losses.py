"""Outer losses of gradient learners other than the query loss."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from kshot.annotations import Fraction
from kshot.argument_checks import check_arguments
from kshot.inner.solvers import InnerSolver
from kshot.objectives import Objective
from kshot.query_weight import query_weight
from kshot.types import Batch, Params, Task, Tree

TrainOn = Literal["support", "both"]
"""Examples that the inner loop of Reptile sees in meta-training."""


class StepwiseLearner(Protocol):
    """What these losses use of a learner: a solver's inner steps, and the state after each of them."""

    objective: Objective
    solver: InnerSolver
    progress: float

    def adapt(self, support: Batch) -> Tree: ...
    def trajectory(self, support: Batch) -> list[Tree]: ...
    def predict(self, state: Tree, inputs: Tree) -> Tree: ...
    def adaptable_params(self) -> Params: ...


class MultiStepLoss:
    r"""The query losses after every step, annealed to that after the last one:

    $$ \sum_{k=1}^{K} v_k L_{\text{query}}(\theta_k), \qquad v_{k<K} = \frac{1 - t}{K}, \quad
       v_K = 1 - \frac{(K - 1)(1 - t)}{K}, \quad t = \min\Bigl(1, \frac{\text{progress}}{\text{until}}\Bigr) $$

    Args:
        until: fraction of meta-training, from 0 to 1, over which the losses of earlier steps fade.

    References:
        Antoniou, Edwards, Storkey: How to train your MAML, arXiv:1810.09502, section 4 (MSL).
    """

    @check_arguments
    def __init__(self, until: Fraction) -> None:
        self.until = until

    def weights(self, steps: int, progress: float) -> list[float]:
        """$v_1 … v_K$ at a progress from 0 to 1."""
        early = 0.0 if progress >= self.until else (1 - progress / self.until) / steps
        return [early] * (steps - 1) + [1 - early * (steps - 1)]

    def __call__(self, learner: StepwiseLearner, task: Task) -> Tensor:
        weights = self.weights(max(learner.solver.steps, 1), learner.progress)
        if weights[0] == 0.0 or len(weights) == 1:
            return _query_loss(learner, learner.adapt(task.support), task)
        losses = [_query_loss(learner, state, task) for state in learner.trajectory(task.support)[1:]]
        return sum(weight * loss for weight, loss in zip(weights, losses))  # type: ignore[return-value]


class ReptileLoss:
    r"""A loss whose gradient is Reptile's, $\theta_0 - \theta_K$, and whose value is the query loss.

    $$ \tfrac12 \lVert \theta_0 - \operatorname{sg}(\theta_K) \rVert^2 + \operatorname{const} $$

    Args:
        train_on: "both" adapts to support and query together in meta-training, "support" to the support set alone.
    """

    @check_arguments
    def __init__(self, train_on: TrainOn) -> None:
        self.train_on = train_on

    def __call__(self, learner: StepwiseLearner, task: Task) -> Tensor:
        examples = task.support
        if self.train_on == "both":
            examples = Batch(*tree_map(lambda a, b: torch.cat([a, b]), tuple(task.support), tuple(task.query)))
        state = learner.adapt(examples)
        initial = learner.adaptable_params()
        squares = [(value - state["params"][name].detach()).square().sum() for name, value in initial.items()]
        half = 0.5 * torch.stack(squares).sum()
        with torch.no_grad():
            value = _query_loss(learner, state, task)
        return value.detach() + half - half.detach()


def _query_loss(learner: StepwiseLearner, state: Tree, task: Task) -> Tensor:
    with query_weight(task.query.weight):
        prediction = learner.predict(state, task.query.inputs)
    return learner.objective.loss(prediction, task.query)
