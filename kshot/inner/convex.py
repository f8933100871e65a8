r"""Convex classifiers of a support set, solved by a fixed number of Newton steps and differentiated at the solution.

The score of a row is $V_c g_i + \beta_c q_i$, with the penalty
$\frac\lambda2 (\lVert V \rVert^2 + \lVert \beta \rVert^2 / s)$. Both problems are solved in their dual for V: it is
$V = A^\top G$ for coefficients A (N, C), so only the kernel $K = G G^\top$ matters, and the cost of a step is about
$C N^3$, whatever the number of features. The intercepts $\beta = s A^\top q$ are unknowns of their own: within the
kernel an intercept with hardly any penalty, s large, would take the digits of the rest.

The steps are not differentiated. At the solution $a$ of $r(a; K) = 0$ one more Newton step,
$a - J^{-1} r(a; K)$ with $a$ and $J = \partial r / \partial a$ held constant, changes no value and has the derivative
of the implicit function theorem, $-J^{-1} \partial r / \partial K$. Only the first derivative is correct.

The arithmetic is in float64, which the accuracy of a constrained solution needs. On devices without float64 ("mps") it
is in float32: the coefficients then have about 3 correct digits.

Shape legend: N support rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kshot.inner.precision import widest_float
from kshot.objectives import only_present


class Intercept(NamedTuple):
    """The part of a kernel that belongs to an intercept.

    Attributes:
        row_N: q, what multiplies the intercept in each row; zeros for no intercept.
        size: s > 0, (), the inverse of its share of the penalty.
    """

    row_N: Tensor
    size: Tensor


def logistic(
    kernel_NN: Tensor,
    intercept: Intercept,
    target_NC: Tensor,
    weight_N: Tensor,
    present_C: Tensor,
    l2: Tensor,
    *,
    steps: int,
) -> tuple[Tensor, Tensor]:
    r"""Coefficients (N, C) and intercepts (C,) of multinomial logistic regression:

    $$ \min_{V, \beta} \; \sum_i w_i \, \mathrm{CE}(\mathrm{softmax}(V g_i + \beta q_i), y_i)
       + \tfrac{\lambda}{2} \bigl(\lVert V \rVert^2 + \lVert \beta \rVert^2 / s\bigr),
       \qquad \lambda A = w \odot (Y - \Pi), \quad \Pi = \mathrm{softmax}(K A + q \beta^\top). $$

    Args:
        kernel_NN: $K$, inner products of the features.
        intercept: $q$ and $s$.
        target_NC: $Y$, one-hot or soft.
        weight_N: $w$.
        present_C: mask of the classes in the softmax.
        l2: $\lambda > 0$, ().
        steps: number of Newton steps; of the step lengths 1, 1/2, …, 1/32 the one with the lowest objective is used.

    References:
        Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, algorithm 3.3; this is its mode.
    """
    dtype, wide = kernel_NN.dtype, widest_float(kernel_NN.device)
    kernel, row, target, weight = (each.to(wide) for each in (kernel_NN / l2, intercept.row_N, target_NC, weight_N))
    share, common = (l2 / intercept.size).to(wide), _common_direction(present_C, wide)
    still = kernel.detach(), row.detach(), share.detach()

    def probabilities(kernel_a: Tensor, bias: Tensor, row: Tensor) -> Tensor:
        return only_present(kernel_a + row[:, None] * bias, present_C).softmax(1)

    def residuals(a: Tensor, bias: Tensor, prob: Tensor, row: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        return a - weight[:, None] * (target - prob), row @ a - share * bias

    def objective(a: Tensor, bias: Tensor, kernel_a: Tensor) -> Tensor:  # of all step lengths, leaves (6, …)
        log_prob = only_present(kernel_a + still[1][:, None] * bias, present_C).log_softmax(-1)
        penalty = (a * kernel_a).sum((-1, -2)) + still[2] * bias.square().sum((-1, -2))
        return 0.5 * penalty - (target * log_prob).sum(-1) @ weight

    a, bias, kernel_a = torch.zeros_like(target), torch.zeros_like(target[:1]), torch.zeros_like(target)
    lengths = 0.5 ** torch.arange(6, dtype=wide, device=target.device)[:, None, None]
    for _ in range(steps):
        prob = probabilities(kernel_a, bias, still[1])
        da, d_bias = _softmax_newton(prob, weight, common, *still)(*residuals(a, bias, prob, *still[1:]))
        kernel_da = still[0] @ da
        values = objective(a - lengths * da, bias - lengths * d_bias, kernel_a - lengths * kernel_da)
        length = lengths[:, 0, 0].gather(0, values.argmin(0, keepdim=True))
        a, bias, kernel_a = a - length * da, bias - length * d_bias, kernel_a - length * kernel_da
    solve = _softmax_newton(probabilities(kernel_a, bias, still[1]), weight, common, *still)
    da, d_bias = solve(*residuals(a, bias, probabilities(kernel @ a, bias, row), row, share))
    return ((a - da) / l2).to(dtype), (bias - d_bias)[0].to(dtype)


def _softmax_newton(
    prob_NC: Tensor, weight_N: Tensor, common_CC: Tensor, kernel: Tensor, row_N: Tensor, share: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    r"""A solver of $x + H (K x + q \gamma^\top) = b, q^\top x - \lambda \gamma / s = p$ for x (N, C), γ (1, C).

    $H = \mathrm{diag}(w \pi) - w \pi \pi^\top$ per row. With $D_c = \mathrm{diag}(w \pi_c)$ and
    $E_c = D_c^{1/2} (I + D_c^{1/2} K D_c^{1/2})^{-1} D_c^{1/2}$,

    $$ x_c = b_c + E_c (t - K b_c - q \gamma_c), \qquad \sum_c E_c \, t = \sum_c E_c (K b_c + q \gamma_c). $$
    """
    eye = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    root_CN = (weight_N[:, None] * prob_NC).sqrt().mT
    inverse_CNN = torch.linalg.inv(eye + root_CN[:, :, None] * kernel * root_CN[:, None, :])
    e_CNN = root_CN[:, :, None] * inverse_CNN * root_CN[:, None, :]
    total_NN = e_CNN.sum(0) + torch.diag((weight_N == 0).to(kernel.dtype))

    def solve(right_NC: Tensor, excess_1C: Tensor) -> tuple[Tensor, Tensor]:
        c_NC, row_NC = _times(e_CNN, kernel @ right_NC, row_N)
        shared_N1, shared_NC = _solve_both(total_NN, c_NC.sum(1, keepdim=True), row_NC)
        right_NC = right_NC - c_NC
        excess_1C = row_N @ right_NC + (row_NC.mT @ shared_N1)[:, 0] - excess_1C
        bias_1C = _intercept_step(row_NC, shared_NC, row_N, share, common_CC, excess_1C)
        shared_N1 = shared_N1 + shared_NC @ bias_1C.mT
        return right_NC - bias_1C * row_NC + (e_CNN @ shared_N1)[..., 0].mT, bias_1C

    return solve


def _times(square_CNN: Tensor, columns_NC: Tensor, row_N: Tensor) -> tuple[Tensor, Tensor]:
    """The products of each class's matrix with its column, and with one vector: (N, C) and (N, C)."""
    columns_CN = columns_NC.mT
    both_CN2 = square_CNN @ torch.stack([columns_CN, row_N.expand_as(columns_CN)], 2)
    return both_CN2[..., 0].mT, both_CN2[..., 1].mT


