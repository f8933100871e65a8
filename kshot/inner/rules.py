"""Update rules, each a step of the inner optimisation, and transforms of gradients. Parameters are meta-parameters.

`init` returns the state for a set of parameters; `update` computes new parameters from gradients. Both are pure, so a
rule can be differentiated through and run under `vmap`. The number of the step, if needed, is an int in the state. The
optimisers of this file equal those of `torch.optim` step by step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from kshot.annotations import FractionBelowOne, NonNegativeFloat, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.per_parameter import Rate, rate_at
from kshot.types import Params, Tree


class UpdateRule(nn.Module, ABC):
    """One step of inner optimisation as a pure function."""

    def init(self, params: Params) -> Tree:
        """The state before the first step; empty by default."""
        return ()

    @abstractmethod
    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        """Return new parameters and the new state, from the gradients at `params`."""


class SGD(UpdateRule):
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

    Example:
        >>> rule, params = SGD(0.5), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(2.0)}, rule.init(params), params)[0]["w"]
        tensor(0.)

    References:
        Equal to `torch.optim.SGD`.
    """

    @check_arguments
    def __init__(
        self,
        inner_lr: Rate,
        *,
        momentum: NonNegativeFloat = 0.0,
        nesterov: bool = False,
        dampening: float = 0.0,
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError(f"nesterov needs momentum above 0 and dampening 0, got {momentum} and {dampening}")
        self.inner_lr, self.momentum, self.nesterov = inner_lr, momentum, nesterov
        self.dampening, self.weight_decay = dampening, weight_decay

    def init(self, params: Params) -> Tree:
        return {"step": 0}

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        steps, new = _decayed(grads, params, self.weight_decay), {"step": state["step"] + 1}
        if self.momentum:
            first = state["step"] == 0
            buffer = steps if first else _mix(self.momentum, state["momentum"], 1 - self.dampening, steps)
            new["momentum"] = buffer
            steps = {n: steps[n] + self.momentum * buffer[n] for n in steps} if self.nesterov else buffer
        return _descend(params, self.inner_lr, state["step"], steps), new


class Adam(UpdateRule):
    r"""Adam with optional weight decay $\lambda$ as an L2 penalty.

    $$ g = \nabla L(\theta) + \lambda \theta, \quad m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
       v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
       \theta \leftarrow \theta - \alpha \frac{m / (1 - \beta_1^k)}{\sqrt{v / (1 - \beta_2^k)} + \epsilon} $$

    The derivative of $\sqrt v$ at $v = 0$, of a parameter that has had no gradient, is defined as 0.

    Args:
        inner_lr, weight_decay: as in `SGD`.
        betas, eps: $\beta_1, \beta_2$, each in [0, 1), and $\epsilon$.

    Example:
        >>> rule, params = Adam(0.5), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(7.0)}, rule.init(params), params)[0]["w"]
        tensor(0.5000)

    References:
        Kingma, Ba, arXiv:1412.6980. Equal to `torch.optim.Adam`.
    """

    @check_arguments
    def __init__(
        self,
        inner_lr: Rate = 1e-3,
        *,
        betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.999),
        eps: NonNegativeFloat = 1e-8,
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        self.inner_lr, self.betas, self.eps, self.weight_decay = inner_lr, betas, eps, weight_decay

    def init(self, params: Params) -> Tree:
        return {"step": 0, "mean": _zeros(params), "square": _zeros(params)}

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        steps, new = _adam_steps(_decayed(grads, params, self.weight_decay), state, self.betas, self.eps)
        return _descend(params, self.inner_lr, state["step"], steps), new


class AdamW(UpdateRule):
    r"""Adam whose weight decay is decoupled from the gradient: as `Adam` with $\lambda = 0$, after

    $$ \theta \leftarrow \theta - \alpha \lambda \theta. $$

    Args:
        inner_lr, betas, eps, weight_decay: as in `Adam`.

    Example:
        >>> rule, params = AdamW(0.5, weight_decay=0.1), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(7.0)}, rule.init(params), params)[0]["w"]
        tensor(0.4500)

    References:
        Loshchilov, Hutter, arXiv:1711.05101. Equal to `torch.optim.AdamW`.
    """

    @check_arguments
    def __init__(
        self,
        inner_lr: Rate = 1e-3,
        *,
        betas: tuple[FractionBelowOne, FractionBelowOne] = (0.9, 0.999),
        eps: NonNegativeFloat = 1e-8,
        weight_decay: NonNegativeFloat = 1e-2,
    ) -> None:
        super().__init__()
        self.inner_lr, self.betas, self.eps, self.weight_decay = inner_lr, betas, eps, weight_decay

    def init(self, params: Params) -> Tree:
        return {"step": 0, "mean": _zeros(params), "square": _zeros(params)}

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        steps, new = _adam_steps(grads, state, self.betas, self.eps)
        rates = {n: rate_at(self.inner_lr, n, state["step"]) for n in params}
        return {n: v * (1 - rates[n] * self.weight_decay) - rates[n] * steps[n] for n, v in params.items()}, new


class RMSprop(UpdateRule):
    r"""RMSprop: gradients scaled by a running root mean square, optionally centred and with momentum $\mu$.

    $$ g = \nabla L(\theta) + \lambda \theta, \quad v \leftarrow \rho v + (1 - \rho) g^2, \quad
       b \leftarrow \mu b + \frac{g}{\sqrt{v - \bar g^2} + \epsilon}, \quad \theta \leftarrow \theta - \alpha b $$

    with $\bar g \leftarrow \rho \bar g + (1 - \rho) g$ if centred, else 0. The derivative of the root at 0 is
    defined as 0.

    Args:
        inner_lr, momentum, weight_decay: as in `SGD`.
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

    @check_arguments
    def __init__(
        self,
        inner_lr: Rate = 1e-2,
        *,
        smoothing: FractionBelowOne = 0.99,
        eps: NonNegativeFloat = 1e-8,
        momentum: NonNegativeFloat = 0.0,
        centered: bool = False,
        weight_decay: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__()
        self.inner_lr, self.smoothing, self.eps = inner_lr, smoothing, eps
        self.momentum, self.centered, self.weight_decay = momentum, centered, weight_decay

    def init(self, params: Params) -> Tree:
        state: dict[str, Tree] = {"step": 0, "square": _zeros(params)}
        if self.centered:
            state["mean"] = _zeros(params)
        if self.momentum:
            state["momentum"] = _zeros(params)
        return state

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        rho, grads = self.smoothing, _decayed(grads, params, self.weight_decay)
        variance = _mix(rho, state["square"], 1 - rho, {n: g * g for n, g in grads.items()})
        new = {"step": state["step"] + 1, "square": variance}
        if self.centered:
            new["mean"] = _mix(rho, state["mean"], 1 - rho, grads)
            variance = {n: variance[n] - new["mean"][n].square() for n in variance}
        steps = {n: g / (root(variance[n]) + self.eps) for n, g in grads.items()}
        if self.momentum:
            steps = new["momentum"] = _mix(self.momentum, state["momentum"], 1.0, steps)
        return _descend(params, self.inner_lr, state["step"], steps), new


class Transform(nn.Module, ABC):
    """A pure function from gradients to gradients. Its Parameters are meta-parameters."""

    def init(self, params: Params) -> Tree:
        """The state before the first step; empty by default."""
        return ()

    @abstractmethod
    def apply_to(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        """Return new gradients and the new state, from the gradients at `params`."""


class ClipNorm(Transform):
    r"""Scale down all gradients together so that their global norm is at most $c$.

    $$ g \leftarrow g \cdot \min\Bigl(1, \frac{c}{\lVert g \rVert_2}\Bigr) $$

    Args:
        max_norm: $c > 0$.

    Example:
        >>> ClipNorm(1.0).apply_to({"w": torch.tensor([3.0, 4.0])}, (), {})[0]["w"]
        tensor([0.6000, 0.8000])

    References:
        Pascanu, Mikolov, Bengio, arXiv:1211.5063. `torch.nn.utils.clip_grad_norm_` adds 1e-6 to the norm; this adds 0.
    """

    @check_arguments
    def __init__(self, max_norm: PositiveFloat) -> None:
        super().__init__()
        self.max_norm = max_norm

    def apply_to(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        wide = torch.promote_types(torch.float32, next(iter(grads.values())).dtype)
        norm = root(torch.stack([grad.to(wide).square().sum() for grad in grads.values()]).sum())
        scale = torch.where(norm > self.max_norm, self.max_norm / norm.clamp_min(self.max_norm), 1.0)
        return {name: grad * scale.to(grad.dtype) for name, grad in grads.items()}, state


class Chain(UpdateRule):
    r"""Transforms applied in order, then a rule: $\theta' = \text{rule}(t_m(\dots t_1(\nabla L(\theta))))$.

    Args:
        parts: any number of transforms, then one rule; other parts raise ValueError.

    Example:
        >>> rule, params = Chain(ClipNorm(1.0), SGD(0.5)), {"w": torch.tensor(1.0)}
        >>> rule.update({"w": torch.tensor(8.0)}, rule.init(params), params)[0]["w"]
        tensor(0.5000)
    """

    def __init__(self, *parts: Transform | UpdateRule) -> None:
        super().__init__()
        *transforms, rule = parts or (None,)
        if not isinstance(rule, UpdateRule) or not all(isinstance(part, Transform) for part in transforms):
            kinds = ", ".join(type(part).__name__ for part in parts) or "nothing"
            raise ValueError(f"a chain is any number of transforms followed by one rule, got: {kinds}")
        self.transforms, self.rule = nn.ModuleList(transforms), rule

    def init(self, params: Params) -> Tree:
        return [transform.init(params) for transform in self.transforms], self.rule.init(params)  # type: ignore[operator]

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        transform_states, rule_state = state
        new_states = []
        for transform, transform_state in zip(self.transforms, transform_states):
            grads, new_state = transform.apply_to(grads, transform_state, params)  # type: ignore[operator]
            new_states.append(new_state)
        params, rule_state = self.rule.update(grads, rule_state, params)
        return params, (new_states, rule_state)


class Accumulate(UpdateRule):
    r"""Average $m$ gradients before each step of a rule, so that $m$ small batches act as one large batch.

    $$ \theta_{k+1} = \begin{cases} \text{rule}\bigl(\tfrac1m \sum_{j=0}^{m-1} g_{k-j}, \theta_k\bigr) &
       m \text{ divides } k + 1 \\ \theta_k & \text{else} \end{cases} $$

    Args:
        rule: the update rule.
        every: $m$, gradients per step of the rule; the solver needs $m$ times as many steps.

    Example:
        >>> rule, params = Accumulate(SGD(1.0), every=2), {"w": torch.tensor(5.0)}
        >>> state = rule.init(params)
        >>> for grad in (1.0, 3.0):
        ...     params, state = rule.update({"w": torch.tensor(grad)}, state, params)
        >>> params["w"]
        tensor(3.)
    """

    @check_arguments
    def __init__(self, rule: UpdateRule, every: PositiveInt) -> None:
        super().__init__()
        self.rule, self.every = rule, every

    def init(self, params: Params) -> Tree:
        return {"count": 0, "sum": {}, "rule": self.rule.init(params)}

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        count, partial_sum = state["count"] + 1, state["sum"]
        total = {name: partial_sum[name] + grad for name, grad in grads.items()} if partial_sum else grads
        if count < self.every:
            return params, {"count": count, "sum": total, "rule": state["rule"]}
        mean = {name: grad / self.every for name, grad in total.items()}
        params, rule_state = self.rule.update(mean, state["rule"], params)
        return params, {"count": 0, "sum": {}, "rule": rule_state}


def root(values: Tensor) -> Tensor:
    """Square root of positive values, else 0, where the derivative is 0 instead of infinite."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), 0.0)


def _adam_steps(grads: Params, state: Tree, betas: tuple[float, float], eps: float) -> tuple[Params, Tree]:
    (beta1, beta2), count = betas, state["step"] + 1
    mean = _mix(beta1, state["mean"], 1 - beta1, grads)
    square = _mix(beta2, state["square"], 1 - beta2, {n: g * g for n, g in grads.items()})
    bias1, bias2 = 1 - beta1**count, math.sqrt(1 - beta2**count)
    steps = {n: mean[n] / bias1 / (root(square[n]) / bias2 + eps) for n in grads}
    return steps, {"step": count, "mean": mean, "square": square}


def _descend(params: Params, inner_lr: Rate, step: int, steps: Params) -> Params:
    return {n: value - rate_at(inner_lr, n, step) * steps[n] if n in steps else value for n, value in params.items()}


def _mix(a: float, x: Params, b: float, y: Params) -> Params:
    return {name: a * x[name] + b * y[name] for name in y}


def _decayed(grads: Params, params: Params, weight_decay: float) -> Params:
    return {n: g + weight_decay * params[n] for n, g in grads.items()} if weight_decay else grads


def _zeros(params: Params) -> Params:
    return {name: torch.zeros_like(value) for name, value in params.items()}
