"""Variants of Adam: Adamax, NAdam and RAdam, equal to those of `torch.optim` step by step (see `inner.rules`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kshot.inner.hyperparameters import BelowOne, NonNegative, Number, check_hyperparameters, sqrt
from kshot.inner.per_parameter import Rate
from kshot.inner.rules import Optimizer, Slot, mixed, moments, root


class Adamax(Optimizer):
    r"""Adam with the maximum norm.

    $$ m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad u \leftarrow \max(\beta_2 u, |g| + \epsilon), \quad
       \theta \leftarrow \theta - \frac{\alpha}{1 - \beta_1^k} \frac{m}{u} $$

    Args:
        inner_lr, betas, eps, weight_decay, maximize: as in `Adam`.

    Example:
        >>> rule, params = Adamax(0.5), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(7.0)}, rule.init(params), params)[0]["w"]
        tensor(0.5000)

    References:
        Kingma, Ba, arXiv:1412.6980, section 7.1. Equal to `torch.optim.Adamax`.
    """

    beta1: Number
    beta2: Number
    eps: Number

    @check_hyperparameters
    def __init__(
        self,
        inner_lr: Rate = 2e-3,
        *,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(inner_lr, weight_decay, maximize, beta1=betas[0], beta2=betas[1], eps=eps)

    def _update_one(self, value: Tensor, grad: Tensor, rate: Number, slot: Slot) -> tuple[Tensor, Slot]:
        count, size = slot.get("count", 0) + 1, grad.abs() + self.eps
        mean = mixed(self.beta1, slot.get("mean"), grad)
        norm = torch.maximum(self.beta2 * slot["norm"], size) if slot else size
        step = rate / (1 - self.beta1**count) * mean / norm
        return value - step, {"count": count, "mean": mean, "norm": norm}


class NAdam(Optimizer):
    r"""Adam with Nesterov momentum.

    $$ \mu_k = \beta_1 \bigl(1 - \tfrac12 0.96^{k \psi}\bigr), \qquad
       \theta \leftarrow \theta - \frac{\alpha}{\sqrt{v / (1 - \beta_2^k)} + \epsilon} \Bigl(
       \frac{(1 - \mu_k) g}{1 - \prod_{i \le k} \mu_i} + \frac{\mu_{k+1} m}{1 - \prod_{i \le k+1} \mu_i} \Bigr) $$

    with $m, v$ as in `Adam`.

    Args:
        inner_lr, betas, eps, weight_decay, maximize: as in `Adam`.
        momentum_decay: $\psi \ge 0$.
        decoupled_weight_decay: decay as in `AdamW`.

    Example:
        >>> rule, params = NAdam(0.5), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(7.0)}, rule.init(params), params)[0]["w"]
        tensor(0.4718)

    References:
        Dozat: Incorporating Nesterov Momentum into Adam, ICLR 2016 workshop. Equal to `torch.optim.NAdam`.
    """

    beta1: Number
    beta2: Number
    eps: Number
    momentum_decay: Number

    @check_hyperparameters
    def __init__(
        self,
        inner_lr: Rate = 2e-3,
        *,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.0,
        momentum_decay: NonNegative = 4e-3,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
    ) -> None:
        numbers: dict[str, Any] = {"beta1": betas[0], "beta2": betas[1], "eps": eps, "momentum_decay": momentum_decay}
        super().__init__(inner_lr, weight_decay, maximize, **numbers)
        self.decoupled = decoupled_weight_decay

    def _update_one(self, value: Tensor, grad: Tensor, rate: Number, slot: Slot) -> tuple[Tensor, Slot]:
        slot = moments(slot, grad, self.beta1, self.beta2)
        count = slot["count"]
        momentum, next_momentum = (
            self.beta1 * (1 - 0.5 * 0.96 ** (k * self.momentum_decay)) for k in (count, count + 1)
        )
        product = slot["product"] = slot.get("product", 1.0) * momentum
        scale = root(slot["square"]) / sqrt(1 - self.beta2**count) + self.eps
        step = (1 - momentum) / (1 - product) * grad + next_momentum / (1 - product * next_momentum) * slot["mean"]
        return value - rate * step / scale, slot


class RAdam(Optimizer):
    r"""Adam whose steps are rectified while its estimate of the variance rests on few gradients.

    $$ \theta \leftarrow \theta - \alpha \frac{m}{1 - \beta_1^k} \cdot \begin{cases}
       r_k \sqrt{1 - \beta_2^k} / (\sqrt v + \epsilon) & \rho_k > 5 \\ 1 & \text{else} \end{cases}, \qquad
       \rho_\infty = \frac{2}{1 - \beta_2} - 1, \quad \rho_k = \rho_\infty - \frac{2 k \beta_2^k}{1 - \beta_2^k}, $$

    $$ r_k^2 = \frac{(\rho_k - 4)(\rho_k - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_k}, $$

    with $m, v$ as in `Adam`.

    Args:
        inner_lr, betas, eps, weight_decay, maximize: as in `Adam`.
        decoupled_weight_decay: decay as in `AdamW`.

    Example:
        >>> rule, params = RAdam(0.5), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(1.0)}, rule.init(params), params)[0]["w"]
        tensor(0.5000)

    References:
        Liu et al.: On the Variance of the Adaptive Learning Rate and Beyond, arXiv:1908.03265. Equal to
        `torch.optim.RAdam`.
    """

    beta1: Number
    beta2: Number
    eps: Number

    @check_hyperparameters
    def __init__(
        self,
        inner_lr: Rate = 1e-3,
        *,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
    ) -> None:
        numbers: dict[str, Any] = {"beta1": betas[0], "beta2": betas[1], "eps": eps}
        super().__init__(inner_lr, weight_decay, maximize, **numbers)
        self.decoupled = decoupled_weight_decay

    def _update_one(self, value: Tensor, grad: Tensor, rate: Number, slot: Slot) -> tuple[Tensor, Slot]:
        slot = moments(slot, grad, self.beta1, self.beta2)
        step = slot["mean"] / (1 - self.beta1 ** slot["count"])
        return value - rate * step * self._rectified(slot["square"], slot["count"]), slot

    def _rectified(self, square: Tensor, count: int) -> Any:
        """$r_k \\sqrt{1 - \\beta_2^k} / (\\sqrt v + \\epsilon)$, or 1."""
        longest, bias2 = 2 / (1 - self.beta2) - 1, 1 - self.beta2**count
        length: Any = longest - 2 * count * self.beta2**count / bias2
        is_enough = length > 5
        if not isinstance(length, Tensor) and not is_enough:
            return 1.0
        if isinstance(length, Tensor):  # both cases are computed, with numbers that have a root
            length, longest = torch.where(is_enough, length, 6.0), torch.where(is_enough, longest, 6.0)
        ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        scale = sqrt(ratio) * sqrt(bias2) / (root(square) + self.eps)
        return torch.where(is_enough, scale, 1.0) if isinstance(length, Tensor) else scale
