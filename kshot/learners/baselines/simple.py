"""Baselines without meta-learning: a learner must beat them to be worth its cost, and reports show them next to it.

Each is a `Learner`, so that the same code evaluates it on the same tasks.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from kshot import objectives
from kshot.annotations import NonNegativeInt, PositiveFloat
from kshot.inner.functional import BatchNorm
from kshot.inner.precision import at_least_float32
from kshot.inner.rules import SGD
from kshot.inner.solvers import FirstOrder
from kshot.learner import Learner
from kshot.learners.gradient.gradient_learner import GradientLearner, Rule, make_rule
from kshot.learners.heads.head_learner import HeadLearner
from kshot.learners.heads.protonet import Prototypes
from kshot.objectives import Objective
from kshot.supplied import Seed
from kshot.types import Batch, Tree, tree_leaves


def from_scratch(
    model: nn.Module,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 50,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
    seed: Seed = 0,
) -> GradientLearner:
    r"""Fit the model to the support set alone, from random weights.

    $$ \theta_{k+1} = \theta_k - \alpha \nabla L_{\text{support}}(\theta_k), \qquad \theta_0 \text{ random} $$

    Args:
        model: copied; the copy's layers draw new weights by their `reset_parameters`.
        inner_lr, steps, objective, batchnorm: as in `maml`.
        seed: random seed of the weights, which are the same in all tasks.

    Example:
        >>> learner = from_scratch(nn.Linear(1, 1), inner_lr=0.1, objective=objectives.mse)
        >>> sorted(learner.adapt(Batch.of(torch.ones(4, 1), torch.ones(4, 1)))["params"])
        ['bias', 'weight']
    """
    fresh = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
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
    r"""Fine-tune all parameters of a pretrained model on the support set.

    $$ \theta_{k+1} = \theta_k - \alpha \nabla L_{\text{support}}(\theta_k), \qquad \theta_0 \text{ pretrained} $$

    Args:
        model: pretrained; copied.
        inner_lr, steps, objective, batchnorm: as in `maml`.
        rule: update rule of the steps, "sgd" as above or "adam".
        head: qualified name of the submodule that starts at zero if classes are task-specific, since then its classes
            are new; no effect if the model has no such submodule.

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
    module = dict(tuned.named_modules()).get(head)
    if module is not None and objective.task_specific_classes:
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
    return GradientLearner(tuned, objective, FirstOrder(make_rule(rule, inner_lr), steps), batchnorm=batchnorm)


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

    For `objectives.gaussian` the standard deviation of the support targets is predicted too; for objectives of labels
    (`predicts="labels"`) the log-odds of each label, $\log \frac{w_c + 1/2}{\sum_i w_i - w_c + 1/2}$ with
    $w_c = \sum_i w_i y_{ic}$.

    Example:
        >>> learner = SupportMean(objectives.mse)
        >>> state = learner.adapt(Batch.of(torch.zeros(2, 1), torch.tensor([[1.0], [3.0]])))
        >>> learner.predict(state, torch.zeros(1, 1))
        tensor([[2.]])
    """

    def _adapt(self, support: Batch) -> Tree:
        targets = at_least_float32(support.targets)
        if self.objective.predicts == "labels":
            true = support.weight.to(targets.dtype) @ targets
            return {"mean": (true + 0.5).log() - (support.weight.sum() - true + 0.5).log()}
        weight = (support.weight / support.weight.sum()).to(targets.dtype)
        mean = torch.tensordot(weight, targets, 1)
        if self.objective != objectives.gaussian:
            return {"mean": mean}
        variance = torch.tensordot(weight, (targets - mean).square(), 1)
        return {"mean": mean, "std": variance.clamp_min(MIN_VARIANCE).sqrt()}

    def predict(self, state: Tree, inputs: Tree) -> Tree:
        count = len(tree_leaves(inputs)[0])
        prediction = {name: leaf.expand(count, *leaf.shape) for name, leaf in state.items()}
        return prediction if "std" in prediction else prediction["mean"]


MIN_VARIANCE = 1e-4  # for a support set of one example
