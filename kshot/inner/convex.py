r"""Convex problems of a support set, solved by a fixed number of Newton steps and differentiated at the solution.

Both are solved in their dual: the weights are $W = A^\top F$ for coefficients A (N, C), so that only the kernel
$K = F F^\top$ matters, and the steps cost about $C N^3$ whatever the number of features.

The steps themselves are not differentiated. At the solution $a$ of $r(a; K) = 0$ one more Newton step,
$a - J^{-1} r(a; K)$ with $a$ and $J = \partial r / \partial a$ held constant, changes no value and has the derivative
of the implicit function theorem, $-J^{-1} \partial r / \partial K$. It is a first derivative: there is no second.

The arithmetic is in float64, which the last digits of a constrained solution need.

Shape legend: N support rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kshot.objectives import only_present


def logistic(
    kernel_NN: Tensor, target_NC: Tensor, weight_N: Tensor, present_C: Tensor, l2: Tensor, *, steps: int
) -> Tensor:
    r"""The coefficients of multinomial logistic regression, (N, C):

    $$ \min_W \; \sum_i w_i \, \mathrm{CE}(\mathrm{softmax}(W f_i), y_i) + \tfrac{\lambda}{2} \lVert W \rVert^2,
       \qquad W = A^\top F, \quad \lambda A = w \odot (Y - \Pi), \quad \Pi = \mathrm{softmax}(K A). $$

    Args:
        kernel_NN: $K$, inner products of the features.
        target_NC: $Y$, one-hot or soft.
        weight_N: $w$.
        present_C: bool; the others have no part in the softmax.
        l2: $\lambda > 0$, ().
        steps: Newton steps, each as long as of 1, 1/2, 1/4, … lowers the objective most.

    References:
        Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, algorithm 3.3, whose mode this is.
    """
    dtype = kernel_NN.dtype
    kernel, target, weight = (each.double() for each in (kernel_NN / l2, target_NC, weight_N))
    held = kernel.detach()

    def chances(coefficients: Tensor, kernel: Tensor) -> Tensor:
        return only_present(kernel @ coefficients, present_C).softmax(1)

    def residual(coefficients: Tensor, kernel: Tensor) -> Tensor:
        return coefficients - weight[:, None] * (target - chances(coefficients, kernel))

    def objective(coefficients: Tensor) -> Tensor:
        score_NC = held @ coefficients
        loss_N = -(target * only_present(score_NC, present_C).log_softmax(1)).sum(1)
        return (weight * loss_N).sum() + 0.5 * (coefficients * score_NC).sum()

    found, lengths = torch.zeros_like(target), 0.5 ** torch.arange(6, dtype=torch.float64, device=target.device)
    for _ in range(steps):
        step = _softmax_newton(held, chances(found, held), weight)(residual(found, held))
        tried = torch.stack([objective(found - length * step) for length in lengths])
        found = found - lengths.gather(0, tried.argmin(0, keepdim=True)) * step
    solve = _softmax_newton(held, chances(found, held), weight)
    return ((found - solve(residual(found, kernel))) / l2).to(dtype)


def _softmax_newton(kernel: Tensor, chance_NC: Tensor, weight_N: Tensor) -> Callable[[Tensor], Tensor]:
    r"""The solution (N, C) of $(I + H K) x = b$, where $H = \mathrm{diag}(w \pi) - w \pi \pi^\top$ for each row.

    With $D_c = \mathrm{diag}(w \pi_c)$ and $E_c = D_c^{1/2} (I + D_c^{1/2} K D_c^{1/2})^{-1} D_c^{1/2}$,

    $$ x_c = b_c - E_c K b_c + E_c \Bigl(\sum_k E_k\Bigr)^{-1} \sum_k E_k K b_k. $$
    """
    eye = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    root_CN = (weight_N[:, None] * chance_NC).sqrt().mT
    inverse_CNN = torch.linalg.inv(eye + root_CN[:, :, None] * kernel * root_CN[:, None, :])
    e_CNN = root_CN[:, :, None] * inverse_CNN * root_CN[:, None, :]
    total_NN = e_CNN.sum(0) + torch.diag((weight_N == 0).to(kernel.dtype))

    def solve(right_NC: Tensor) -> Tensor:
        c_NC = torch.einsum("cij,jc->ic", e_CNN, kernel @ right_NC)
        shared_N = torch.linalg.solve(total_NN, c_NC.sum(1))
        return right_NC - c_NC + torch.einsum("cij,j->ic", e_CNN, shared_N)

    return solve


def crammer_singer(
    kernel_NN: Tensor, target_NC: Tensor, weight_N: Tensor, present_C: Tensor, l2: Tensor, *, steps: int
) -> Tensor:
    r"""The coefficients of Crammer and Singer's multi-class support vector machine, (N, C):

    $$ \min_W \; \sum_i w_i \max_c \bigl(W_c f_i - W_{y_i} f_i + [c \ne y_i]\bigr) + \tfrac{\lambda}{2}
       \lVert W \rVert^2, \qquad W = A^\top F, \quad \lambda A = w \odot (Y - H) $$

    by its dual over the simplices of the rows, with a primal-dual interior point method:

    $$ \min_H \; \tfrac{1}{2 \lambda} \sum_c (y_c - h_c)^\top \mathrm{diag}(w) K \mathrm{diag}(w) (y_c - h_c)
       + \sum_{ic} w_i y_{ic} h_{ic}, \qquad h_{ic} \ge 0, \; \sum_c h_{ic} = 1. $$

    The derivative is that of the point on the central path where $h_{ic} s_{ic} = 10^{-11}$.

    Args:
        kernel_NN, target_NC, weight_N, present_C, l2: as in `logistic`; the others have no part in the maximum.
        steps: of the interior point method.

    References:
        Crammer, Singer: On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines, JMLR 2001.
    """
    dtype = kernel_NN.dtype
    quadratic = (weight_N[:, None] * kernel_NN * weight_N / l2).double()
    # with more rows than features the dual has many solutions, of which this picks one
    quadratic = quadratic + _STRICT * torch.diag(quadratic.detach().diagonal().max().expand(len(quadratic)))
    target, weight, present = target_NC.double(), weight_N.double(), present_C.double()
    held = quadratic.detach()

    def slope(h_NC: Tensor, quadratic: Tensor) -> Tensor:
        return -quadratic @ (target - h_NC) + weight[:, None] * target

    h = torch.ones_like(target) * present / present.sum()
    s, level = torch.ones_like(h), h.new_zeros(len(h))
    for _ in range(steps):
        gap = (h * s).sum() / (present.sum() * len(h))
        aim = (0.1 * gap).clamp_min(_NARROW)
        solve = _simplex_newton(held, s, h, present)
        move, lift = solve(slope(h, held) + level[:, None] - aim / h.clamp_min(_TINY), h.sum(1) - 1)
        raised = (aim - s * h - s * move) / h.clamp_min(_TINY) * present
        length = torch.minimum(_longest(h, move), _longest(s, raised))
        h, s, level = h + length * move, s + length * raised, level + length * lift
    away = slope(h, quadratic) + level[:, None] - _NARROW / h.clamp_min(_TINY)
    move, _ = _simplex_newton(held, s, h, present)(away, h.sum(1) - 1)
    return (weight[:, None] * (target - h - move) / l2).to(dtype)


_STRICT = 1e-9  # added to the diagonal of the dual, as a part of its largest entry
_NARROW = 1e-11  # the complementarity at which the interior point method ends
_TINY = 1e-300  # for classes that are not present, whose h is 0


def _simplex_newton(
    quadratic: Tensor, s_NC: Tensor, h_NC: Tensor, present_C: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    r"""Solves $(Q + \mathrm{diag}(s_c / h_c)) \, dh_c + d\nu = -r_c, \; \sum_c dh_c = -p$ for dh (N, C) and dν (N,)."""
    ratio_CN = (s_NC / h_NC.clamp_min(_TINY)).mT
    ratio_CN = torch.where(present_C[:, None] > 0, ratio_CN, 1.0)
    inverse_CNN = torch.linalg.inv(quadratic + torch.diag_embed(ratio_CN)) * present_C[:, None, None]
    total_NN = inverse_CNN.sum(0)

    def solve(away_NC: Tensor, excess_N: Tensor) -> tuple[Tensor, Tensor]:
        free_NC = torch.einsum("cij,jc->ic", inverse_CNN, torch.where(present_C > 0, -away_NC, 0.0))
        level_N = torch.linalg.solve(total_NN, free_NC.sum(1) + excess_N)
        return free_NC - torch.einsum("cij,j->ic", inverse_CNN, level_N), level_N

    return solve


def _longest(values: Tensor, move: Tensor) -> Tensor:
    """The longest step, at most 1, that leaves values above 0, ()."""
    reach = torch.where(move < 0, -values / torch.where(move < 0, move, -1.0), torch.inf)
    return (0.99 * reach.min()).clamp_max(1.0)