def _solve_both(square_NN: Tensor, right_N1: Tensor, right_NC: Tensor) -> tuple[Tensor, Tensor]:
    solved = torch.linalg.solve(square_NN, torch.cat([right_N1, right_NC], 1))
    return solved[:, :1], solved[:, 1:]


def _common_direction(present_C: Tensor, dtype: torch.dtype) -> Tensor:
    """The projection (C, C) on equal intercepts of the classes present, a direction that no loss depends on."""
    present_C = present_C.to(dtype)
    return present_C[:, None] * present_C / present_C.sum()


def _intercept_step(
    row_NC: Tensor, shared_NC: Tensor, row_N: Tensor, share: Tensor, common_CC: Tensor, excess_1C: Tensor
) -> Tensor:
    """The step of the intercepts (1, C): the other unknowns are eliminated.

    The intercepts of a solution sum to 0. In that direction the equations are as small as `share`, and would amplify
    rounding errors if the projection were not added.
    """
    diagonal_C = row_N @ row_NC + share
    schur_CC = torch.diag(diagonal_C) - row_NC.mT @ shared_NC + diagonal_C.sum() * common_CC
    return torch.linalg.solve(schur_CC, excess_1C.mT).mT


def crammer_singer(
    kernel_NN: Tensor,
    intercept: Intercept,
    target_NC: Tensor,
    weight_N: Tensor,
    present_C: Tensor,
    l2: Tensor,
    *,
    steps: int,
) -> tuple[Tensor, Tensor]:
    r"""Coefficients (N, C) and intercepts (C,) of the multi-class support vector machine of Crammer and Singer:

    $$ \min_{V, \beta} \; \sum_i w_i \max_c \bigl(z_{ic} - z_{i y_i} + [c \ne y_i]\bigr) + \tfrac{\lambda}{2}
       \bigl(\lVert V \rVert^2 + \lVert \beta \rVert^2 / s\bigr), \qquad z_i = V g_i + \beta q_i, \quad
       \lambda A = w \odot (Y - H) $$

    solved in its dual, over one simplex per row, by a primal-dual interior point method:

    $$ \min_H \; \tfrac{1}{2 \lambda} \sum_c (y_c - h_c)^\top \mathrm{diag}(w) (K + s q q^\top) \mathrm{diag}(w)
       (y_c - h_c) + \sum_{ic} w_i y_{ic} h_{ic}, \qquad h_{ic} \ge 0, \; \sum_c h_{ic} = 1. $$

    The derivative is that of the point of the central path with $h_{ic} s_{ic} = 10^{-11}$, or $10^{-5}$ in float32.

    Args:
        kernel_NN, intercept, target_NC, weight_N, present_C, l2: as in `logistic`; the maximum is over the classes of
            the mask.
        steps: number of steps of the interior point method.

    References:
        Crammer, Singer: On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines, JMLR 2001.
    """
    dtype, wide = kernel_NN.dtype, widest_float(kernel_NN.device)
    kernel, target, weight, present = (each.to(wide) for each in (kernel_NN / l2, target_NC, weight_N, present_C))
    limits, row, share = _LIMITS[wide], weight * intercept.row_N.to(wide), (l2 / intercept.size).to(wide)
    quadratic = weight[:, None] * kernel * weight
    # with more rows than features the dual has many solutions; this selects one
    quadratic = quadratic + torch.diag(limits.diagonal * quadratic.detach().diagonal().max().expand(len(quadratic)))
    still, common = (quadratic.detach(), row.detach(), share.detach()), _common_direction(present_C, wide)
    wrong = weight[:, None] * target

    def residuals(centre: Tensor | float, quadratic: Tensor, row: Tensor, share: Tensor) -> tuple[Tensor, ...]:
        open_NC = target - h
        gradient = wrong - quadratic @ open_NC - row[:, None] * bias
        return gradient + multiplier[:, None] - centre / safe_h, h.sum(1) - 1, row @ open_NC - share * bias

    h = torch.ones_like(target) * present / present.sum()
    s, multiplier, bias = torch.ones_like(h), h.new_zeros(len(h)), torch.zeros_like(h[:1])
    safe_h, target_gap = h.clamp_min(limits.tiny), 0.1 / (present.sum() * len(h))  # a tenth of the mean
    for _ in range(steps):
        centre = ((h * s).sum() * target_gap).clamp_min(limits.gap)
        d_h, d_multiplier, d_bias = _simplex_newton(s / safe_h, present, common, *still)(*residuals(centre, *still))
        d_s = ((centre - s * d_h) / safe_h - s) * present
        length = _max_step(torch.stack([h, s]), torch.stack([d_h, d_s]))
        h, s = h + length * d_h, s + length * d_s
        multiplier, bias = multiplier + length * d_multiplier, bias + length * d_bias
        safe_h = h.clamp_min(limits.tiny)
    solve = _simplex_newton(s / safe_h, present, common, *still)
    d_h, _, d_bias = solve(*residuals(limits.gap, quadratic, row, share))
    return (weight[:, None] * (target - h - d_h) / l2).to(dtype), (bias + d_bias)[0].to(dtype)


