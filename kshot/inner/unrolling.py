"""The inner loop itself: gradient, rule, gradient, rule, …, as a pure function of the parameters it starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from kshot.inner.kernels import transformed, twice_differentiable
from kshot.inner.rules import UpdateRule
from kshot.types import Params

Loss = Callable[..., Tensor]
"""(params) -> (), or (params, batch) -> () where each step has a batch of its own."""

Steps = int | Sequence[Any]
"""How many steps, or one batch for each step."""


def unroll(loss_fn: Loss, params: Params, rule: UpdateRule, steps: Steps, *, order: int = 2) -> Params:
    r"""Adapt parameters by a rule, and keep the result differentiable.

    $$ \theta_{k+1}, s_{k+1} = \text{rule}\bigl(\nabla_\theta L(\theta_k), s_k, \theta_k\bigr) $$

    Args:
        loss_fn: (params) -> (), such as a loss of `torch.func.functional_call(model, params, x)`; pure.
        params: where to start, by name; `dict(model.named_parameters())`, or some of them.
        rule: how a step moves; its Parameters can be learned.
        steps: how many; or a sequence with one batch for each step, with which `loss_fn(params, batch)` is called.
        order: 2 keeps derivatives through the inner gradients; 1 counts those as constants.

    Returns:
        The parameters after the last step; differentiable by `params`, by the rule's own Parameters and by what else
        `loss_fn` uses.

    Raises:
        ValueError: an order other than 1 or 2.

    Example:
        >>> from kshot.inner.rules import SGD
        >>> start = torch.tensor(1.0, requires_grad=True)
        >>> adapted = unroll(lambda params: params["w"] ** 2, {"w": start}, SGD(0.1), steps=3)
        >>> adapted["w"].backward()
        >>> start.grad
        tensor(0.5120)
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 2 (exact) or 1 (first-order approximation), got {order!r}")
    for after in trajectory(loss_fn, params, rule, steps, exact=lambda step: order == 2):
        params = after
    return params


def trajectory(
    loss_fn: Loss, params: Params, rule: UpdateRule, steps: Steps, *, exact: Callable[[int], bool] = lambda step: True
) -> Iterator[Params]:
    """The parameters before the first step and after each one: steps + 1 of them.

    Args:
        loss_fn, params, rule, steps: as in `unroll`.
        exact: number of a step, from 0 -> whether an outer derivative sees that step's gradient.

    Example:
        >>> from kshot.inner.rules import SGD
        >>> ways = trajectory(lambda params: params["w"] ** 2, {"w": torch.tensor(1.0)}, SGD(0.25), steps=2)
        >>> [float(params["w"]) for params in ways]
        [1.0, 0.5, 0.25]
    """
    state = rule.init(params)
    yield params
    for step, batch in enumerate(arguments(steps)):

        def take(params: Params, state: Any, batch: tuple = batch, exactly: bool = exact(step)) -> tuple[Params, Any]:
            grads = gradient(lambda moved: loss_fn(moved, *batch), params, exact=exactly)
            return rule.update(grads, state, params)

        params, state = _recomputed(take, params, state) if _recomputing.get() else take(params, state)
        yield params


_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


@contextmanager
def recomputing(on: bool = True) -> Iterator[None]:
    """A region whose inner steps keep their parameters only, and are taken again in the backward pass.

    Memory then grows with the number of inner steps by the size of the parameters, not of the activations; each step
    is computed twice. It holds for `loss.backward()`, not for `torch.autograd.grad`, and not under `vmap`.

    Example:
        >>> from kshot.inner.rules import SGD
        >>> start = torch.tensor(1.0, requires_grad=True)
        >>> with recomputing():
        ...     adapted = unroll(lambda params: params["w"] ** 2, {"w": start}, SGD(0.1), steps=3)
        >>> adapted["w"].backward()
        >>> start.grad
        tensor(0.5120)

    References:
        Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
    """
    before = _recomputing.set(on)
    try:
        yield
    finally:
        _recomputing.reset(before)


def _recomputed(take: Callable[[Params, Any], tuple[Params, Any]], params: Params, state: Any) -> tuple[Params, Any]:
    """The step by PyTorch's checkpointing, which takes and gives tensors one by one."""
    leaves, shape = tree_flatten((params, state))
    if transformed() or not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
        return take(params, state)
    shapes = []

    def flat(*leaves: Any) -> tuple:
        after, shape_after = tree_flatten(take(*tree_unflatten(list(leaves), shape)))
        shapes.append(shape_after)
        return tuple(after)

    after = checkpoint(flat, *leaves, use_reentrant=True)
    return tree_unflatten(list(after), shapes[0])


def gradient(loss_fn: Callable[[Params], Tensor], params: Params, *, exact: bool) -> Params:
    """The gradient of a loss by its parameters; `exact` lets an outer derivative see how it comes about.

    Under a transform of `torch.func`, and for tensors outside of autograd's sight, only `torch.func.grad` is right.
    Elsewhere `torch.autograd.grad` does the same in two thirds of the time.
    """
    exact = exact and torch.is_grad_enabled()
    if transformed() or (exact and not all(p.requires_grad for p in params.values())):
        # no_grad hides the inner derivative from an outer one; torch.func.grad itself still works
        with twice_differentiable() if exact else torch.no_grad():
            return torch.func.grad(loss_fn)(params)
    with torch.enable_grad(), twice_differentiable() if exact else nullcontext():
        # views: the loss may reach the same tensors by another way, which is not differentiated
        leaves = {name: p.view_as(p) if exact else p.detach().requires_grad_() for name, p in params.items()}
        loss = loss_fn(leaves)
        if not loss.requires_grad:
            return {name: torch.zeros_like(p) for name, p in params.items()}
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=exact, materialize_grads=True)
    return dict(zip(params, grads))


def arguments(steps: Steps) -> list[tuple]:
    """What the loss is called with at each step, beside the parameters."""
    if isinstance(steps, int):
        if steps < 0:
            raise ValueError(f"steps must be at least 0, got {steps}")
        return [()] * steps
    return [(batch,) for batch in steps]
