"""Heads that solve a convex problem on the support set's features, and are differentiated at its solution.

Shape legend: N support rows, M query rows, D features, C classes or targets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot import objectives
from kshot.annotations import PositiveFloat
from kshot.argument_checks import check_arguments
from kshot.inner.convex import crammer_singer, logistic
from kshot.inner.functional import BatchNorm
from kshot.learners.heads.distances import log_parameter
from kshot.learners.heads.head_learner import Head, HeadLearner, sum_by_class
from kshot.objectives import Objective
from kshot.supplied import Embedding
from kshot.types import Tree


def solve_ridge(feat_ND: Tensor, target_NC: Tensor, l2: Tensor) -> Tensor:
    r"""Ridge regression of targets (..., N, C) on features (..., N, D), for $\lambda$ (...,): (..., D, C).

    $$ W = (F^\top F + \lambda I)^{-1} F^\top Y = F^\top (F F^\top + \lambda I)^{-1} Y $$

    The second form (Woodbury) solves N equations instead of D, and is taken where N < D.
    """
    if feat_ND.shape[-2] < feat_ND.shape[-1]:
        return feat_ND.mT @ torch.linalg.solve(_add_ridge(feat_ND @ feat_ND.mT, l2), target_NC)
    return torch.linalg.solve(_add_ridge(feat_ND.mT @ feat_ND, l2), feat_ND.mT @ target_NC)


def ridge_fit(feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor, l2: Tensor) -> Tensor:
    r"""The weighted ridge regression of targets on features, (D, C); see `solve_ridge`.

    $$ W = (F^\top \mathrm{diag}(w) F + \lambda I)^{-1} F^\top \mathrm{diag}(w) Y $$

    Example:
        >>> feat, one = torch.tensor([[1.0], [2.0]]), torch.ones(2)
        >>> ridge_fit(feat, torch.tensor([[1.0], [2.0]]), one, torch.tensor(5.0))
        tensor([[0.5000]])
    """
    root_N1 = weight_N.sqrt()[:, None]
    return solve_ridge(root_N1 * feat_ND, root_N1 * target_NC, l2)


def _add_ridge(square: Tensor, l2: Tensor) -> Tensor:
    return square + l2[..., None, None] * torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)


def _with_ones(feat_ND: Tensor) -> Tensor:
    """Features with a column of ones, (N, D + 1), so that an intercept is a weight like the others."""
    return F.pad(feat_ND, (0, 1), value=1.0)


class Linear(Head):
    """A linear head with a learned scale; subclasses define how it is fitted.

    Its state is `{"weight": (C, D), "bias": (C,)}`. The intercept is the weight of a further feature that is always 1,
    and is penalised like the others.

    Args:
        l2: strength of the penalty on weights, above 0.
        scale: initial value of the factor on predictions; None for no factor.
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
    """Ridge regression of the targets, see `ridge_fit`; arguments as for `Linear`."""

    scores_absent = True

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        return self._state(ridge_fit(_with_ones(feat_ND), target_NC, weight_N, self.log_l2.exp()))

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        """The sums that determine the solution; their size does not grow with the number of examples."""
        feat_ND = _with_ones(feat_ND)
        weighted_DN = (weight_N[:, None] * feat_ND).mT
        return {"gram": weighted_DN @ feat_ND, "moment": (weighted_DN @ target_NC).mT}

    def merge(self, old: Tree, new: Tree) -> Tree:
        return sum_by_class(old, new)

    def fit_statistics(self, statistics: Tree) -> Tree:
        gram_DD = _add_ridge(statistics["gram"], self.log_l2.exp())
        return self._state(torch.linalg.solve(gram_DD, statistics["moment"].mT))

    def _state(self, weight_DC: Tensor) -> Tree:
        return {"weight": weight_DC[:-1].mT.contiguous(), "bias": weight_DC[-1]}


class DualLinear(Linear):
    """A linear head that is fitted by a solver for coefficients of the support rows; other arguments as for `Linear`.

    Args:
        solver: (kernel (N, N), targets (N, C), weights (N,), classes present (C,), l2 ()) -> coefficients (N, C).
    """

    def __init__(self, solver: Callable[..., Tensor], l2: float, scale: float | None, *, learned: bool = True) -> None:
        super().__init__(l2, scale, learned=learned)
        self.solver = solver

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        feat_ND = _with_ones(feat_ND)
        present_C = (target_NC * weight_N[:, None]).sum(0) > 0
        kernel_NN = feat_ND @ feat_ND.mT
        coefficient_NC = self.solver(kernel_NN, target_NC, weight_N, present_C, self.log_l2.exp())
        weight_CD = coefficient_NC.mT @ feat_ND
        return {"weight": weight_CD[:, :-1].contiguous(), "bias": weight_CD[:, -1].contiguous()}


