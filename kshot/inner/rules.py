"""Update rules, each a step of the inner optimisation. Their Parameters are meta-parameters.

`init` returns the state for a set of parameters; `update` computes new parameters from gradients. Both are pure, so a
rule can be differentiated through and run under `vmap`. A parameter whose name the gradients omit was not used by the
loss: it stays as it is, with its state, also under weight decay.

The optimisers of this file, of `adam_variants` and of `adaptive_rules` equal those of `torch.optim` step by step. Each
hyperparameter is a number, or a tensor of shape () through which derivatives go; a Parameter is registered and learned.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from kshot.inner.hyperparameters import (
    BelowOne,
    NonNegative,
    Number,
    check_hyperparameters,
    is_used,
    keep_hyperparameters,
    sqrt,
)
from kshot.inner.per_parameter import Rate
from kshot.types import Params, Tree

Slot = dict[str, Any]
"""The state of one parameter: tensors and numbers; empty before its first gradient."""


class UpdateRule(nn.Module, ABC):
    """One step of inner optimisation as a pure function."""

    def init(self, params: Params) -> Tree:
        """The state before the first step; empty by default."""
        return ()

    @abstractmethod
    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        """Return new parameters and the new state, from the gradients at `params`.

        Parameters that `grads` omits stay as they are.
        """


class Optimizer(UpdateRule):
    r"""A rule that updates each parameter by its own gradient and state, as the optimisers of `torch.optim` do.

    The state of a parameter begins at its first gradient, and counts the steps in which it has one. Complex parameters
    are pairs of real ones. A subclass implements `_update_one`.

    Args:
        inner_lr: rate of a step; a per-step `LearnedRate` counts all steps of the rule, also those without a gradient.
        weight_decay: $\lambda$.
        maximize: ascend instead of descend: the gradients change their sign before all else.
        hyperparameters: further numbers or tensors, which become attributes.
    """

    inner_lr: Rate
    weight_decay: Number

    def __init__(self, inner_lr: Rate, weight_decay: Number, maximize: bool, **hyperparameters: Any) -> None:
        super().__init__()
        keep_hyperparameters(self, {"inner_lr": inner_lr, "weight_decay": weight_decay, **hyperparameters})
        self.maximize, self.decoupled, self._decays = maximize, False, is_used(weight_decay)

    @property
    def decays(self) -> bool:
        """Whether the rule pulls parameters to 0, and so does not end at a minimum of the loss."""
        return self._decays

    def init(self, params: Params) -> Tree:
        return {"step": 0, "slots": {}}

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        step, slots, new = state["step"], dict(state["slots"]), dict(params)
        rates, update_one = self.inner_lr, self._update_one
        varies = callable(rates)
        for name, grad in grads.items():
            param = value = params[name]
            rate: Number = rates(name, step) if varies else rates  # type: ignore[operator, assignment]
            if param.is_complex():
                value, grad = torch.view_as_real(value), torch.view_as_real(grad)
                rate = rate.unsqueeze(-1) if isinstance(rate, Tensor) and rate.ndim else rate
            if self.maximize:
                grad = -grad
            if self._decays and self.decoupled:
                value = value * (1 - rate * self.weight_decay)
            elif self._decays:
                grad = grad + self.weight_decay * value
            value, slot = update_one(value, grad, rate, slots.get(name, _EMPTY))
            if slot:
                slots[name] = slot
            if param.is_complex():
                value = torch.view_as_complex(value)
            # a tensor of another dtype wins over a parameter of shape ()
            new[name] = value if value.dtype == param.dtype else value.to(param.dtype)
        return new, {"step": step + 1, "slots": slots}

    @abstractmethod
    def _update_one(self, value: Tensor, grad: Tensor, rate: Number, slot: Slot) -> tuple[Tensor, Slot]:
        """Return one parameter's new value and state, after the sign and the weight decay were taken into account."""


_EMPTY: Slot = {}


