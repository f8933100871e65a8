"""Heads that solve a convex problem on the support set's features, and are differentiated at its solution.

Shape legend: N support rows, M query rows, D features, C classes or targets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import objectives
from kshot.annotations import PositiveFloat
from kshot.inner.convex import crammer_singer, logistic
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.protonet import Head, HeadLearner, added, log_parameter
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


def _with_ones(feat_ND: Tensor) -> Tensor:
    """Features with a column of ones, (N, D + 1), so that an intercept is a weight like the others."""
    return F.pad(feat_ND, (0, 1), value=1.0)


class Linear(Head):
    """A linear head with a learned scale; what it is fitted by is for subclasses to say.

    Its state is `{"weight": (C, D), "bias": (C,)}`. The intercept is the weight of a further feature that is always 1,
    and is penalised like the others.

    Args:
        l2: strength of the penalty on weights, above 0.
        scale: where the factor on predictions starts; None has none.
        learned: whether the strength is learned.
    """

    def __init__(self, l2: float, scale: float | None, *, learned: bool = True) -> None:
        super().__init__()
        self.log_l2 = log_parameter("l2", l2).requires_grad_(learned)
        self.log_scale = None if scale is None else log_parameter("scale", scale)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        prediction = F.linear(feat_MD, state["weight"], state["bias"])
        return prediction if self.log_scale is None else self.log_scale.exp() * prediction


class Ridge(Linear):
    """Ridge regression of the targets, see `ridge_fit`; arguments as of `Linear`."""

    scores_absent = True

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self._state(ridge_fit(_with_ones(feat_ND), target_NC, weight_N, self.log_l2.exp()))

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        """The sums that the solution depends on, of a size that does not grow with the examples."""
        feat_ND = _with_ones(feat_ND)
        weighted_DN = (weight_N[:, None] * feat_ND).mT
        return {"gram": weighted_DN @ feat_ND, "moment": (weighted_DN @ target_NC).mT}

    def merge(self, old: Tree, new: Tree) -> Tree:
        return added(old, new)

    def fit_statistics(self, memory: Tree) -> Tree:
        gram_DD = _ridged(memory["gram"], self.log_l2.exp())
        return self._state(torch.linalg.solve(gram_DD, memory["moment"].mT))

    def _state(self, weight_DC: Tensor) -> Tree:
        return {"weight": weight_DC[:-1].mT.contiguous(), "bias": weight_DC[-1]}


class _Dual(Linear):
    """What is solved for coefficients of the support rows, by `steps` of a `solver`."""

    solver: Callable[..., Tensor]
    steps: int

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        feat_ND = _with_ones(feat_ND)
        present_C = (target_NC * weight_N[:, None]).sum(0) > 0
        kernel_NN = feat_ND @ feat_ND.mT
        l2 = self.log_l2.exp()
        coefficient_NC = type(self).solver(kernel_NN, target_NC, weight_N, present_C, l2, steps=self.steps)
        weight_CD = coefficient_NC.mT @ feat_ND
        return {"weight": weight_CD[:, :-1].contiguous(), "bias": weight_CD[:, -1].contiguous()}


class Logistic(_Dual):
    """Multinomial logistic regression, see `inner.convex.logistic`; arguments as of `Linear`."""

    solver, steps = staticmethod(logistic), 15


class SupportVectors(_Dual):
    """A multi-class support vector machine, see `inner.convex.crammer_singer`; arguments as of `Linear`."""

    solver, steps = staticmethod(crammer_singer), 20


def r2d2(
    embedding: nn.Module,
    *,
    l2: PositiveFloat = 1.0,
    scale: PositiveFloat | None = 10.0,
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


def metaoptnet(
    embedding: nn.Module,
    *,
    base: Literal["svm", "ridge"] = "svm",
    l2: PositiveFloat | None = None,
    scale: PositiveFloat = 1.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""MetaOptNet: a support vector machine on learned features, differentiated at its solution; or a ridge.

    $$ \min_W \; \sum_i \max_c \bigl(W_c f_i - W_{y_i} f_i + [c \ne y_i]\bigr) + \tfrac\lambda2 \lVert W \rVert^2,
       \qquad \hat y = \gamma \, W f_\theta(x) $$

    Args:
        embedding: any module: inputs (n, ...) to features (n, ...).
        base: "svm" (Crammer and Singer's) or "ridge", which is `r2d2` with a $\lambda$ that is not learned.
        l2: $\lambda$; None is the paper's, 10 for "svm" (its C = 0.1) and 50 for "ridge".
        scale: $\gamma$, where it starts; it is learned.
        objective: what the tasks ask.
        batchnorm: "support" (inductive), "query" (transductive) or "running".

    Returns:
        A learner for any number of ways and shots. The quadratic program costs about $C N^3$ for N support rows of C
        classes, in float64.

    Raises:
        ValueError: another base, or numbers that are not above 0.

    Example:
        >>> learner = metaoptnet(nn.Flatten(), l2=1e-3)
        >>> support = kshot.Batch.of(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 1]), ways=2)
        >>> margin = learner.predict(learner.adapt(support), torch.tensor([[0.0], [2.0]])).diff()
        >>> margin.detach().round(decimals=2)
        tensor([[-1.],
                [ 1.]])

    References:
        Lee, Maji, Ravichandran, Soatto: Meta-Learning with Differentiable Convex Optimization, CVPR 2019,
        arXiv:1904.03758.

    Deviations:
        The authors' code adds 1 to the diagonal of the kernel; nothing is added here. An intercept is added, penalised
        like a weight. Label smoothing of the outer loss is left out.
    """
    known: dict[str, tuple[type[Linear], float]] = {"svm": (SupportVectors, 10.0), "ridge": (Ridge, 50.0)}
    if base not in known:
        raise ValueError(f"base must be one of {', '.join(known)}, got {base!r}")
    head, usual = known[base]
    return HeadLearner(
        embedding, head(usual if l2 is None else l2, scale, learned=False), objective, batchnorm=batchnorm
    )


def logistic_regression(
    embedding: nn.Module,
    *,
    l2: PositiveFloat = 1.0,
    scale: PositiveFloat | None = None,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""Logistic regression on learned features, at its minimum and differentiated there; $\lambda$ is learned too.

    $$ \min_W \; \sum_i \mathrm{CE}\bigl(\mathrm{softmax}(W f_\theta(x_i)), y_i\bigr)
       + \tfrac\lambda2 \lVert W \rVert^2 $$

    Args:
        embedding, objective, batchnorm: as in `r2d2`.
        l2: where $\lambda$ starts.
        scale: where a learned factor on the logits starts; None for none.

    Returns:
        A learner for any number of ways and shots. It costs about $C N^3$ for N support rows of C classes, in float64.

    Raises:
        ValueError: an `l2` or a scale that is not above 0.

    Example:
        >>> learner = logistic_regression(nn.Flatten())
        >>> support = kshot.Batch.of(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), ways=2)
        >>> learner.predict(learner.adapt(support), torch.tensor([[2.0]])).argmax(1)
        tensor([1])

    References:
        Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers, ICLR 2019,
        arXiv:1805.08136, section 3.4 (LR-D2).

    Deviations:
        Multinomial, where the paper's is binary; solved to convergence and differentiated implicitly, where the paper
        unrolls a few Newton steps.
    """
    return HeadLearner(embedding, Logistic(l2, scale), objective, batchnorm=batchnorm)
