"""Transforms of gradients before a rule, and combinations: chains, and accumulation over batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import reduce

import torch
from torch import Tensor, nn

from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.hyperparameters import Number, Positive, check_hyperparameters, keep_hyperparameters
from kshot.inner.rules import UpdateRule, root
from kshot.types import Params, Tree


class Transform(nn.Module, ABC):
    """A pure function from gradients to gradients. Its Parameters are meta-parameters."""

    def init(self, params: Params) -> Tree:
        """The state before the first step; empty by default."""
        return ()

    @abstractmethod
    def apply_to(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        """Return new gradients and the new state, from the gradients at `params`; `grads` may omit unused ones."""


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

    max_norm: Number

    @check_hyperparameters
    def __init__(self, max_norm: Positive) -> None:
        super().__init__()
        keep_hyperparameters(self, {"max_norm": max_norm})

    def apply_to(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        if not grads:
            return grads, state
        wide = reduce(torch.promote_types, {grad.abs().dtype for grad in grads.values()}, torch.float32)
        norm = root(torch.stack([grad.abs().to(wide).square().sum() for grad in grads.values()]).sum())
        scale = torch.where(norm > self.max_norm, self.max_norm / norm.clamp_min(self.max_norm), 1.0)
        return {name: grad * scale.to(grad.dtype) for name, grad in grads.items()}, state


class ClipValue(Transform):
    r"""Limit each element of the gradients to $[-c, c]$.

    $$ g \leftarrow \min(\max(g, -c), c) $$

    The derivative by a clipped element is 0.

    Args:
        max_value: $c > 0$; torch's `clip_value`.

    Example:
        >>> ClipValue(1.0).apply_to({"w": torch.tensor([3.0, -0.5])}, (), {})[0]["w"]
        tensor([ 1.0000, -0.5000])

    References:
        Equal to `torch.nn.utils.clip_grad_value_`; elements of complex gradients are limited in both components.
    """

    max_value: Number

    @check_hyperparameters
    def __init__(self, max_value: Positive) -> None:
        super().__init__()
        keep_hyperparameters(self, {"max_value": max_value})

    def apply_to(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        return {name: self._clipped(grad) for name, grad in grads.items()}, state

    def _clipped(self, grad: Tensor) -> Tensor:
        if grad.is_complex():
            return torch.view_as_complex(self._clipped(torch.view_as_real(grad)))
        return grad.clamp(min=-self.max_value).clamp(max=self.max_value).to(grad.dtype)


class Chain(UpdateRule):
    r"""Transforms applied in order, then a rule: $\theta' = \text{rule}(t_m(\dots t_1(\nabla L(\theta))))$.

    Args:
        parts: any number of transforms, then one rule; other parts raise ValueError.

    Example:
        >>> rule, params = Chain(ClipNorm(1.0), kshot.inner.SGD(0.5)), {"w": torch.tensor(1.0)}
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
        >>> rule, params = Accumulate(kshot.inner.SGD(1.0), every=2), {"w": torch.tensor(5.0)}
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
        total = partial_sum | {n: partial_sum[n] + grad if n in partial_sum else grad for n, grad in grads.items()}
        if count < self.every:
            return params, {"count": count, "sum": total, "rule": state["rule"]}
        mean = {name: grad / self.every for name, grad in total.items()}
        params, rule_state = self.rule.update(mean, state["rule"], params)
        return params, {"count": 0, "sum": {}, "rule": rule_state}
