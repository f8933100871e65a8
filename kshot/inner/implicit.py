"""Solvers that are differentiated at their solution by the implicit function theorem, whichever way it was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from kshot.annotations import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.hyperparameters import Number, Positive, check_hyperparameters, keep_hyperparameters, refuse_tensor
from kshot.inner.linear_solvers import GeneralMethod, Method, Product, solve
from kshot.inner.precision import loss_scales, scaled, unscaled
from kshot.inner.rules import Optimizer, UpdateRule
from kshot.inner.solvers import InnerSolver
from kshot.inner.transforms import Chain, Transform
from kshot.inner.unrolling import StatefulLoss, Steps, loss_arguments, stateful_trajectory
from kshot.types import Params, Tree

Vector = tuple[Tensor, ...]

LinearSolve = Callable[[Product, Product, Tensor], Tensor]
"""(product with a matrix, with its transpose, right side) -> solution; vectors (N,)."""


class ImplicitRoot(nn.Module):
    r"""A solution $\varphi^*$ of $F(\varphi^*, \omega) = 0$, differentiated by the implicit function theorem.

    $$ \frac{d\varphi^*}{d\omega} = -\Bigl(\frac{\partial F}{\partial \varphi}\Bigr)^{-1}
       \frac{\partial F}{\partial \omega} \quad \text{at } \varphi^* $$

    for all tensors $\omega$ that the condition uses: its further arguments, and Parameters that it holds. Memory does
    not grow with the work of finding $\varphi^*$. The derivatives are those of an exact root; their error grows with
    the distance from it. Only the first derivative exists; a second one raises RuntimeError.

    Args:
        condition: (params, *batch) -> residuals, a dict of the names and shapes of `params`; $F$, 0 at a solution.
        find: (initial params, *batch) -> params, any procedure; it is not differentiated.
        method: solver of the linear system: "cg" is correct for symmetric positive definite $J = \partial F / \partial
            \varphi$ alone, as at a minimum; "gmres", "bicgstab" and "normal_cg" (of the normal equations) for any that
            is invertible; "neumann" sums $s \sum_j (I - s J)^j$, which converges only if the eigenvalues of $I - s J$
            are inside of the unit circle.
        iterations: iterations of the method, each of one product with the Jacobian, or two of "bicgstab", "normal_cg".
        scale: $s$ of "neumann".

    Under `vmap`, tensors of a task must be in the batch, not in closures.

    Example:
        >>> halve = lambda params, number: {"root": params["root"] - (params["root"] - number / params["root"]) / 2}
        >>> def newton(params, number):
        ...     for _ in range(10):
        ...         params = halve(params, number)
        ...     return params
        >>> root = ImplicitRoot(lambda params, number: {"root": params["root"] ** 2 - number}, newton)
        >>> number = torch.tensor(4.0, requires_grad=True)
        >>> root({"root": torch.tensor(1.0)}, number)["root"].backward()
        >>> number.grad  # 1 / (2 * 2)
        tensor(0.2500)

    References:
        Blondel et al.: Efficient and Modular Implicit Differentiation, arXiv:2105.15183; as `custom_root` of jaxopt and
        TorchOpt.
    """

    @check_arguments
    def __init__(
        self,
        condition: Callable[..., Params],
        find: Callable[..., Params],
        *,
        method: GeneralMethod = "gmres",
        iterations: PositiveInt = 20,
        scale: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        refuse_tensor(scale=scale)
        self.condition, self.find = condition, find
        self.method, self.iterations, self.scale = method, iterations, scale

    def forward(self, params: Params, *batch: Tree) -> Params:
        """Solve, starting from `params`, on which the solution does not depend; `batch` is passed to both functions."""
        constant = tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, (params, batch))
        root = {name: value.detach() for name, value in self.find(constant[0], *constant[1]).items()}
        residual = self.condition(root, *batch)
        shapes, expected = ({name: tuple(value.shape) for name, value in tree.items()} for tree in (residual, root))
        if shapes != expected:
            raise ValueError(f"the condition must return residuals like the solution, {expected}, got {shapes}")
        return _differentiable(self.condition, root, residual, batch, self._solve)

    def _solve(self, product: Product, transposed: Product, right: Tensor) -> Tensor:
        return solve(self.method, product, transposed, right, iterations=self.iterations, scale=self.scale)


class Implicit(InnerSolver):
    r"""Implicit differentiation of a regularised inner problem. Memory does not grow with the number of steps.

    $$ \varphi^* = \arg\min_\varphi L(\varphi) + \tfrac\lambda2 \lVert \varphi - \theta \rVert^2, \qquad
       \frac{d\varphi^*}{d\theta} = \lambda \bigl(\nabla^2 L(\varphi^*) + \lambda I\bigr)^{-1} $$

    `steps` steps of the rule approximate the minimum. All other meta-parameters $\omega$ of the loss get derivatives by
    the same theorem: $-(\nabla^2 L + \lambda I)^{-1} \partial_\omega \nabla L$. The derivatives are those of the
    minimum; their error grows with the distance of the last step from it. Only the first derivative exists; a second
    one raises RuntimeError. Under `vmap` the loss must receive the tensors of a task as its batch, not by closure.

    Args:
        rule, steps: update rule and number of steps. Parameters of the rule get no gradient: the minimum does not
            depend on them. A rule that decays the parameters, or maximises, ends elsewhere and raises ValueError.
        proximity: $\lambda > 0$, strength of the pull towards the initial parameters, on which the minimum depends
            through it alone. A tensor gets its derivative too.
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

    proximity: Number

    @check_hyperparameters
    def __init__(
        self,
        rule: UpdateRule,
        steps: NonNegativeInt,
        *,
        proximity: Positive,
        damping: NonNegativeFloat = 0.0,
        method: Method = "cg",
        iterations: PositiveInt = 5,
    ) -> None:
        super().__init__(rule, steps)
        refuse_tensor(damping=damping)
        _check_ends_at_minimum(rule)
        keep_hyperparameters(self, {"proximity": proximity})
        self.damping, self.method, self.iterations = damping, method, iterations

    def exact(self, step: int, steps: int) -> bool:
        return False

    def stateful_trajectory(
        self, loss: StatefulLoss, params: Params, state: Tree, steps: Steps | None = None
    ) -> list[tuple[Params, Tree]]:
        steps = self.steps if steps is None else steps
        rule = Chain(_Pull(params, self.proximity), self.rule)
        with torch.no_grad():
            path = list(stateful_trajectory(loss, params, state, rule, steps))
        last, state = path[-1]
        batch = (state, *(loss_arguments(steps) or [()])[-1])
        minimum = {name: value.detach() for name, value in last.items()}
        scale = loss_scales().inner
        of_scaled = torch.func.grad(lambda params, *batch: scaled(loss(params, *batch)[0], scale))

        def gradient(params: Params, *batch: Any) -> Params:
            return unscaled(of_scaled(params, *batch), scale)

        residual = {n: g + self.proximity * (minimum[n] - params[n]) for n, g in gradient(minimum, *batch).items()}
        return [*path[:-1], (_differentiable(gradient, minimum, residual, batch, self._solve), state)]

    def _solve(self, hessian: Product, transposed: Product, right: Tensor) -> Tensor:
        r"""Solve $(H + (\lambda + \delta) I) x$ = right."""
        shift = self.proximity.detach() if isinstance(self.proximity, Tensor) else self.proximity
        shift = shift + self.damping
        shifted = lambda v: hessian(v) + shift * v  # noqa: E731
        return solve(self.method, shifted, shifted, right, iterations=self.iterations, scale=1 / shift)


