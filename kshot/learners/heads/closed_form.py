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
from kshot.inner.convex import Intercept, crammer_singer, logistic
from kshot.inner.functional import BatchNorm
from kshot.inner.precision import widest_float
from kshot.learners.heads.distances import exp_as, log_parameter, reference_of, reference_point, relative
from kshot.learners.heads.head import Head, sum_by_class
from kshot.learners.heads.head_learner import HeadLearner
from kshot.objectives import Objective
from kshot.supplied import Embedding
from kshot.types import Tree


def solve_ridge(feat_ND: Tensor, target_NC: Tensor, l2: Tensor) -> Tensor:
    r"""Ridge regression of targets (..., N, C) on features (..., N, D), for $\lambda$ (...,): (..., D, C).

    $$ W = (F^\top F + \lambda I)^{-1} F^\top Y = F^\top (F F^\top + \lambda I)^{-1} Y $$

    The second form (Woodbury) solves N equations instead of D, and is taken where N < D.

    Example:
        >>> solve_ridge(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [2.0]]), torch.tensor(5.0))
        tensor([[0.5000]])
    """
    if feat_ND.shape[-2] < feat_ND.shape[-1]:
        return feat_ND.mT @ torch.linalg.solve(_add_ridge(feat_ND @ feat_ND.mT, l2), target_NC)
    return torch.linalg.solve(_add_ridge(feat_ND.mT @ feat_ND, l2), feat_ND.mT @ target_NC)


def _add_ridge(square: Tensor, l2: Tensor) -> Tensor:
    return square + l2[..., None, None] * _eye(square)


def _eye(square: Tensor) -> Tensor:
    return torch.eye(square.shape[-1], dtype=square.dtype, device=square.device)


