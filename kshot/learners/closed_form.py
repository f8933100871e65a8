"""Heads that solve a convex problem on the support set's features, and are differentiated at its solution.

Shape legend: N support rows, M query rows, D features, C classes or targets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import objectives
from kshot.inner.functional import BatchNorm
from kshot.learners.heads import Head, HeadLearner, log_parameter
from kshot.objectives import Objective
from kshot.types import Tree


def ridge_fit(feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor, l2: Tensor) -> Tensor:
    r"""The weighted ridge regression of targets on features, (D, C):

    $$ W = (F^\top \mathrm{diag}(w) F + \lambda I)^{-1} F^\top \mathrm{diag}(w) Y
         = A^\top (A A^\top + \lambda I)^{-1} \sqrt w \odot Y, \qquad A = \sqrt w \odot F $$

    The second form (Woodbury) solves N equations in place of D, and is taken where N < D.

    Example:
        >>> feat, one = torch.tensor([[1.0], [2.0]]), torch.ones(2)
        >>> ridge_fit(feat, torch.tensor([[1.0], [2.0]]), one, torch.tensor(5.0))
        tensor([[0.5000]])
    """
    root_N1 = weight_N.sqrt()[:, None]
    feat_ND, target_NC = root_N1 * feat_ND, root_N1 * target_NC
    if len(feat_ND) < feat_ND.shape[1]:
        return feat_ND.mT @ torch.linalg.solve(_ridged(feat_ND @ feat_ND.mT, l2), target_NC)
    return torch.linalg.solve(_ridged(feat_ND.mT @ feat_ND, l2), feat_ND.mT @ target_NC)


def _ridged(square: Tensor, l2: Tensor) -> Tensor:
    return square + l2 * torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)


def with_ones(feat_ND: Tensor) -> Tensor:
    """Features with a column of ones, (N, D + 1), so that an intercept is a weight like the others."""
    return F.pad(feat_ND, (0, 1), value=1.0)


class Linear(Head):
    """A linear head with a learned scale; what it is fitted by is for subclasses to say.

    Its state is `{"weight": (C, D), "bias": (C,)}`.

    Args:
        scale: where the factor on predictions starts; None has none.
    """

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        self.log_scale = None if scale is None else log_parameter("scale", scale)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        prediction = F.linear(feat_MD, state["weight"], state["bias"])
        return prediction if self.log_scale is None else self.log_scale.exp() * prediction


class Ridge(Linear):
    r"""Ridge regression of the targets, the intercept a weight like the others (see `ridge_fit`).

    Args:
        l2: $\lambda > 0$, where it starts.
        scale: where the factor on predictions starts; None has none.
        learned: whether $\lambda$ is learned.
    """

    scores_absent = True

    def __init__(self, l2: float = 1.0, scale: float | None = None, *, learned: bool = True) -> None:
        super().__init__(scale)
        self.log_l2 = log_parameter("l2", l2).requires_grad_(learned)

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        weight_DC = ridge_fit(with_ones(feat_ND), target_NC, weight_N, self.log_l2.exp())
        return {"weight": weight_DC[:-1].mT.contiguous(), "bias": weight_DC[-1]}


def r2d2(
    embedding: nn.Module,
    *,
    l2: float = 1.0,
    scale: float | None = 10.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""R2-D2: ridge regression on learned features, in closed form; $\lambda$ and $\alpha$ are learned too.

    $$ W = F^\top (F F^\top + \lambda I)^{-1} Y, \qquad \hat y = \alpha \, f_\theta(x) W $$

    Args:
        embedding: any module: inputs (n, ...) to features (n, ...).
        l2: where $\lambda$ starts.
        scale: where $\alpha$ starts; None for none, as suits a regression.
        objective: what the tasks ask: classes, whose one-hot targets are regressed, or numbers.
        batchnorm: "support" (inductive), "query" (transductive) or "running".

    Returns:
        A learner for any number of ways and shots. It solves as many equations as there are support rows or features,
        whichever is less.

    Raises:
        ValueError: an `l2` or a scale that is not above 0.

    Example:
        >>> learner = r2d2(nn.Flatten(), l2=1e-6, scale=None, objective=objectives.mse)
        >>> support = kshot.Batch.of(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]]))
        >>> learner.predict(learner.adapt(support), torch.tensor([[2.0]]))
        tensor([[5.0000]], grad_fn=...)

    References:
        Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers, ICLR 2019,
        arXiv:1805.08136, sections 3.2 and 3.3.

    Deviations:
        No offset $\beta$ is added to all scores: it would change no probability. The scale starts at 10 rather than 1,
        so that training begins with probabilities that are not all alike.
    """
    return HeadLearner(embedding, Ridge(l2, scale), objective, batchnorm=batchnorm)
