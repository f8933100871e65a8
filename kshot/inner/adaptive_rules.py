"""Rules with rates per element or over time: Adagrad, Adadelta, Rprop and ASGD, equal to those of `torch.optim`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kshot.annotations import NonNegativeFloat
from kshot.inner.hyperparameters import (
    NonNegative,
    Number,
    Positive,
    UpToOne,
    check_hyperparameters,
    is_used,
    refuse_tensor,
)
from kshot.inner.per_parameter import Rate
from kshot.inner.rules import Optimizer, Slot, mixed, root


class Adagrad(Optimizer):
    r"""Gradients divided by the root of the sum of all their squares.

    $$ s \leftarrow s + g^2, \qquad \theta \leftarrow \theta - \frac{\alpha}{1 + (k - 1) \eta} \frac{g}{\sqrt s +
       \epsilon} $$

    Args:
        inner_lr, weight_decay, maximize: as in `SGD`.
        lr_decay: $\eta \ge 0$.
        initial_accumulator_value: $s \ge 0$ before the first step.
        eps: $\epsilon$.

    Example:
        >>> rule, params = Adagrad(0.5), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(7.0)}, rule.init(params), params)[0]["w"]
        tensor(0.5000)

    References:
        Duchi, Hazan, Singer: Adaptive Subgradient Methods, JMLR 2011. Equal to `torch.optim.Adagrad`.
    """

    lr_decay: Number
    initial_accumulator_value: Number
    eps: Number

    @check_hyperparameters
    def __init__(
        self,
        inner_lr: Rate = 1e-2,
        *,
        lr_decay: NonNegative = 0.0,
        weight_decay: NonNegative = 0.0,
        initial_accumulator_value: NonNegative = 0.0,
        eps: NonNegative = 1e-10,
        maximize: bool = False,
    ) -> None:
        numbers: dict[str, Any] = {
            "lr_decay": lr_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
        }
        super().__init__(inner_lr, weight_decay, maximize, **numbers)

    def _update_one(self, value: Tensor, grad: Tensor, rate: Number, slot: Slot) -> tuple[Tensor, Slot]:
        count, total = slot.get("count", 0), slot.get("sum", self.initial_accumulator_value) + grad * grad
        step = rate / (1 + count * self.lr_decay) * grad / (root(total) + self.eps)
        return value - step, {"count": count + 1, "sum": total}


class Adadelta(Optimizer):
    r"""Steps whose size is the running size of earlier steps over that of the gradients.

    $$ v \leftarrow \rho v + (1 - \rho) g^2, \quad d = \frac{\sqrt{u + \epsilon}}{\sqrt{v + \epsilon}} g, \quad
       u \leftarrow \rho u + (1 - \rho) d^2, \quad \theta \leftarrow \theta - \alpha d $$

    Args:
        inner_lr, weight_decay, maximize: as in `SGD`.
        rho: $\rho$, from 0 to 1.
        eps: $\epsilon > 0$.

    Example:
        >>> rule, params = Adadelta(rho=0.0, eps=1.0), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(0.75)}, rule.init(params), params)[0]["w"]
        tensor(0.4000)

    References:
        Zeiler: ADADELTA, arXiv:1212.5701. Equal to `torch.optim.Adadelta`, which also takes $\epsilon = 0$: no step
        would ever differ from 0.
    """

    rho: Number
    eps: Number

    @check_hyperparameters
    def __init__(
        self,
        inner_lr: Rate = 1.0,
        *,
        rho: UpToOne = 0.9,
        eps: Positive = 1e-6,
        weight_decay: NonNegative = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(inner_lr, weight_decay, maximize, rho=rho, eps=eps)

    def _update_one(self, value: Tensor, grad: Tensor, rate: Number, slot: Slot) -> tuple[Tensor, Slot]:
        square = mixed(self.rho, slot.get("square"), grad * grad)
        last = slot["step_square"] if slot else torch.zeros_like(grad)
        step = (last + self.eps).sqrt() / (square + self.eps).sqrt() * grad
        return value - rate * step, {"square": square, "step_square": mixed(self.rho, last, step * step)}


class Rprop(Optimizer):
    r"""Resilient backpropagation: steps by the signs of gradients, longer while a sign stays, shorter when it changes.

    $$ \alpha \leftarrow \min(\max(\alpha \eta, \alpha_{\min}), \alpha_{\max}), \quad \eta = \begin{cases}
       \eta_+ & g g_{-1} > 0 \\ \eta_- & g g_{-1} < 0 \\ 1 & \text{else} \end{cases}, \qquad
       \theta \leftarrow \theta - \alpha \operatorname{sgn} g $$

    After a change of the sign $g$ is set to 0. The step does not depend on the size of the gradient, so that
    $d\theta_K / d\theta_0 = I$ wherever it exists, also without approximation.

    Args:
        inner_lr: $\alpha$ at the first gradient of a parameter; later rates of a `LearnedRate` are not used.
        etas: $0 < \eta_- < 1 < \eta_+$.
        step_sizes: $\alpha_{\min}, \alpha_{\max}$.
        maximize: as in `SGD`.

    Example:
        >>> rule, params = Rprop(0.5), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(7.0)}, rule.init(params), params)[0]["w"]
        tensor(0.5000)

    References:
        Riedmiller, Braun: A direct adaptive method for faster backpropagation learning, 1993. Equal to
        `torch.optim.Rprop`.
    """

    eta_minus: Number
    eta_plus: Number
    min_step: Number
    max_step: Number

    @check_hyperparameters
    def __init__(
        self,
        inner_lr: Rate = 1e-2,
        *,
        etas: tuple[Positive, Positive] = (0.5, 1.2),
        step_sizes: tuple[NonNegative, NonNegative] = (1e-6, 50.0),
        maximize: bool = False,
    ) -> None:
        if not etas[0] < 1 < etas[1]:
            raise ValueError(f"etas must be below 1 and above 1, got {etas[0]} and {etas[1]}")
        if not step_sizes[0] <= step_sizes[1]:
            raise ValueError(f"step_sizes must be a smallest and a largest size, got {step_sizes[0]}, {step_sizes[1]}")
        numbers: dict[str, Any] = {
            "eta_minus": etas[0],
            "eta_plus": etas[1],
            "min_step": step_sizes[0],
            "max_step": step_sizes[1],
        }
        super().__init__(inner_lr, 0.0, maximize, **numbers)

    def _update_one(self, value: Tensor, grad: Tensor, rate: Number, slot: Slot) -> tuple[Tensor, Slot]:
        size = slot["size"] if slot else torch.ones_like(grad) * rate
        sign = (grad * slot["grad"]).sign() if slot else torch.zeros_like(grad)
        factor = torch.where(sign > 0, self.eta_plus, torch.where(sign < 0, self.eta_minus, torch.ones_like(grad)))
        size = (size * factor).clamp(min=self.min_step).clamp(max=self.max_step)
        grad = torch.where(sign < 0, 0.0, grad)
        return value - grad.sign() * size, {"grad": grad, "size": size}


class ASGD(Optimizer):
    r"""Averaged gradient descent: rates that fall over time, and a mean of the parameters.

    $$ \theta \leftarrow (1 - \lambda_0 \eta_k) \theta - \eta_k g, \qquad
       \eta_k = \frac{\alpha}{(1 + \lambda_0 \alpha k)^{a}}, \qquad
       \bar\theta \leftarrow \bar\theta + \frac{\theta - \bar\theta}{\max(1, k - t_0)}, \qquad k = 0, 1, … $$

    As in torch, the parameters are $\theta$. The mean $\bar\theta$ of a parameter is `state["slots"][name]["average"]`.

    Args:
        inner_lr, weight_decay, maximize: as in `SGD`.
        lambd: $\lambda_0 \ge 0$, a further decay of the parameters, and of the rate.
        alpha: $a \ge 0$.
        t0: $t_0 \ge 0$, the step after which parameters are averaged.

    Example:
        >>> rule, params = ASGD(0.5, lambd=0.0, t0=0), {"w": torch.tensor(1.0)}
        >>> state = rule.init(params)
        >>> for _ in range(3):
        ...     params, state = rule.update({"w": torch.tensor(1.0)}, state, params)
        >>> params["w"], state["slots"]["w"]["average"]  # the mean of the last two
        (tensor(-0.5000), tensor(-0.2500))

    References:
        Polyak, Juditsky: Acceleration of stochastic approximation by averaging, 1992. Equal to `torch.optim.ASGD`.
    """

    lambd: Number
    alpha: Number
    t0: float

    @check_hyperparameters
    def __init__(
        self,
        inner_lr: Rate = 1e-2,
        *,
        lambd: NonNegative = 1e-4,
        alpha: NonNegative = 0.75,
        t0: NonNegativeFloat = 1e6,
        weight_decay: NonNegative = 0.0,
        maximize: bool = False,
    ) -> None:
        refuse_tensor(t0=t0)
        super().__init__(inner_lr, weight_decay, maximize, lambd=lambd, alpha=alpha, t0=t0)

    @property
    def decays(self) -> bool:
        return is_used(self.lambd) or super().decays

    def _update_one(self, value: Tensor, grad: Tensor, rate: Number, slot: Slot) -> tuple[Tensor, Slot]:
        count = slot.get("count", 0)
        rate = rate / (1 + self.lambd * rate * count) ** self.alpha
        value = value * (1 - self.lambd * rate) - rate * grad
        average = slot["average"] + (value - slot["average"]) / max(1.0, count - self.t0) if slot else value
        return value, {"count": count + 1, "average": average}
