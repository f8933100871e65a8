"""The inner loop: steps of an update rule, as a pure function of the initial parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from kshot.context import holding
from kshot.inner.kernels import in_transform, twice_differentiable
from kshot.inner.precision import loss_scales, scaled, unscaled, without_autocast
from kshot.inner.rules import UpdateRule
from kshot.types import Params

Loss = Callable[..., Tensor]
"""(params) -> (), or (params, batch) -> () if each step has its own batch."""

StatefulLoss = Callable[..., tuple[Tensor, Any]]
"""(params, state) -> (loss (), new state), or (params, state, batch): a loss whose state goes from step to step."""

Steps = int | Sequence[Any]
"""Number of steps, or one batch per step."""


def unroll(loss_fn: Loss, params: Params, rule: UpdateRule, steps: Steps, *, order: int = 2) -> Params:
    r"""Adapt parameters by an update rule; the result is differentiable.

    $$ \theta_{k+1}, s_{k+1} = \text{rule}\bigl(\nabla_\theta L(\theta_k), s_k, \theta_k\bigr) $$

    Args:
        loss_fn: (params) -> (), such as a loss of `torch.func.functional_call(model, params, x)`; pure.
        params: initial parameters by name: `dict(model.named_parameters())`, or some of them.
        rule: update rule; its Parameters can be learned.
        steps: number of steps; or a sequence with one batch per step, for `loss_fn(params, batch)`.
        order: 2 differentiates through the inner gradients; 1 treats them as constants.

    Returns:
        The parameters after the last step; differentiable by `params`, by the Parameters of the rule and by other
        tensors that `loss_fn` uses.

    Example:
        >>> start = torch.tensor(1.0, requires_grad=True)
        >>> adapted = unroll(lambda params: params["w"] ** 2, {"w": start}, kshot.inner.SGD(0.1), steps=3)
        >>> adapted["w"].backward()
        >>> start.grad
        tensor(0.5120)
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 2 (exact) or 1 (first-order approximation), got {order!r}")
    for adapted in trajectory(loss_fn, params, rule, steps, exact=lambda step: order == 2):
        params = adapted
    return params


def trajectory(
    loss_fn: Loss, params: Params, rule: UpdateRule, steps: Steps, *, exact: Callable[[int], bool] = lambda step: True
) -> Iterator[Params]:
    """Yield the parameters before the first step and after each step: steps + 1 in all.

    Args:
        loss_fn, params, rule, steps: as in `unroll`.
        exact: (step from 0) -> whether outer derivatives go through the gradient of that step.

    Example:
        >>> rule, start = kshot.inner.SGD(0.25), {"w": torch.tensor(1.0)}
        >>> [float(params["w"]) for params in trajectory(lambda params: params["w"] ** 2, start, rule, steps=2)]
        [1.0, 0.5, 0.25]
    """
    for adapted, _ in stateful_trajectory(without_state(loss_fn), params, (), rule, steps, exact=exact):
        yield adapted


def stateful_trajectory(
    loss_fn: StatefulLoss,
    params: Params,
    state: Any,
    rule: UpdateRule,
    steps: Steps,
    *,
    exact: Callable[[int], bool] = lambda step: True,
) -> Iterator[tuple[Params, Any]]:
    """As `trajectory`, with a state of the loss that goes from step to step, such as the buffers of a module."""
    rule_state = rule.init(params)
    scale = loss_scales().inner  # read here, since a backward pass may repeat steps outside of the context
    device = next((value.device for value in params.values()), torch.device("cpu"))
    yield params, state
    for step, batch in enumerate(loss_arguments(steps)):

        def one_step(
            params: Params, rule_state: Any, state: Any, batch: tuple = batch, exact: bool = exact(step)
        ) -> tuple[Params, Any, Any]:
            grads, state = gradient(lambda leaves: loss_fn(leaves, state, *batch), params, exact=exact, scale=scale)
            with without_autocast(device):
                return *rule.update(grads, rule_state, params), state

        take = partial(_checkpointed, one_step) if _recomputing.get() else one_step
        params, rule_state, state = take(params, rule_state, state)
        yield params, state


def without_state(loss_fn: Loss) -> StatefulLoss:
    """The loss with an empty state."""
    return lambda params, state, *batch: (loss_fn(params, *batch), ())


_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


@contextmanager
def recomputing(on: bool = True) -> Iterator[None]:
    """A context in which inner steps store only their parameters and are computed again in the backward pass.

    Each inner step then adds the size of the parameters to the memory, not that of the activations, and is computed
    twice. Works with `loss.backward()`, not with `torch.autograd.grad`, and not under `vmap`.

    References:
        Chen, Xu, Zhang, Guestrin: Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
    """
    with holding(_recomputing, on):
        yield


