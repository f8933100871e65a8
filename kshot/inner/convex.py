r"""Convex classifiers of a support set, solved by a fixed number of Newton steps and differentiated at the solution.

Both problems are solved in their dual: the weights are $W = A^\top F$ for coefficients A (N, C), so only the kernel
$K = F F^\top$ matters, and the cost of a step is about $C N^3$, independent of the number of features.

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


def logistic(
    kernel_NN: Tensor, target_NC: Tensor, weight_N: Tensor, present_C: Tensor, l2: Tensor, *, steps: int
) -> Tensor:
    r"""Coefficients (N, C) of multinomial logistic regression:

    $$ \min_W \; \sum_i w_i \, \mathrm{CE}(\mathrm{softmax}(W f_i), y_i) + \tfrac{\lambda}{2} \lVert W \rVert^2,
       \qquad W = A^\top F, \quad \lambda A = w \odot (Y - \Pi), \quad \Pi = \mathrm{softmax}(K A). $$

    Args:
        kernel_NN: $K$, inner products of the features.
        target_NC: $Y$, one-hot or soft.
        weight_N: $w$.
        present_C: mask of the classes in the softmax.
        l2: $\lambda > 0$, ().
        steps: number of Newton steps; of the step lengths 1, 1/2, …, 1/32 the one with the lowest objective is used.

    References:
        Rasmussen, Williams: Gaussian Processes for Machine Learning, 2006, algorithm 3.3; this is its mode.
    """
    dtype, wide = kernel_NN.dtype, widest_float(kernel_NN.device)
    kernel, target, weight = (tensor.to(wide) for tensor in (kernel_NN / l2, target_NC, weight_N))
    constant_kernel = kernel.detach()

    def probabilities(coefficients: Tensor, kernel: Tensor) -> Tensor:
        return only_present(kernel @ coefficients, present_C).softmax(1)

    def residual(coefficients: Tensor, kernel: Tensor) -> Tensor:
        return coefficients - weight[:, None] * (target - probabilities(coefficients, kernel))

    def objective(coefficients: Tensor) -> Tensor:
        score_NC = constant_kernel @ coefficients
        loss_N = -(target * only_present(score_NC, present_C).log_softmax(1)).sum(1)
        return (weight * loss_N).sum() + 0.5 * (coefficients * score_NC).sum()

    def newton_solver(solution: Tensor) -> Callable[[Tensor], Tensor]:
        return _softmax_newton(constant_kernel, probabilities(solution, constant_kernel), weight)

    solution, lengths = torch.zeros_like(target), 0.5 ** torch.arange(6, dtype=wide, device=target.device)
    for _ in range(steps):
        step = newton_solver(solution)(residual(solution, constant_kernel))
        values = torch.stack([objective(solution - length * step) for length in lengths])
        solution = solution - lengths.gather(0, values.argmin(0, keepdim=True)) * step
    return ((solution - newton_solver(solution)(residual(solution, kernel))) / l2).to(dtype)


def _softmax_newton(kernel: Tensor, prob_NC: Tensor, weight_N: Tensor) -> Callable[[Tensor], Tensor]:
    r"""A solver (b -> x, both (N, C)) of $(I + H K) x = b$, where $H = \mathrm{diag}(w \pi) - w \pi \pi^\top$ per row.

    With $D_c = \mathrm{diag}(w \pi_c)$ and $E_c = D_c^{1/2} (I + D_c^{1/2} K D_c^{1/2})^{-1} D_c^{1/2}$,

    $$ x_c = b_c - E_c K b_c + E_c \Bigl(\sum_k E_k\Bigr)^{-1} \sum_k E_k K b_k. $$
    """
    eye = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    root_CN = (weight_N[:, None] * prob_NC).sqrt().mT
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
    r"""Coefficients (N, C) of the multi-class support vector machine of Crammer and Singer:

    $$ \min_W \; \sum_i w_i \max_c \bigl(W_c f_i - W_{y_i} f_i + [c \ne y_i]\bigr) + \tfrac{\lambda}{2}
       \lVert W \rVert^2, \qquad W = A^\top F, \quad \lambda A = w \odot (Y - H) $$

    solved in its dual, over one simplex per row, by a primal-dual interior point method:

    $$ \min_H \; \tfrac{1}{2 \lambda} \sum_c (y_c - h_c)^\top \mathrm{diag}(w) K \mathrm{diag}(w) (y_c - h_c)
       + \sum_{ic} w_i y_{ic} h_{ic}, \qquad h_{ic} \ge 0, \; \sum_c h_{ic} = 1. $$

    The derivative is that of the point of the central path with $h_{ic} s_{ic} = 10^{-11}$, or $10^{-5}$ in float32.

    Args:
        kernel_NN, target_NC, weight_N, present_C, l2: as in `logistic`; the maximum is over the classes of the mask.
        steps: number of steps of the interior point method.

    References:
        Crammer, Singer: On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines, JMLR 2001.
    """
    dtype, wide = kernel_NN.dtype, widest_float(kernel_NN.device)
    kernel, target, weight, present = (each.to(wide) for each in (kernel_NN / l2, target_NC, weight_N, present_C))
    limits = _LIMITS[wide]
    quadratic = weight[:, None] * kernel * weight
    # with more rows than features the dual has many solutions; this selects one
    spread = limits.diagonal * _largest_spread(kernel.detach(), weight)
    quadratic = quadratic + torch.diag(spread.expand(len(quadratic)))
    constant_quadratic = quadratic.detach()

    def gradient(h_NC: Tensor, quadratic: Tensor) -> Tensor:
        return -quadratic @ (target - h_NC) + weight[:, None] * target

    h = torch.ones_like(target) * present / present.sum()
    s, multiplier = torch.ones_like(h), h.new_zeros(len(h))
    for _ in range(steps):
        gap = (h * s).sum() / (present.sum() * len(h))
        centre = (0.1 * gap).clamp_min(limits.gap)
        solve = _simplex_newton(constant_quadratic, s, h, present)
        residual = gradient(h, constant_quadratic) + multiplier[:, None] - centre / h.clamp_min(limits.tiny)
        d_h, d_multiplier = solve(residual, h.sum(1) - 1)
        d_s = (centre - s * h - s * d_h) / h.clamp_min(limits.tiny) * present
        length = torch.minimum(_max_step(h, d_h), _max_step(s, d_s))
        h, s, multiplier = h + length * d_h, s + length * d_s, multiplier + length * d_multiplier
    residual = gradient(h, quadratic) + multiplier[:, None] - limits.gap / h.clamp_min(limits.tiny)
    d_h, _ = _simplex_newton(constant_quadratic, s, h, present)(residual, h.sum(1) - 1)
    return (weight[:, None] * (target - h - d_h) / l2).to(dtype)


class _Limits(NamedTuple):
    """Constants of the interior point method.

    Attributes:
        diagonal: added to the diagonal of the dual, relative to the spread of the features.
        gap: the complementarity at which the method ends.
        tiny: for classes that are not present, whose h is 0.
    """

    diagonal: float
    gap: float
    tiny: float


_LIMITS = {torch.float64: _Limits(1e-9, 1e-11, 1e-300), torch.float32: _Limits(1e-6, 1e-5, 1e-30)}


def _largest_spread(kernel_NN: Tensor, weight_N: Tensor) -> Tensor:
    """The largest weighted squared distance of a row from the mean in a kernel, (): an intercept has no part in it."""
    share_N = weight_N / weight_N.sum().clamp_min(1e-12)
    mean_N = kernel_NN @ share_N
    return (weight_N.square() * (kernel_NN.diagonal() - 2 * mean_N + share_N @ mean_N)).max().clamp_min(1e-9)


def _simplex_newton(
    quadratic: Tensor, s_NC: Tensor, h_NC: Tensor, present_C: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    r"""A solver of $(Q + \mathrm{diag}(s_c / h_c)) dh_c + d\nu = -r_c, \sum_c dh_c = -p$ for dh (N, C), dν (N,)."""
    ratio_CN = (s_NC / h_NC.clamp_min(_LIMITS[h_NC.dtype].tiny)).mT
    ratio_CN = torch.where(present_C[:, None] > 0, ratio_CN, 1.0)
    inverse_CNN = torch.linalg.inv(quadratic + torch.diag_embed(ratio_CN)) * present_C[:, None, None]
    total_NN = inverse_CNN.sum(0)

    def solve(residual_NC: Tensor, excess_N: Tensor) -> tuple[Tensor, Tensor]:
        free_NC = torch.einsum("cij,jc->ic", inverse_CNN, torch.where(present_C > 0, -residual_NC, 0.0))
        multiplier_N = torch.linalg.solve(total_NN, free_NC.sum(1) + excess_N)
        return free_NC - torch.einsum("cij,j->ic", inverse_CNN, multiplier_N), multiplier_N

    return solve


def _max_step(values: Tensor, direction: Tensor) -> Tensor:
    """The longest step, at most 1, that keeps the values positive, ()."""
    bound = torch.where(direction < 0, -values / torch.where(direction < 0, direction, -1.0), torch.inf)
    return (0.99 * bound.min()).clamp_max(1.0)