class _Limits(NamedTuple):
    """Constants of the interior point method.

    Attributes:
        diagonal: added to the diagonal of the dual, relative to its largest entry.
        gap: the complementarity at which the method ends.
        tiny: for classes that are not present, whose h is 0.
    """

    diagonal: float
    gap: float
    tiny: float


_LIMITS = {torch.float64: _Limits(1e-9, 1e-11, 1e-300), torch.float32: _Limits(1e-6, 1e-5, 1e-30)}


def _simplex_newton(
    ratio_NC: Tensor, present_C: Tensor, common_CC: Tensor, quadratic: Tensor, row_N: Tensor, share: Tensor
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    r"""A solver (r, u, e) for dh (N, C), dν (N,) and dβ (1, C) of

    $$ (Q + \mathrm{diag}(s_c / h_c)) \, dh_c + d\nu - p \, d\beta_c = -r_c, \qquad \sum_c dh_c = -u, \qquad
       p^\top dh_c + \tfrac{\lambda}{s} d\beta_c = e_c. $$
    """
    inverse_CNN = torch.linalg.inv(quadratic + torch.diag_embed(ratio_NC.mT)) * present_C[:, None, None]
    total_NN = inverse_CNN.sum(0)

    def solve(slope_NC: Tensor, surplus_N: Tensor, excess_1C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        free_NC, row_NC = _times(inverse_CNN, -slope_NC, row_N)
        shared_N1, shared_NC = _solve_both(total_NN, (free_NC.sum(1) + surplus_N)[:, None], row_NC)
        excess_1C = excess_1C - row_N @ free_NC + (row_NC.mT @ shared_N1)[:, 0]
        bias_1C = _intercept_step(row_NC, shared_NC, row_N, share, common_CC, excess_1C)
        shared_N1 = shared_N1 + shared_NC @ bias_1C.mT
        return free_NC + bias_1C * row_NC - (inverse_CNN @ shared_N1)[..., 0].mT, shared_N1[:, 0], bias_1C

    return solve


def _max_step(values: Tensor, direction: Tensor) -> Tensor:
    """The longest step, at most 1, that keeps the values positive, ()."""
    bound = torch.where(direction < 0, -values / torch.where(direction < 0, direction, -1.0), torch.inf)
    return (0.99 * bound.min()).clamp_max(1.0)