def r2d2(
    embedding: Embedding,
    *,
    l2: PositiveFloat = 1.0,
    scale: PositiveFloat | None = 10.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""R2-D2: ridge regression on learned features, in closed form; $\lambda$ and $\alpha$ are learned too.

    $$ W = F^\top (F F^\top + \lambda I)^{-1} Y, \qquad \hat y = \alpha \, [f_\theta(x), 1] W $$

    for the rows $[f_\theta(x_i), 1]$ of F; the 1 makes the intercept a weight.

    Args:
        embedding, batchnorm: as in `protonet`.
        l2: initial value of $\lambda$.
        scale: initial value of $\alpha$; None for no factor, as suits a regression.
        objective: classification, by regression of the one-hot targets, or a regression.

    Returns:
        A learner for any number of ways and shots. It solves as many equations as there are support rows or features,
        whichever is less.

    Example:
        >>> learner = r2d2(nn.Flatten(), l2=1e-6, scale=None, objective=objectives.mse)
        >>> support = kshot.Batch.of(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [3.0]]))
        >>> learner.predict(learner.adapt(support), torch.tensor([[2.0]]))
        tensor([[5.0000]], grad_fn=...)

    References:
        Bertinetto, Henriques, Torr, Vedaldi: Meta-learning with differentiable closed-form solvers, ICLR 2019,
        arXiv:1805.08136, sections 3.2 and 3.3.

    Deviations:
        No offset $\beta$ is added to all scores: it would change no probability. The authors' code divides F and Y by
        the root of the number N of support rows, so that its $\lambda$ is this one's divided by N; in its run files
        $\lambda$ is fixed at 50, where it is learned in the paper and here, and $\alpha$ starts at $10^{-4}$ for
        miniImageNet and at 10 for CIFAR-FS. $\lambda$ and $\alpha$ are learned by their logarithms.
    """
    return HeadLearner(embedding, Ridge(l2, scale), objective, batchnorm=batchnorm)


@check_arguments
def metaoptnet(
    embedding: Embedding,
    *,
    base: Literal["svm", "ridge"] = "svm",
    l2: PositiveFloat | None = None,
    scale: PositiveFloat = 1.0,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""MetaOptNet: a support vector machine on learned features, differentiated at its solution; or a ridge.

    $$ \min_W \; \sum_i \max_c \bigl(W_c f_i - W_{y_i} f_i + [c \ne y_i]\bigr) + \tfrac\lambda2 \lVert W \rVert^2,
       \qquad \hat y = \gamma \, W f, \qquad f = [f_\theta(x), 1] $$

    Args:
        embedding, objective, batchnorm: as in `protonet`.
        base: "svm" (Crammer and Singer's) or "ridge", which is `r2d2` with a $\lambda$ that is not learned.
        l2: $\lambda$; None for the paper's, 10 for "svm" (its C = 0.1) and 50 for "ridge".
        scale: initial value of $\gamma$, which is learned.

    Returns:
        A learner for any number of ways and shots. The quadratic program costs about $C N^3$ for N support rows of C
        classes, in float64.

    Raises:
        ValueError: an unknown base.

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
        The authors' code adds 1 to the diagonal of the kernel of "svm"; nothing is added here. Its solution of "ridge"
        is twice the ridge regression, since its quadratic program has $-2Y$ for $-Y$: pass `scale=2` to start from it.
        An intercept is added, penalised like a weight. Label smoothing of the outer loss, by 0.1, is omitted.
        $\gamma$ is learned by its logarithm.
    """
    if base == "svm":
        solver = partial(crammer_singer, steps=20)
        head: Linear = DualLinear(solver, 10.0 if l2 is None else l2, scale, learned=False)
    else:
        head = Ridge(50.0 if l2 is None else l2, scale, learned=False)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)


def logistic_regression(
    embedding: Embedding,
    *,
    l2: PositiveFloat = 1.0,
    scale: PositiveFloat | None = None,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""Logistic regression on learned features, at its minimum and differentiated there; $\lambda$ is learned too.

    $$ \min_W \; \sum_i \mathrm{CE}\bigl(\mathrm{softmax}(W f_i), y_i\bigr) + \tfrac\lambda2 \lVert W \rVert^2, \qquad
       f_i = [f_\theta(x_i), 1] $$

    Args:
        embedding, objective, batchnorm: as in `protonet`.
        l2: initial value of $\lambda$.
        scale: initial value of a learned factor on the logits; None for no factor.

    Returns:
        A learner for any number of ways and shots. It costs about $C N^3$ for N support rows of C classes, in float64.

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
    head = DualLinear(partial(logistic, steps=15), l2, scale)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)