class SGD(Optimizer):
    r"""Gradient descent with optional momentum $\mu$ and weight decay $\lambda$.

    $$ g_k = \nabla L(\theta_k) + \lambda \theta_k, \quad b_0 = g_0, \quad b_k = \mu b_{k-1} + (1 - \tau) g_k, \quad
       \theta_{k+1} = \theta_k - \alpha \begin{cases} g_k + \mu b_k & \text{nesterov} \\ b_k & \text{else}
       \end{cases} $$

    Args:
        inner_lr: the rate $\alpha > 0$, or a `LearnedRate`.
        momentum: $\mu \ge 0$.
        nesterov: use Nesterov momentum; needs momentum above 0 and no dampening.
        dampening: $\tau$, dampening of the gradients after the first step.
        weight_decay: $\lambda \ge 0$; an L2 penalty, added to the gradient.
        maximize: ascend, with $-\nabla L$ instead of $\nabla L$.

    Example:
        >>> rule, params = SGD(0.5), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(2.0)}, rule.init(params), params)[0]["w"]
        tensor(0.)

    References:
        Equal to `torch.optim.SGD`.
    """

    momentum: Number
    dampening: Number

    @check_hyperparameters
    def __init__(
        self,
        inner_lr: Rate,
        *,
        momentum: NonNegative = 0.0,
        nesterov: bool = False,
        dampening: Number = 0.0,
        weight_decay: NonNegative = 0.0,
        maximize: bool = False,
    ) -> None:
        if nesterov and (not is_used(momentum) or is_used(dampening)):
            raise ValueError(f"nesterov needs momentum above 0 and dampening 0, got {momentum} and {dampening}")
        super().__init__(inner_lr, weight_decay, maximize, momentum=momentum, dampening=dampening)
        self.nesterov, self._has_momentum = nesterov, is_used(momentum)

    def _update_one(self, value: Tensor, grad: Tensor, rate: Number, slot: Slot) -> tuple[Tensor, Slot]:
        if not self._has_momentum:
            return value - rate * grad, slot
        buffer = self.momentum * slot["momentum"] + (1 - self.dampening) * grad if slot else grad
        return value - rate * (grad + self.momentum * buffer if self.nesterov else buffer), {"momentum": buffer}