class _Pull(Transform):
    """Adds the gradient of the distance to the initial parameters, for parameters that the loss uses."""

    def __init__(self, start: Params, proximity: Number) -> None:
        super().__init__()
        self.start, self.proximity = start, proximity

    def apply_to(self, grads: Params, state: Tree, params: Params) -> tuple[Params, Tree]:
        return {n: grad + self.proximity * (params[n] - self.start[n]) for n, grad in grads.items()}, state


def _check_ends_at_minimum(rule: UpdateRule) -> None:
    for part in rule.modules():
        if isinstance(part, Optimizer) and (part.decays or part.maximize):
            raise ValueError(
                f"Implicit needs a rule that ends at a minimum of the loss; this {type(part).__name__} decays the "
                "parameters or maximises. Pass weight_decay=0 (for ASGD also lambd=0) and maximize=False; an L2 "
                "penalty can be part of the loss"
            )


def _differentiable(
    condition: Callable[..., Params], root: Params, residual: Params, batch: tuple, linear_solve: LinearSolve
) -> Params:
    """The root, whose derivative is $-J^{-1}$ times that of the residual, where J is that of the condition.

    Args:
        condition: (params, *batch) -> residuals, up to terms that `linear_solve` adds to the Jacobian.
        root: without a derivative.
        residual: with derivatives by all meta-parameters.
    """
    leaves, structure = tree_flatten(batch)
    batch_tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    names = list(root)

    def residual_of_tensors(values: Vector, tensors: Vector) -> Vector:
        remaining = iter(tensors)
        args = tree_unflatten([next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)
        result = condition(dict(zip(names, values)), *args)
        return tuple(result[name] for name in names)

    # The tensors are passed as arguments: inside the Function a closure would hold them at another level of vmap.
    leaves = [torch.empty(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    residuals = [residual[name] for name in names]
    outputs = _Root.apply(linear_solve, residual_of_tensors, len(names), *root.values(), *residuals, *batch_tensors)
    return dict(zip(names, outputs))


class _Root(torch.autograd.Function):
    """The identity on the root; backward, the residual gets minus the solution of the transposed linear system."""

    generate_vmap_rule = True

    @staticmethod
    def forward(linear_solve: LinearSolve, condition: Callable, count: int, *tensors: Tensor) -> Vector:
        return tuple(value.clone() for value in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.linear_solve, ctx.condition, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:
        root, batch = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[2 * ctx.count :]
        pullback = torch.func.vjp(lambda values: ctx.condition(values, batch), root)[1]

        def transposed_jacobian(vector_N: Tensor) -> Tensor:
            return _flat(pullback(_split(vector_N, root))[0])

        def jacobian(vector_N: Tensor) -> Tensor:
            # the derivative of a product that is linear in its vector, at any vector: no forward mode is needed
            return torch.func.vjp(transposed_jacobian, torch.zeros_like(vector_N))[1](vector_N)[0]

        solution_N = ctx.linear_solve(transposed_jacobian, jacobian, _flat(cotangents))
        solution = _split(_FirstDerivative.apply(-solution_N), root)
        return (None, None, None, *[None] * ctx.count, *solution, *[None] * len(batch))


class _FirstDerivative(torch.autograd.Function):
    """The identity; raises where a second derivative would be taken, which would miss that of the Jacobian."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        raise RuntimeError(
            "Implicit and ImplicitRoot have no second derivative; differentiate the solution once, or use Unrolled"
        )


def _flat(values: Vector) -> Tensor:
    return torch.cat([value.flatten() for value in values])


def _split(vector_N: Tensor, like: Vector) -> Vector:
    parts = vector_N.split([value.numel() for value in like])
    return tuple(part.view(value.shape).to(value.dtype) for part, value in zip(parts, like))
