"""MAML for any number of ways: each task gets a classification head of its own, which adapts with the rest.

Shape legend: n examples, D features, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import DerivativeOrder, NonNegativeInt, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.functional import BatchNorm, Function
from kshot.inner.per_parameter import Pattern
from kshot.inner.precision import without_autocast
from kshot.inner.rules import SGD
from kshot.inner.solvers import InnerSolver
from kshot.learners.gradient.gradient_learner import GradientLearner, HeadInit, make_solver
from kshot.learners.heads.distances import class_means
from kshot.objectives import Objective
from kshot.objectives.outputs import in_float32, the_tensor
from kshot.supplied import Embedding, FeatureCount
from kshot.types import Batch, Params, Tree


class Headed(nn.Module):
    """An embedding and a linear head, whose weight (C, D) and bias (C,) belong to a task and not to the module.

    Args:
        embedding: inputs (n, ...) to features (n, ...), flattened to (n, D).
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.register_buffer("weight", torch.empty(0, 0), persistent=False)
        self.register_buffer("bias", torch.empty(0), persistent=False)

    def forward(self, *inputs: Tree, **named: Tree) -> Tensor:
        return F.linear(
            the_tensor(self.embedding(*inputs, **named), "holds the features").flatten(1), self.weight, self.bias
        )


class PrototypeInit(HeadInit):
    r"""The head that classifies by squared distance to class means: $W_c = 2 p_c$, $b_c = -\lVert p_c \rVert^2$."""

    def forward(self, function: Function, support: Batch) -> Params:
        output, _ = function.of("embedding").support({}, support)
        features = in_float32(the_tensor(output, "holds the features")).flatten(1)
        with without_autocast(features.device):
            proto_CD = class_means(features, support.targets, support.weight)
        return {"weight": 2 * proto_CD, "bias": -proto_CD.square().sum(1)}


class SharedInit(HeadInit):
    """One meta-learned vector as initial weight of every class; the bias starts at 0.

    Args:
        features: D, width of the embedding's output.
    """

    @check_arguments
    def __init__(self, features: PositiveInt) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(features))
        nn.init.normal_(self.vector, std=features**-0.5)

    def forward(self, function: Function, support: Batch) -> Params:
        ways = support.targets.shape[1]
        return {"weight": self.vector.repeat(ways, 1), "bias": self.vector.new_zeros(ways)}


def proto_maml(
    embedding: Embedding,
    *,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 5,
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""Proto-MAML: MAML whose head starts, in each task, as the prototypical network's classifier.

    $$ W_c = 2 p_c, \quad b_c = -\lVert p_c \rVert^2, \quad p_c = \text{mean of } f_\theta \text{ over the support of }
       c; \qquad (\theta, W, b) \leftarrow (\theta, W, b) - \alpha \nabla L_{\text{support}} $$

    The meta-gradient runs through the prototypes too.

    Args:
        embedding: any module: inputs (n, ...) to features (n, ...).
        inner_lr, steps, order, objective, batchnorm: as in `maml`.
        adaptable: parameters of the embedding that adapt; the head always does.

    Example:
        >>> learner = proto_maml(nn.Linear(1, 4), inner_lr=0.1)
        >>> support = Batch.of(torch.tensor([[0.0], [4.0], [8.0]]), torch.tensor([0, 1, 2]), ways=3)
        >>> learner.adapt(support)["params"]["weight"].shape
        torch.Size([3, 4])

    References:
        Triantafillou et al.: Meta-Dataset, ICLR 2020, arXiv:1903.03096, section 3.

    Deviations:
        Exact by default, where the paper's results are of the first-order variant (`order=1`), whose BatchNorm
        parameters do not adapt. The number of steps is the same in training and evaluation.
    """
    solver = make_solver(order, SGD(inner_lr), steps)
    return _with_head(embedding, objective, solver, adaptable, batchnorm, PrototypeInit())


def unicorn_maml(
    embedding: Embedding,
    *,
    features: FeatureCount,
    inner_lr: PositiveFloat,
    steps: NonNegativeInt = 5,
    order: DerivativeOrder = 2,
    objective: Objective = objectives.classification,
    adaptable: Pattern = "*",
    batchnorm: BatchNorm = "support",
) -> GradientLearner:
    r"""UNICORN-MAML: MAML whose head has one meta-learned vector as initial weight of all classes.

    $$ W_c = w \text{ for each class } c; \qquad
       (\theta, W, b) \leftarrow (\theta, W, b) - \alpha \nabla L_{\text{support}} $$

    The order of the classes therefore has no effect.

    Args:
        embedding, inner_lr, steps, order, objective, adaptable, batchnorm: as in `proto_maml`.
        features: D, width of the embedding's output.

    Example:
        >>> learner = unicorn_maml(nn.Linear(1, 4), features=4, inner_lr=0.1)
        >>> support = Batch.of(torch.tensor([[0.0], [4.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.adapt(support)["params"]["weight"].shape
        torch.Size([2, 4])

    References:
        Ye, Chao: How to Train Your MAML to Excel in Few-Shot Classification, ICLR 2022, arXiv:2106.16245.

    Deviations:
        The bias starts at 0 and is not learned: one that all classes share would have no effect. Exact by default,
        where the authors' code is first-order (`order=1`); it also divides the logits of queries by a temperature.
    """
    solver = make_solver(order, SGD(inner_lr), steps)
    return _with_head(embedding, objective, solver, adaptable, batchnorm, SharedInit(features))


def _with_head(
    embedding: nn.Module,
    objective: Objective,
    solver: InnerSolver,
    adaptable: Pattern,
    batchnorm: BatchNorm,
    init: HeadInit,
) -> GradientLearner:
    patterns = [adaptable] if isinstance(adaptable, str) else list(adaptable)
    patterns = [f"!embedding.{p[1:]}" if p.startswith("!") else f"embedding.{p}" for p in patterns]
    init.to(next(embedding.parameters()))
    model = Headed(embedding)
    return GradientLearner(model, objective, solver, adaptable=patterns, batchnorm=batchnorm, head_init=init)
