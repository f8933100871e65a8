"""Solvers of the inner problem: they define how its solution is computed and differentiated.

A solver defines d(adapted)/d(meta-parameters): `Unrolled` is exact, `FirstOrder` and `Truncated` are explicit
approximations, `implicit.Implicit` uses the implicit function theorem, and `evolution.Evolution` values of the loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial

from kshot.annotations import Fraction, NonNegativeInt
from kshot.argument_checks import check_arguments
from kshot.inner.rules import UpdateRule
from kshot.inner.unrolling import Loss, StatefulLoss, Steps, stateful_trajectory, without_state
from kshot.learner import Scheduled
from kshot.types import Params, Tree


class InnerSolver(Scheduled, ABC):
    """Minimises a loss over parameters by a number of `steps` of an update rule."""

    @check_arguments
    def __init__(self, rule: UpdateRule, steps: NonNegativeInt) -> None:
        super().__init__()
        self.rule, self.steps = rule, steps

    @abstractmethod
    def exact(self, step: int, steps: int) -> bool:
        """Whether outer derivatives go through the gradient of step `step` of `steps`."""

    def trajectory(self, loss: Loss, params: Params, steps: Steps | None = None) -> list[Params]:
        """The parameters before the first step and after each step; arguments as in `forward`."""
        return [adapted for adapted, _ in self.stateful_trajectory(without_state(loss), params, (), steps)]

    def stateful_trajectory(
        self, loss: StatefulLoss, params: Params, state: Tree, steps: Steps | None = None
    ) -> list[tuple[Params, Tree]]:
        """As `trajectory`, for a loss (params, state[, batch]) -> (loss (), new state), with the state at each point.

        The state goes from step to step, such as the buffers of a module that learns through them. A solver that has a
        `trajectory` of its own, and not this, keeps it fixed.
        """
        if type(self).trajectory is not InnerSolver.trajectory:
            fixed_loss = lambda params, *batch: loss(params, state, *batch)[0]  # noqa: E731
            return [(adapted, state) for adapted in self.trajectory(fixed_loss, params, steps)]
        steps = self.steps if steps is None else steps
        count = steps if isinstance(steps, int) else len(steps)
        exact = partial(self.exact, steps=count)
        return list(stateful_trajectory(loss, params, state, self.rule, steps, exact=exact))

    def forward(self, loss: Loss, params: Params, steps: Steps | None = None) -> Params:
        """Minimise `loss`, starting from `params`.

        Args:
            loss: (params) -> (), or (params, batch) -> ().
            params: initial parameters, by name.
            steps: number of steps, or one batch per step; by default the number of the solver.
        """
        return self.trajectory(loss, params, steps)[-1]


class Unrolled(InnerSolver):
    r"""The exact derivative, through every inner step:

    $$ \frac{d\theta_K}{d\theta_0} = \prod_{k=K-1}^{0} \bigl(I - \alpha \nabla^2 L(\theta_k)\bigr) \quad
       \text{for SGD.} $$
    """

    def exact(self, step: int, steps: int) -> bool:
        return True


class FirstOrder(InnerSolver):
    r"""The first-order approximation: inner gradients are constants, so $d\theta_K / d\theta_0 \approx I$ for SGD.

    References:
        Finn, Abbeel, Levine, arXiv:1703.03400, section 5.2; Nichol, Achiam, Schulman, arXiv:1803.02999.
    """

    def exact(self, step: int, steps: int) -> bool:
        return False


class Truncated(InnerSolver):
    r"""Differentiates the last steps exactly, and the earlier ones to first order:

    $$ \frac{d\theta_K}{d\theta_0} \approx \prod_{k=K-1}^{K-m} \bigl(I - \alpha \nabla^2 L(\theta_k)\bigr) \quad
       \text{for SGD.} $$

    $m = 0$ is `FirstOrder` and $m \ge K$ is `Unrolled`; time and memory grow with $m$ instead of $K$.

    Args:
        rule, steps: the update rule of a step, and the number of steps $K$.
        last: $m$, at least 0.

    References:
        Shaban et al.: Truncated Back-propagation for Bilevel Optimization, arXiv:1810.10667. There no gradient flows
        beyond the truncation; here the earlier steps have the identity, so that the initial parameters are learned.
    """

    @check_arguments
    def __init__(self, rule: UpdateRule, steps: NonNegativeInt, *, last: NonNegativeInt) -> None:
        super().__init__(rule, steps)
        self.last = last

    def exact(self, step: int, steps: int) -> bool:
        return step >= steps - self.last


class Annealed(InnerSolver):
    r"""`FirstOrder` in the first part of meta-training, `Unrolled` after that and outside of training.

    Args:
        rule, steps: as in `Truncated`.
        until: fraction of meta-training, from 0 to 1, that is first-order.

    References:
        Antoniou, Edwards, Storkey: How to train your MAML, arXiv:1810.09502, section 4 (derivative-order annealing).
    """

    @check_arguments
    def __init__(self, rule: UpdateRule, steps: NonNegativeInt, *, until: Fraction) -> None:
        super().__init__(rule, steps)
        self.until, self.progress = until, 1.0

    def set_progress(self, progress: float) -> None:
        self.progress = progress
        super().set_progress(progress)

    def exact(self, step: int, steps: int) -> bool:
        return self.progress >= self.until
