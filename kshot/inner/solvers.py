"""Solvers of the inner problem: they define how its solution is computed and differentiated.

A solver defines d(adapted)/d(meta-parameters): `Unrolled` is exact, `FirstOrder` and `Truncated` are explicit
approximations, and `Implicit` uses the implicit function theorem.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from kshot.annotations import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.rules import UpdateRule
from kshot.inner.unrolling import Loss, StatefulLoss, Steps, loss_arguments, stateful_trajectory, without_state
from kshot.learner import Scheduled
from kshot.types import Params, Tree

Vector = tuple[Tensor, ...]
Method = Literal["cg", "neumann"]


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

        The state goes from step to step, such as the buffers of a module that learns through them.
        """
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


class Implicit(InnerSolver):
    r"""Implicit differentiation of a regularised inner problem. Memory does not grow with the number of steps.

    $$ \varphi^* = \arg\min_\varphi L(\varphi) + \tfrac\lambda2 \lVert \varphi - \theta \rVert^2, \qquad
       \frac{d\varphi^*}{d\theta} = \lambda \bigl(\nabla^2 L(\varphi^*) + \lambda I\bigr)^{-1} $$

    `steps` steps of the rule approximate the minimum. All other meta-parameters $\omega$ of the loss get derivatives by
    the same theorem: $-(\nabla^2 L + \lambda I)^{-1} \partial_\omega \nabla L$. The derivatives are those of the
    minimum; their error grows with the distance of the last step from it. Under `vmap` the loss must receive the
    tensors of a task as its batch, not by closure.

    Args:
        rule, steps: update rule and number of steps. Parameters of the rule get no gradient: the minimum does not
            depend on them.
        proximity: $\lambda > 0$, strength of the pull towards the initial parameters, on which the minimum depends
            through it alone.
        damping: $\delta \ge 0$, added to $\lambda$ inside the inverse only.
        method: "cg" solves the linear system by conjugate gradients; "neumann" sums
            $\frac1{\lambda + \delta} \sum_j (-\nabla^2 L / (\lambda + \delta))^j$, which converges only if
            $\lVert \nabla^2 L \rVert < \lambda + \delta$.
        iterations: Hessian-vector products per solve.

    Example:
        >>> solver, start = Implicit(kshot.inner.SGD(0.2), 100, proximity=1.0), torch.tensor(4.0, requires_grad=True)
        >>> solver(lambda params: 0.5 * params["w"] ** 2, {"w": start})["w"].backward()
        >>> start.grad  # 1 / (1 + 1)
        tensor(0.5000)

    References:
        Rajeswaran et al.: Meta-Learning with Implicit Gradients, arXiv:1909.04630, without deviations in the update;
        Lorraine, Vicol, Duvenaud, arXiv:1911.02590 (Neumann).
    """

    @check_arguments
    def __init__(
        self,
        rule: UpdateRule,
        steps: NonNegativeInt,
        *,
        proximity: PositiveFloat,
        damping: NonNegativeFloat = 0.0,
        method: Method = "cg",
        iterations: PositiveInt = 5,
    ) -> None:
        super().__init__(rule, steps)
        self.proximity, self.damping, self.method, self.iterations = proximity, damping, method, iterations

    def exact(self, step: int, steps: int) -> bool:
        return False

    def stateful_trajectory(
        self, loss: StatefulLoss, params: Params, state: Tree, steps: Steps | None = None
    ) -> list[tuple[Params, Tree]]:
        steps = self.steps if steps is None else steps

        def regularised(candidate: Params, state: Tree, *batch: Any) -> tuple[Tensor, Tree]:
            distance = sum((candidate[name] - start).square().sum() for name, start in params.items())
            value, state = loss(candidate, state, *batch)
            return value + 0.5 * self.proximity * distance, state

        with torch.no_grad():
            path = list(stateful_trajectory(regularised, params, state, self.rule, steps))
        batch = (loss_arguments(steps) or [()])[-1]
        minimum, state = path[-1]
        last_loss = lambda params, *batch: loss(params, *batch)[0]  # noqa: E731
        return [*path[:-1], (self._differentiable(last_loss, params, minimum, (state, *batch)), state)]

    def _differentiable(self, loss: Loss, start: Params, minimum: Params, batch: tuple) -> Params:
        """The minimum with its derivative, $-(H + \\lambda I)^{-1}$ times that of the residual, which is 0 there."""
        minimum = {name: value.detach() for name, value in minimum.items()}
        grads = torch.func.grad(loss)(minimum, *batch)
        residual = [grads[name] + self.proximity * (minimum[name] - start[name]) for name in minimum]
        leaves, structure = tree_flatten(batch)
        batch_tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        names = list(minimum)

        def loss_of_tensors(values: Vector, tensors: Vector) -> Tensor:
            remaining = iter(tensors)
            args = tree_unflatten([next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)
            return loss(dict(zip(names, values)), *args)

        # The tensors are passed as arguments: inside the Function a closure would hold them at another level of vmap.
        leaves = [torch.empty(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        outputs = _Minimum.apply(self._solve, loss_of_tensors, len(names), *minimum.values(), *residual, *batch_tensors)
        return dict(zip(names, outputs))

    def _solve(self, hessian: Callable[[Vector], Vector], right: Vector) -> Vector:
        """Solve $(H + (\\lambda + \\delta) I) x$ = right."""
        shift = self.proximity + self.damping
        if self.method == "cg":
            return _conjugate_gradients(
                lambda v: tuple(h + shift * x for h, x in zip(hessian(v), v)), right, self.iterations
            )
        total = term = tuple(r / shift for r in right)
        for _ in range(self.iterations):
            term = tuple(-h / shift for h in hessian(term))
            total = tuple(t + x for t, x in zip(total, term))
        return total


class _Minimum(torch.autograd.Function):
    """The identity on the minimum; backward, the residual gets minus the solution of the linear system."""

    generate_vmap_rule = True

    @staticmethod
    def forward(solve: Callable, loss: Callable, count: int, *tensors: Tensor) -> Vector:
        return tuple(value.clone() for value in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.solve, ctx.loss, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:
        minimum, batch = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[2 * ctx.count :]
        hessian_product = torch.func.vjp(lambda values: torch.func.grad(ctx.loss)(values, batch), minimum)[1]
        solution = ctx.solve(lambda vector: hessian_product(vector)[0], cotangents)
        return (None, None, None, *[None] * ctx.count, *[-x for x in solution], *[None] * len(batch))


def _conjugate_gradients(product: Callable[[Vector], Vector], right: Vector, iterations: int) -> Vector:
    """Solve product(x) = right from x = 0; iterations after convergence change nothing."""
    solution, residual = tuple(torch.zeros_like(r) for r in right), right
    direction, norm = residual, _dot(residual, residual)
    for _ in range(iterations):
        image = product(direction)
        step = _ratio(norm, _dot(direction, image))
        solution = tuple(x + step * d for x, d in zip(solution, direction))
        residual = tuple(r - step * i for r, i in zip(residual, image))
        norm, last_norm = _dot(residual, residual), norm
        direction = tuple(r + _ratio(norm, last_norm) * d for r, d in zip(residual, direction))
    return solution


def _dot(a: Vector, b: Vector) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b)]).sum()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)
