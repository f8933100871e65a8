"""The implicit solver: differentiate where the inner loop arrived, whatever way it went."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from kshot.inner.rules import UpdateRule
from kshot.inner.solvers import InnerSolver
from kshot.inner.unrolling import Loss, Steps, arguments, trajectory
from kshot.types import Params

Vector = tuple[Tensor, ...]
Method = Literal["cg", "neumann"]


class Implicit(InnerSolver):
    r"""Implicit differentiation of a regularised inner problem. Memory does not grow with the number of steps.

    $$ \varphi^* = \arg\min_\varphi L(\varphi) + \tfrac\lambda2 \lVert \varphi - \theta \rVert^2, \qquad
       \frac{d\varphi^*}{d\theta} = \lambda \bigl(\nabla^2 L(\varphi^*) + \lambda I\bigr)^{-1} $$

    The minimum is approached by `steps` steps of the rule. Derivatives reach all other meta-parameters that the loss
    uses too, by the same theorem: $-(\nabla^2 L + \lambda I)^{-1} \partial_\omega \nabla L$. They are those of the
    minimum, and as wrong as the steps are short of it.

    Args:
        rule: how one step moves. Its own Parameters learn nothing: the minimum does not depend on them.
        steps: steps towards the minimum.
        proximity: $\lambda > 0$, the pull towards the start.
        damping: $\delta \ge 0$, added to $\lambda$ inside the inverse only.
        method: "cg" solves the linear system by conjugate gradients; "neumann" sums
            $\frac1{\lambda + \delta} \sum_j (-\nabla^2 L / (\lambda + \delta))^j$, which converges only where
            $\lVert \nabla^2 L \rVert < \lambda + \delta$.
        iterations: products with the Hessian for one solve.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> from kshot.inner.rules import SGD
        >>> solver, start = Implicit(SGD(0.2), 100, proximity=1.0), torch.tensor(4.0, requires_grad=True)
        >>> solver(lambda params: 0.5 * params["w"] ** 2, {"w": start})["w"].backward()
        >>> start.grad  # 1 / (1 + 1)
        tensor(0.5000)

    References:
        Rajeswaran et al.: Meta-Learning with Implicit Gradients, arXiv:1909.04630; Lorraine, Vicol, Duvenaud,
        arXiv:1911.02590 (Neumann).

    Deviations:
        None in the update. Under `vmap` the loss must get the tensors of a task as its batch, not by closure.
    """

    def __init__(
        self,
        rule: UpdateRule,
        steps: int,
        *,
        proximity: float,
        damping: float = 0.0,
        method: Method = "cg",
        iterations: int = 5,
    ) -> None:
        super().__init__(rule, steps)
        if not proximity > 0:
            raise ValueError(f"proximity must be above 0, got {proximity}; without it the minimum forgets the start")
        if not damping >= 0:
            raise ValueError(f"damping must be at least 0, got {damping}")
        if method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        self.proximity, self.damping, self.method, self.iterations = proximity, damping, method, iterations

    def exact(self, step: int, steps: int) -> bool:
        return False

    def trajectory(self, loss: Loss, params: Params, steps: Steps | None = None) -> list[Params]:
        steps = self.steps if steps is None else steps

        def near(moved: Params, *batch: Any) -> Tensor:
            away = sum((moved[name] - start).square().sum() for name, start in params.items())
            return loss(moved, *batch) + 0.5 * self.proximity * away

        with torch.no_grad():
            way = list(trajectory(near, params, self.rule, steps))
        batch = (arguments(steps) or [()])[-1]
        return [*way[:-1], self._differentiable(loss, params, way[-1], batch)]

    def _differentiable(self, loss: Loss, start: Params, found: Params, batch: tuple) -> Params:
        """`found`, with the derivative of the minimum: the residual of its equation is 0 there, and d found is
        $-(H + \\lambda I)^{-1}$ d residual."""
        found = {name: value.detach() for name, value in found.items()}
        slope = torch.func.grad(loss)(found, *batch)
        residual = [slope[name] + self.proximity * (found[name] - start[name]) for name in found]
        leaves, shape = tree_flatten(batch)
        held = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        names = list(found)

        def of_tensors(values: Vector, tensors: Vector) -> Tensor:
            left = iter(tensors)
            args = tree_unflatten([next(left) if isinstance(leaf, Tensor) else leaf for leaf in leaves], shape)
            return loss(dict(zip(names, values)), *args)

        # The tensors go in as arguments: inside the Function a closure would hold them at another level of vmap.
        leaves = [torch.empty(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        solved = _Minimum.apply(self._solve, of_tensors, len(names), *found.values(), *residual, *held)
        return dict(zip(names, solved))

    def _solve(self, hessian: Callable[[Vector], Vector], right: Vector) -> Vector:
        pull = self.proximity + self.damping
        if self.method == "neumann":
            return _neumann(hessian, pull, right, self.iterations)
        return _conjugate_gradients(
            lambda v: tuple(h + pull * x for h, x in zip(hessian(v), v)), right, self.iterations
        )


class _Minimum(torch.autograd.Function):
    """The identity on what was found; backwards, minus the solution of the linear system, to the residual."""

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
        found, held = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[2 * ctx.count :]
        pull = torch.func.vjp(lambda values: torch.func.grad(ctx.loss)(values, held), found)[1]
        solved = ctx.solve(lambda vector: pull(vector)[0], cotangents)
        return (None, None, None, *[None] * ctx.count, *[-x for x in solved], *[None] * len(held))


def _conjugate_gradients(product: Callable[[Vector], Vector], right: Vector, iterations: int) -> Vector:
    """Solve product(x) = right, x from 0; a system that is solved already stays so."""
    solution, rest = tuple(torch.zeros_like(r) for r in right), right
    direction, size = rest, _dot(rest, rest)
    for _ in range(iterations):
        image = product(direction)
        step = _ratio(size, _dot(direction, image))
        solution = tuple(x + step * d for x, d in zip(solution, direction))
        rest = tuple(r - step * i for r, i in zip(rest, image))
        size, before = _dot(rest, rest), size
        direction = tuple(r + _ratio(size, before) * d for r, d in zip(rest, direction))
    return solution


def _neumann(hessian: Callable[[Vector], Vector], pull: float, right: Vector, iterations: int) -> Vector:
    term = tuple(r / pull for r in right)
    total = term
    for _ in range(iterations):
        term = tuple(-h / pull for h in hessian(term))
        total = tuple(t + x for t, x in zip(total, term))
    return total


def _dot(a: Vector, b: Vector) -> Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b)]).sum()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)
