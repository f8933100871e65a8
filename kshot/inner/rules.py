"""Update rules: how one inner step moves the parameters. A rule's Parameters are meta-parameters.

The interface is that of a gradient transformation: `init` makes the rule's state for a set of parameters, `update`
takes gradients to new parameters. Both are pure, so a rule can be differentiated through, and run under `vmap`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from kshot.types import Params, Tree


class UpdateRule(nn.Module, ABC):
    """One step of inner optimisation as a pure function."""

    def init(self, params: Params) -> Tree:
        """The rule's state before the first step; nothing by default."""
        return ()

    @abstractmethod
    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        """New parameters and new state from the gradients at `params`."""


class SGD(UpdateRule):
    r"""Gradient descent, $\theta' = \theta - \alpha \nabla L(\theta)$.

    Args:
        inner_lr: the rate $\alpha > 0$.

    Example:
        >>> params, _ = SGD(0.5).update({"w": torch.tensor(2.0)}, (), {"w": torch.tensor(1.0)})
        >>> params["w"]
        tensor(0.)
    """

    def __init__(self, inner_lr: float) -> None:
        super().__init__()
        if not inner_lr > 0:
            raise ValueError(f"inner_lr must be above 0, got {inner_lr}")
        self.inner_lr = inner_lr

    def update(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        return {name: value - self.inner_lr * grads[name] for name, value in params.items()}, state