def _checkpointed(step: Callable[..., tuple], *states: Any) -> tuple:
    """The step under PyTorch's checkpointing, which takes and returns flat tensors."""
    leaves, structure = tree_flatten(states)
    if in_transform() or not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
        return step(*states)
    structures = []

    def flat_step(*leaves: Any) -> tuple:
        outputs, output_structure = tree_flatten(step(*tree_unflatten(list(leaves), structure)))
        structures.append(output_structure)
        return tuple(outputs)

    outputs = checkpoint(flat_step, *leaves, use_reentrant=True)
    return tree_unflatten(list(outputs), structures[0])


def gradient(
    loss_fn: Callable[[Params], tuple[Tensor, Any]], params: Params, *, exact: bool, scale: Tensor | None = None
) -> tuple[Params, Any]:
    """The gradient of a loss by its parameters, and what the loss returns besides.

    A parameter that the loss does not use has no gradient, as in PyTorch: its name is left out. If `exact`, outer
    derivatives go through the gradient. The loss is multiplied by `scale` before, and the gradient divided by it after.

    Under a transform of `torch.func`, and for tensors that autograd does not track, only `torch.func.grad` is correct.
    Elsewhere `torch.autograd.grad` gives the same in two thirds of the time.

    Raises:
        ValueError: the loss depends on none of the parameters.
    """
    if scale is not None:

        def scaled_loss(leaves: Params) -> tuple[Tensor, Any]:
            loss, state = loss_fn(leaves)
            return scaled(loss, scale), state

        grads, state = gradient(scaled_loss, params, exact=exact)
        return unscaled(grads, scale), state
    exact = exact and torch.is_grad_enabled()
    if in_transform() or (exact and not all(p.requires_grad for p in params.values())):
        unused: set[str] = set()

        def checked_loss(leaves: Params) -> tuple[Tensor, Any]:
            loss, state = loss_fn(leaves)
            unused.update(unused_leaves(loss, leaves))
            return loss, state

        # no_grad makes the inner gradient a constant of outer derivatives; torch.func.grad itself still works
        with torch.inference_mode(False), twice_differentiable() if exact else torch.no_grad():
            grads, state = torch.func.grad(checked_loss, has_aux=True)(params)
        return {name: grad for name, grad in grads.items() if name not in unused}, state
    with torch.inference_mode(False), torch.enable_grad(), twice_differentiable() if exact else nullcontext():
        # views: the loss may also use the same tensors otherwise, which must not be differentiated
        leaves = {name: p.view_as(p) if exact else _leaf(p) for name, p in params.items()}
        loss, state = loss_fn(leaves)
        used = None
        if loss.requires_grad:
            used = torch.autograd.grad(loss, list(leaves.values()), create_graph=exact, allow_unused=True)
    grads = {} if used is None else {name: grad for name, grad in zip(params, used) if grad is not None}
    if not grads:
        raise ValueError(_NO_DEPENDENCE)
    return grads, state


_NO_DEPENDENCE = (
    "the loss does not depend on the parameters that adapt: a loss of inner steps has to be computed from the "
    "parameters that it is given, as torch.func.functional_call(model, params, inputs) does, and without "
    "torch.no_grad, detach or .item()"
)


def _leaf(value: Tensor) -> Tensor:
    """A tensor of the same values that autograd tracks from here on."""
    return (value.clone() if value.is_inference() else value.detach()).requires_grad_()


def unused_leaves(loss: Tensor, leaves: Params) -> list[str]:
    """Names of the leaves on which a loss does not depend, by its graph; raises ValueError if it depends on none."""
    if not leaves:
        return []
    if loss.grad_fn is None:
        raise ValueError(_NO_DEPENDENCE)
    nodes, seen, used = [loss.grad_fn], {loss.grad_fn}, set()
    while nodes:
        for node, _ in nodes.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                nodes.append(node)
                if (variable := getattr(node, "variable", None)) is not None:  # a leaf, where gradients accumulate
                    used.add(id(variable))
    unused = [name for name, leaf in leaves.items() if id(leaf) not in used]
    if len(unused) == len(leaves):
        raise ValueError(_NO_DEPENDENCE)
    return unused


def loss_arguments(steps: Steps) -> list[tuple]:
    """The arguments of the loss at each step, after the parameters."""
    if isinstance(steps, int):
        if steps < 0:
            raise ValueError(f"steps must be at least 0, got {steps}")
        return [()] * steps
    return [(batch,) for batch in steps]