class Adam(Optimizer):
    r"""Adam with optional weight decay $\lambda$ as an L2 penalty.

    $$ g = \nabla L(\theta) + \lambda \theta, \quad m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
       v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
       \theta \leftarrow \theta - \alpha \frac{m / (1 - \beta_1^k)}{\sqrt{v / (1 - \beta_2^k)} + \epsilon} $$

    The derivative of $\sqrt v$ at $v = 0$, of a parameter whose gradients were 0, is defined as 0.

    Args:
        inner_lr, weight_decay, maximize: as in `SGD`.
        betas, eps: $\beta_1, \beta_2$, each in [0, 1), and $\epsilon$.
        amsgrad: divide by the largest $v$ so far.

    Example:
        >>> rule, params = Adam(0.5), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(7.0)}, rule.init(params), params)[0]["w"]
        tensor(0.5000)

    References:
        Kingma, Ba, arXiv:1412.6980; Reddi, Kale, Kumar, arXiv:1904.09237 (AMSGrad). Equal to `torch.optim.Adam`.
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
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(inner_lr, weight_decay, maximize, beta1=betas[0], beta2=betas[1], eps=eps)
        self.amsgrad = amsgrad

    def _update_one(self, value: Tensor, grad: Tensor, rate: Number, slot: Slot) -> tuple[Tensor, Slot]:
        slot = moments(slot, grad, self.beta1, self.beta2)
        square = slot["square"]
        if self.amsgrad:
            square = slot["largest"] = larger(slot.get("largest"), square)
        bias1, bias2 = 1 - self.beta1 ** slot["count"], sqrt(1 - self.beta2 ** slot["count"])
        return value - rate * (slot["mean"] / bias1 / (root(square) / bias2 + self.eps)), slot


class AdamW(Adam):
    r"""Adam whose weight decay is decoupled from the gradient: as `Adam` with $\lambda = 0$, after

    $$ \theta \leftarrow \theta - \alpha \lambda \theta. $$

    Args:
        inner_lr, betas, eps, weight_decay, amsgrad, maximize: as in `Adam`.

    Example:
        >>> rule, params = AdamW(0.5, weight_decay=0.1), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(7.0)}, rule.init(params), params)[0]["w"]
        tensor(0.4500)

    References:
        Loshchilov, Hutter, arXiv:1711.05101. Equal to `torch.optim.AdamW`.
    """

    @check_hyperparameters
    def __init__(
        self,
        inner_lr: Rate = 1e-3,
        *,
        betas: tuple[BelowOne, BelowOne] = (0.9, 0.999),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 1e-2,
        amsgrad: bool = False,
        maximize: bool = False,
    ) -> None:
        super().__init__(inner_lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize)
        self.decoupled = True


class RMSprop(Optimizer):
    r"""RMSprop: gradients scaled by a running root mean square, optionally centred and with momentum $\mu$.

    $$ g = \nabla L(\theta) + \lambda \theta, \quad v \leftarrow \rho v + (1 - \rho) g^2, \quad
       b \leftarrow \mu b + \frac{g}{\sqrt{v - \bar g^2} + \epsilon}, \quad \theta \leftarrow \theta - \alpha b $$

    with $\bar g \leftarrow \rho \bar g + (1 - \rho) g$ if centred, else 0. The derivative of the root at 0 is
    defined as 0.

    Args:
        inner_lr, momentum, weight_decay, maximize: as in `SGD`.
        smoothing: $\rho$, in [0, 1); torch's `alpha`.
        eps: $\epsilon$.
        centered: subtract the squared running mean.

    Example:
        >>> rule, params = RMSprop(0.1, smoothing=0.0), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(7.0)}, rule.init(params), params)[0]["w"]
        tensor(0.9000)

    References:
        Graves, arXiv:1308.0850 (centred). Equal to `torch.optim.RMSprop`.
    """

    smoothing: Number
    eps: Number
    momentum: Number

    @check_hyperparameters
    def __init__(
        self,
        inner_lr: Rate = 1e-2,
        *,
        smoothing: BelowOne = 0.99,
        eps: NonNegative = 1e-8,
        momentum: NonNegative = 0.0,
        centered: bool = False,
        weight_decay: NonNegative = 0.0,
        maximize: bool = False,
    ) -> None:
        super().__init__(inner_lr, weight_decay, maximize, smoothing=smoothing, eps=eps, momentum=momentum)
        self.centered, self._has_momentum = centered, is_used(momentum)

    def _update_one(self, value: Tensor, grad: Tensor, rate: Number, slot: Slot) -> tuple[Tensor, Slot]:
        new = {"square": mixed(self.smoothing, slot.get("square"), grad * grad)}
        variance = new["square"]
        if self.centered:
            new["mean"] = mixed(self.smoothing, slot.get("mean"), grad)
            variance = variance - new["mean"].square()
        step = grad / (root(variance) + self.eps)
        if self._has_momentum:
            step = new["momentum"] = self.momentum * slot["momentum"] + step if slot else step
        return value - rate * step, new


def root(values: Tensor) -> Tensor:
    """Square root of positive values, else 0, where the derivative is 0 instead of infinite."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)


def mixed(keep: Number, old: Tensor | None, new: Tensor) -> Tensor:
    """The running mean of weight `keep`, which begins at 0."""
    return (1 - keep) * new if old is None else keep * old + (1 - keep) * new


def moments(slot: Slot, grad: Tensor, beta1: Number, beta2: Number) -> Slot:
    """The running means of a gradient and of its square, not corrected for their start at 0, and the count of steps."""
    return {
        **slot,
        "count": slot.get("count", 0) + 1,
        "mean": mixed(beta1, slot.get("mean"), grad),
        "square": mixed(beta2, slot.get("square"), grad * grad),
    }


def larger(old: Tensor | None, new: Tensor) -> Tensor:
    return new if old is None else torch.maximum(old, new)