class _Penalty:
    r"""The penalty on a weight and an intercept, for features relative to a reference m, in coordinates of its own.

    A linear head has weights $W$ and an intercept $b$ with the penalty $\lVert W \rVert^2 + b^2$. In terms of the
    intercept at the reference, $\beta = b + W m$, it couples the two where m is large, and a kernel has a constant part
    of the size of $c = 1 + \lVert m \rVert^2$, in which the rest loses its digits. The rotation of (features, 1) that
    turns (m, 1) into the last axis separates them exactly: with $R = I - m m^\top / (c + \sqrt c)$,

    $$ W f + b = V g + \beta q, \qquad g = R (f - m), \qquad q = 1 + m^\top (f - m) / c, \qquad
       \lVert W \rVert^2 + b^2 = \lVert V \rVert^2 + \beta^2 / c. $$

    Args:
        origin_D: m.
        unit: (), divides features and m before all of this.
    """

    def __init__(self, origin_D: Tensor, unit: Tensor) -> None:
        self.origin, self.unit, self.reference = origin_D, unit, origin_D / unit
        self.size = 1 + self.reference @ self.reference
        self.norm = self.size + self.size.sqrt()

    def rotate(self, feat_ND: Tensor) -> tuple[Tensor, Tensor]:
        """g (N, D) and q (N, 1) of features."""
        feat_ND = (feat_ND - self.origin) / self.unit
        along_N1 = feat_ND @ self.reference[:, None]
        return feat_ND - along_N1 / self.norm * self.reference, 1 + along_N1 / self.size

    def rotate_sums(self, gram: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of squares (D + 1, D + 1) and products (D + 1, C) of (g, q), for those of (f - m, 1)."""
        ones_D = torch.ones_like(self.reference)
        scale_D1 = torch.cat([ones_D / self.unit, ones_D[:1]])[:, None]
        gram, moment = scale_D1 * gram * scale_D1.mT, scale_D1 * moment
        turn = _eye(gram) - F.pad(self.reference[:, None] * self.reference / self.norm, (0, 1, 0, 1))
        turn = turn + F.pad((self.reference / self.size)[:, None], (len(turn) - 1, 0, 0, 1))
        return turn.mT @ gram @ turn, turn.mT @ moment

    def ridge(self, gram: Tensor, moment: Tensor, l2: Tensor) -> Tree:
        """The state of a ridge regression with the given sums of (g, q) and of its products with targets."""
        diagonal = l2 / torch.cat([torch.ones_like(self.reference), self.size[None]])
        solution = torch.linalg.solve(gram + torch.diag(diagonal), moment)
        return self.state(solution[:-1].mT, solution[-1], gram.dtype)

    def state(self, weight_CD: Tensor, bias_C: Tensor, dtype: torch.dtype) -> Tree:
        r"""The state of a linear head with the solution $V$ (C, D) and $\beta$ (C,)."""
        along_C = bias_C / self.size - weight_CD @ self.reference / self.norm
        weight_CD = weight_CD + along_C[:, None] * self.reference
        state = {"weight": (weight_CD / self.unit).contiguous(), "bias": bias_C, "reference": self.origin}
        return {name: leaf.to(dtype) for name, leaf in state.items()}


class Linear(Head):
    """A linear head with a learned scale; subclasses define how it is fitted.

    Its state is `{"weight": (C, D), "bias": (C,), "reference": (D,)}`, and its prediction the weight times the features
    minus the reference, plus the bias. The penalised intercept is the one at the origin, a weight like the others of a
    further feature that is always 1: the solution does not depend on the reference, which is the mean of the support
    set, and only saves the digits of features far from the origin.

    Args:
        l2: strength of the penalty on weights, above 0.
        scale: initial value of the factor on predictions; None for no factor.
        learned: whether the strength is learned.
        normalize: whether features are divided by their spread, the root of their mean squared distance from the mean
            of the support set, so that a strength means the same whatever their size.
    """

    fits_parts = True

    def __init__(self, l2: float, scale: float | None, *, learned: bool = True, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize
        self.log_l2 = log_parameter("l2", l2).requires_grad_(learned)
        self.log_scale = None if scale is None else log_parameter("scale", scale)

    def predict(self, state: Tree, feat_MD: Tensor) -> Tensor:
        prediction = F.linear(relative(feat_MD, state), state["weight"], state["bias"])
        return prediction if self.log_scale is None else exp_as(prediction, self.log_scale) * prediction

    def _unit(self, feat_ND: Tensor, weight_N: Tensor, reference_D: Tensor) -> Tensor:
        """What features are divided by, ()."""
        g_ND, count = feat_ND - reference_D, weight_N.sum().clamp_min(1e-12)
        off_D = weight_N @ g_ND / count  # the mean is not the reference, which is rounded
        return self._root(weight_N @ g_ND.square().sum(1) / count - off_D.square().sum(), reference_D)

    def _root(self, variance: Tensor, reference_D: Tensor) -> Tensor:
        """The root of a variance, or 1 if it is no larger than rounding errors, as where all rows are equal."""
        least = (32 * torch.finfo(variance.dtype).eps) ** 2 * reference_D.square().sum()
        return variance.where((variance > least) & self.normalize, torch.ones_like(variance)).sqrt()


class Ridge(Linear):
    r"""Ridge regression of the targets, with the intercept penalised like the weights; arguments as for `Linear`.

    $$ \min_{W, b} \; \sum_i w_i \lVert W f_i + b - y_i \rVert^2 + \lambda (\lVert W \rVert^2 + \lVert b \rVert^2) $$
    """

    scores_absent = True

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        reference_D, l2 = reference_point(feat_ND, weight_N), exp_as(feat_ND, self.log_l2)
        penalty = _Penalty(reference_D, self._unit(feat_ND, weight_N, reference_D))
        root_N1 = weight_N.sqrt()[:, None]
        g_ND, q_N1 = penalty.rotate(feat_ND)
        g_ND, right_NC1 = root_N1 * g_ND, root_N1 * torch.cat([target_NC, q_N1], 1)
        q_N1 = right_NC1[:, -1:]
        if len(g_ND) > g_ND.shape[1]:
            wide = torch.cat([g_ND, q_N1], 1)
            return penalty.ridge(wide.mT @ wide, wide.mT @ right_NC1[:, :-1], l2)
        # N equations (Woodbury), and one for the intercept
        solved_NC1 = torch.linalg.solve(_add_ridge(g_ND @ g_ND.mT, l2), right_NC1)
        free_NC, q_solved_N1 = solved_NC1[:, :-1], solved_NC1[:, -1:]
        bias_1C = q_N1.mT @ free_NC / (1 / penalty.size + q_N1.mT @ q_solved_N1)
        return penalty.state((free_NC - q_solved_N1 * bias_1C).mT @ g_ND, bias_1C[0], feat_ND.dtype)

    def statistics(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        """The sums that determine the solution; their size does not grow with the number of examples."""
        reference_D = reference_point(feat_ND, weight_N)
        wide = F.pad(feat_ND - reference_D, (0, 1), value=1.0)
        weighted = (weight_N[:, None] * wide).mT
        return {"gram": weighted @ wide, "moment": (weighted @ target_NC).mT, "reference": reference_D}

    def merge(self, old: Tree, new: Tree) -> Tree:
        shift_D = new.get("reference", 0.0) - old.get("reference", torch.zeros_like(new["gram"][0, :-1]))
        move = _eye(new["gram"]) + F.pad(shift_D[None], (0, 1, len(shift_D), 0))
        moved = {"gram": move.mT @ new["gram"] @ move, "moment": new["moment"] @ move}
        return sum_by_class(old, moved) | reference_of(old)

    def fit_statistics(self, statistics: Tree) -> Tree:
        gram, moment = statistics["gram"], statistics["moment"].mT
        reference_D, count = statistics.get("reference", gram.new_zeros(len(gram) - 1)), gram[-1, -1].clamp_min(1e-12)
        variance = gram.diagonal()[:-1].sum() / count - (gram[-1, :-1] / count).square().sum()
        penalty = _Penalty(reference_D, self._root(variance, reference_D))
        return penalty.ridge(*penalty.rotate_sums(gram, moment), exp_as(gram, self.log_l2))


class DualLinear(Linear):
    """A linear head that is fitted by a solver for coefficients of the support rows; other arguments as for `Linear`.

    It is solved in float64, where the device has it, else in float32, with about 3 correct digits.

    Args:
        solver: `inner.convex.logistic` or `crammer_singer`, or a function with their arguments and result.
    """

    def __init__(
        self,
        solver: Callable[..., tuple[Tensor, Tensor]],
        l2: float,
        scale: float | None,
        *,
        learned: bool = True,
        normalize: bool = False,
    ) -> None:
        super().__init__(l2, scale, learned=learned, normalize=normalize)
        self.solver = solver

    def fit(self, feat_ND: Tensor, target_NC: Tensor, weight_N: Tensor) -> Tree:
        dtype, wide, reference_D = feat_ND.dtype, widest_float(feat_ND.device), reference_point(feat_ND, weight_N)
        unit = self._unit(feat_ND, weight_N, reference_D).to(wide)
        feat_ND, target_NC, weight_N = (each.to(wide) for each in (feat_ND, target_NC, weight_N))
        penalty, l2 = _Penalty(reference_D.to(wide), unit), exp_as(feat_ND, self.log_l2)
        g_ND, q_N1 = penalty.rotate(feat_ND)
        present_C = (target_NC * weight_N[:, None]).sum(0) > 0
        intercept = Intercept(q_N1[:, 0], penalty.size)
        coefficient_NC, bias_C = self.solver(g_ND @ g_ND.mT, intercept, target_NC, weight_N, present_C, l2)
        return penalty.state(coefficient_NC.mT @ g_ND, bias_C, dtype)


def r2d2(
    embedding: Embedding,
    *,
    l2: PositiveFloat = 1.0,
    scale: PositiveFloat | None = 20.0,
    normalize: bool = True,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""R2-D2: ridge regression on learned features, in closed form; $\lambda$ and $\alpha$ are learned too.

    $$ W = F^\top (F F^\top + \lambda I)^{-1} Y, \qquad \hat y = \alpha \, [f_\theta(x), 1] W $$

    for the rows $[f_\theta(x_i) / u, 1]$ of F; the 1 makes the intercept a weight, and $u$ is the root of the mean
    squared distance of the support features from their mean, so that a $\lambda$ suits features of any size.

    Args:
        embedding, batchnorm: as in `protonet`.
        l2: initial value of $\lambda$.
        scale: initial value of $\alpha$; None for no factor, as suits a regression.
        normalize: False for $u = 1$, the paper's.
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
        miniImageNet and at 10 for CIFAR-FS. $\lambda$ and $\alpha$ are learned by their logarithms. $u$ is new, and the
        initial values suit features of pretrained encoders, without any meta-training.
    """
    return HeadLearner(embedding, Ridge(l2, scale, normalize=normalize), objective, batchnorm=batchnorm)


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
    l2: PositiveFloat = 0.1,
    scale: PositiveFloat | None = 4.0,
    normalize: bool = True,
    objective: Objective = objectives.classification,
    batchnorm: BatchNorm = "support",
) -> HeadLearner:
    r"""Logistic regression on learned features, at its minimum and differentiated there; $\lambda$ is learned too.

    $$ \min_W \; \sum_i \mathrm{CE}\bigl(\mathrm{softmax}(W f_i), y_i\bigr) + \tfrac\lambda2 \lVert W \rVert^2, \qquad
       f_i = [f_\theta(x_i) / u, 1], \qquad \hat y = s \, W f $$

    $u$ is the root of the mean squared distance of the support features from their mean, so that a $\lambda$ suits
    features of any size.

    Args:
        embedding, objective, batchnorm: as in `protonet`.
        l2: initial value of $\lambda$; the C of scikit-learn is $u^2 / \lambda$.
        scale: initial value of $s$, which is learned: of few examples a penalised fit is less certain than it is right.
            None for no factor.
        normalize: False for $u = 1$.

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
        unrolls a few Newton steps. $s$ and $u$ are new; the initial values suit features of pretrained encoders,
        without any meta-training.
    """
    head = DualLinear(partial(logistic, steps=15), l2, scale, normalize=normalize)
    return HeadLearner(embedding, head, objective, batchnorm=batchnorm)
