"""Faults that kshot had, planted again: each test of the fuzz must fail under them.

All plants patch the one place that calls a user's module, `CALL`, or the gradient of an inner step, `GRADIENT`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kshot.inner import call, functional, per_parameter, unrolling
from kshot.inner.call import Call
from kshot.inner.functional import Function
from kshot.learners.heads import protonet
from kshot.training import replay, step

CALL = Function, "_call"
"""The method that calls the module: (self, params, inputs, …) -> (output, changed buffers, BatchNorm statistics)."""

GRADIENT = unrolling, "gradient"
"""The gradient of an inner step: (loss_fn, params, *, exact) -> (gradients by name, state of the loss)."""


def _within(monkeypatch: pytest.MonkeyPatch, context: Callable[[], AbstractContextManager]) -> None:
    """Call modules inside of a context."""
    owner, name = CALL
    call = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with context():
            return call(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


class _Replaced(TorchFunctionMode):
    """Replaces operations by a table."""

    def __init__(self, table: dict[Callable, Callable]) -> None:
        super().__init__()
        self.table = table

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return self.table.get(func, func)(*args, **(kwargs or {}))


class _Reordered(TorchFunctionMode):
    """Applies the last activation after a max-pooling of its output instead of before it."""

    def __init__(self) -> None:
        super().__init__()
        self.last: tuple[Any, Any, Any] = (None, None, None)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.relu, torch.relu, F.leaky_relu):
            output = func(*args, **kwargs)
            if output is not args[0]:
                self.last = output, args[0], lambda pooled: func(pooled, *args[1:], **kwargs)
            return output
        if func is F.max_pool2d and args[0] is self.last[0]:
            return self.last[2](func(self.last[1], *args[1:], **kwargs))
        return func(*args, **kwargs)


def plant_reordered_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The activation before a max-pooling is applied after it, whatever happened to its output in between."""
    _within(monkeypatch, _Reordered)


def plant_copied_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Tensor.view` of an image is a view of a copy, as under a forced memory layout."""

    def view(tensor: Tensor, *shape: Any) -> Tensor:
        return (tensor.clone() if tensor.ndim == 4 else tensor).view(*shape)

    _within(monkeypatch, lambda: _Replaced({torch.Tensor.view: view}))


def plant_fused_weight_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight normalisation by PyTorch's kernel, whose second derivative is wrong: remove what replaces the kernel."""
    monkeypatch.setattr(call, "DERIVATIVE_OVERRIDES", {})


def plant_lost_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions that a backward pass repeats run PyTorch's operations, and not those that replaced them before."""
    monkeypatch.setattr(call, "_repeat_with", lambda call: None)


def plant_reentrant_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner steps take a checkpoint whose parameters get no gradient."""
    monkeypatch.setattr(functional, "check_repetition", lambda *_: None)


def plant_slopes_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """`rrelu` by PyTorch's kernel, which checkpointing stops before it has drawn its slopes."""
    kept = {F.group_norm: call.DERIVATIVE_OVERRIDES[F.group_norm]}
    monkeypatch.setattr(call, "DERIVATIVE_OVERRIDES", kept)


def plant_first_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern finds tied weights by their first name only."""
    matches = per_parameter._matches
    monkeypatch.setattr(per_parameter, "_matches", lambda names, patterns: matches(names[:1], patterns))


def plant_wrong_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The padding row of an embedding has a gradient."""

    def embedding(input: Tensor, weight: Tensor, padding_idx: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        return F.embedding(input, weight, None, *args, **kwargs)

    _within(monkeypatch, lambda: _Replaced({F.embedding: embedding}))


def _functional_call(self: Function, params: dict, inputs: Any, *rest: Any, **options: Any) -> Any:
    """As kshot called modules once: `torch.func.functional_call`, with copies of the buffers at each call.

    BatchNorm uses the statistics of the batch, and of the query by the number of the call.
    """
    substitutes: dict[str, Any] = {name: buffer.clone() for name, buffer in self.module.named_buffers()}
    args, kwargs = inputs if isinstance(inputs, tuple) else (inputs,), {}
    if isinstance(inputs, dict):
        args, kwargs = (), inputs
    return torch.func.functional_call(self.module, substitutes | params, args, kwargs), {}, {}


def plant_functional_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules are called by `torch.func.functional_call`, with copies of the buffers, by the first names.

    Then a module that is registered twice loses its weights, shared buffers are a KeyError, threads exchange weights,
    recomputation in backward sees the module's own weights, hooks of parameters do not run, buffers do not learn.
    """
    monkeypatch.setattr(*CALL, _functional_call)


def plant_fixed_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call begins with the buffers of the module as they were before adaptation."""
    owner, name = CALL
    call = getattr(owner, name)

    def fixed(*args: Any, **kwargs: Any) -> Any:
        output, _, statistics = call(*args, **kwargs)
        return output, {}, statistics

    monkeypatch.setattr(owner, name, fixed)


def plant_lost_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a forward sets on its layers is dropped, also where later calls depend on it."""
    monkeypatch.setattr(functional, "check_no_state", lambda *_: None)


def plant_zeros_for_missing_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parameter, or a whole loss, without a graph has gradient zero instead of none, and inference mode stays on."""

    def gradient(loss_fn: Callable, params: dict, *, exact: bool, scale: None = None) -> tuple[dict, Any]:
        with torch.enable_grad():
            leaves = {name: p.view_as(p) if exact else p.detach().requires_grad_() for name, p in params.items()}
            loss, state = loss_fn(leaves)
            if not loss.requires_grad:
                return {name: torch.zeros_like(p) for name, p in params.items()}, state
            found = torch.autograd.grad(loss, list(leaves.values()), create_graph=exact, materialize_grads=True)
        return dict(zip(params, found)), state

    monkeypatch.setattr(*GRADIENT, gradient)
    monkeypatch.setattr(torch, "is_inference_mode_enabled", lambda: False)  # by which `adapt` leaves inference mode


def plant_lost_gradient_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks of parameters do not see the gradients of inner steps."""
    register = torch.Tensor.register_hook

    @contextmanager
    def without_hooks() -> Iterator[None]:
        torch.Tensor.register_hook = lambda tensor, hook: None
        try:
            yield
        finally:
            torch.Tensor.register_hook = register

    _within(monkeypatch, without_hooks)


def plant_statistics_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The k-th call of any BatchNorm in the query uses the statistics of the k-th call in the support set."""

    def key(self: Call) -> str:
        self.counts["all"] += 1
        return str(self.counts["all"])

    monkeypatch.setattr(Call, "key", key)


def plant_exchanged_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent calls exchange the weights of one module without a lock."""
    monkeypatch.setattr(*CALL, _functional_call)


def plant_blind_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded steps are replayed whatever Python attributes and flags are, and not compared with plain steps."""
    monkeypatch.setattr(replay, "python_state", lambda module: ())
    monkeypatch.setattr(step, "is_due", lambda number: False)


def plant_uncentred_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squared distances by the expanded square, of features as they are."""

    def euclidean(feat_MD: Tensor, proto_CD: Tensor) -> Tensor:
        return 2 * feat_MD @ proto_CD.mT - proto_CD.square().sum(1) - feat_MD.square().sum(1, keepdim=True)

    monkeypatch.setattr(protonet, "euclidean", euclidean)
    monkeypatch.setattr(protonet, "reference_point", lambda feat_ND, *_: torch.zeros_like(feat_ND[0]))
