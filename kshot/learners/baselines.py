"""Baselines that do no meta-learning. They stand beside every figure: a learner must beat them to be worth its cost.

Each is a `Learner`, so that it is evaluated on the same tasks by the same code.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from kshot import objectives
from kshot.annotations import NonNegativeInt, PositiveFloat
from kshot.inner.functional import BatchNorm
from kshot.inner.rules import SGD
from kshot.inner.solvers import FirstOrder
from kshot.learner import Learner
from kshot.learners.gradient.maml import GradientLearner, Rule, rule_of
from kshot.learners.heads.protonet import HeadLearner, Prototypes
from kshot.objectives import Objective
from kshot.types import Batch, Tree, tree_leaves


def from_scratch(
    model: nn.Module,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 50,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
    seed: int = 0,
) -> GradientLearner:
    r"""Fit the model to the support set alone, from fresh random weights.

    $$ \theta_{k+1} = \theta_k - \alpha \nabla L_{\text{support}}(\theta_k), \qquad \theta_0 \text{ random} $$

    Args:
        model: copied; the copy's layers draw new weights through their `reset_parameters`.
        inner_lr: $\alpha$.
        steps: gradient steps on the support set.
        objective: what the tasks ask.
        batchnorm: as in `maml`.
        seed: of the fresh weights, which all tasks share.

    Example:
        >>> learner = from_scratch(nn.Linear(1, 1), inner_lr=0.1, objective=objectives.mse)
        >>> sorted(learner.adapt(Batch.of(torch.ones(4, 1), torch.ones(4, 1)))["params"])
        ['bias', 'weight']
    """
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in fresh.modules():
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
    return GradientLearner(fresh, objective, FirstOrder(SGD(inner_lr), steps), batchnorm=batchnorm)


def fine_tune(
    model: nn.Module,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 50,
    rule: Rule = "sgd",
    head: str = "head",
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Fine-tune a pretrained model, all of it, on the support set.

    $$ \theta_{k+1} = \theta_k - \alpha \nabla L_{\text{support}}(\theta_k), \qquad \theta_0 \text{ pretrained} $$

    Args:
        model: pretrained; copied. For classification the module named `head` starts at zero, since its classes are new.
        inner_lr: $\alpha$.
        steps: gradient steps on the support set.
        rule: of the steps, "sgd" as above or "adam".
        head: the module that starts at zero, if the model has it.
        objective: what the tasks ask.
        batchnorm: as in `maml`.

    Example:
        >>> learner = fine_tune(nn.Linear(1, 1), inner_lr=0.1, objective=objectives.mse)
        >>> learner.transductive
        False

    References:
        Chen et al.: A Closer Look at Few-shot Classification, ICLR 2019, arXiv:1904.04232 ("Baseline").

    Deviations:
        The whole model is tuned, where the paper's baseline tunes the new layer only.
    """
    tuned = copy.deepcopy(model)
    part = dict(tuned.named_modules()).get(head)
    if part is not None and objective.task_specific_classes:
        for parameter in part.parameters():
            nn.init.zeros_(parameter)
    return GradientLearner(tuned, objective, FirstOrder(rule_of(rule, inner_lr), steps), batchnorm=batchnorm)


def nearest_centroid(objective: Objective = objectives.classification) -> HeadLearner:
    """Classify by the nearest class mean of the raw inputs, squared Euclidean distance; nothing is trained.

    Example:
        >>> learner = nearest_centroid()
        >>> support = Batch.of(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[1.0]])).argmax(1)
        tensor([0])
    """
    return HeadLearner(nn.Flatten(), Prototypes(), objective)


class SupportMean(Learner):
    r"""Predict the support targets' weighted mean, whatever the input: $\hat y = \sum_i w_i y_i / \sum_i w_i$.

    Where the tasks ask for a spread too (`objectives.gaussian`), it is the standard deviation of the support targets.

    Example:
        >>> learner = SupportMean(objectives.mse)
        >>> state = learner.adapt(Batch.of(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]])))
        >>> learner.predict(state, torch.zeros(1, 1))
        tensor([[2.]])
    """

    def _adapt(self, support: Batch) -> Tree:
        weight = support.weight / support.weight.sum()
        mean = torch.tensordot(weight, support.targets, 1)
        if self.objective != objectives.gaussian:
            return {"mean": mean}
        variance = torch.tensordot(weight, (support.targets - mean).square(), 1)
        return {"mean": mean, "std": variance.clamp_min(LEAST_VARIANCE).sqrt()}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        count = len(tree_leaves(inputs)[0])
        wide = {name: each.expand(count, *each.shape) for name, each in state.items()}
        return wide if "std" in wide else wide["mean"]


LEAST_VARIANCE = 1e-4  # of a spread told from one example
