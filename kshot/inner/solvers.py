"""Solvers: how the inner problem is solved, and how its solution is differentiated.

A solver owns the definition of d(adapted)/d(meta-parameters): `Unrolled` is exact, `FirstOrder` is an approximation
that is asked for by its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kshot.inner.rules import UpdateRule
from kshot.types import Params

Loss = Callable[[Params], Tensor]


class InnerSolver(nn.Module, ABC):
    """Adapts parameters to a loss.

    Args:
        rule: how one step moves.
        steps: how many steps, at least 0.
    """

    def __init__(self, rule: UpdateRule, steps: int) -> None:
        super().__init__()
        if steps < 0:
            raise ValueError(f"steps must be at least 0, got {steps}")
        self.rule, self.steps = rule, steps

    @abstractmethod
    def gradient(self, loss: Loss, params: Params) -> Params:
        """The gradient of `loss` at `params`, and what an outer derivative sees of it."""

    def forward(self, loss: Loss, params: Params, steps: int | None = None) -> Params:
        """Adapt `params` to `loss` in `steps` steps (the solver's own number by default)."""
        state = self.rule.init(params)
        for _ in range(self.steps if steps is None else steps):
            params, state = self.rule.update(self.gradient(loss, params), state, params)
        return params


class Unrolled(InnerSolver):
    r"""The exact derivative, through every inner step:

    $$ \frac{d\theta_K}{d\theta_0} = \prod_{k=K-1}^{0} \bigl(I - \alpha \nabla^2 L(\theta_k)\bigr) \quad
       \text{for SGD.} $$
    """

    def gradient(self, loss: Loss, params: Params) -> Params:
        return torch.func.grad(loss)(params)


class FirstOrder(InnerSolver):
    r"""The first-order approximation: inner gradients count as constants, so $d\theta_K / d\theta_0 \approx I$ for SGD.

    References:
        Finn, Abbeel, Levine, arXiv:1703.03400, section 5.2; Nichol, Achiam, Schulman, arXiv:1803.02999.
    """

    def gradient(self, loss: Loss, params: Params) -> Params:
        with torch.no_grad():  # hides the inner derivative from an outer one; torch.func.grad itself still works
            return torch.func.grad(loss)(params)
