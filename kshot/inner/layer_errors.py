"""Errors of PyTorch that name the layer which cannot be batched or differentiated, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kshot.inner.kernels import in_transform
from kshot.types import Tree

_CAUSES = {  # part of PyTorch's message: what the layer does
    "vmap: inplace arithmetic": "changes in place a tensor that all tasks share",
    "doesn't match the broadcast shape": "changes in place a tensor that all tasks share",
    "calling .item() on a Tensor": "turns a tensor into a number",
    "data-dependent control flow": "branches on the value of a tensor",
    "dynamic shape": "makes a tensor whose shape depends on values",
    "Batching rule not implemented": "uses an operation that cannot be batched over tasks",
    "setup_context": "has a backward hook, or an autograd.Function that torch.func does not support",
    "to use channels_last": "asks for a memory format",
    "saved tensor hooks": "repeats its forward in the backward pass",
    "accessing `data`": "uses the .data of a tensor",
    "do not yet support": "uses an operation that cannot be batched over tasks",
    "Autograd not support dtype": "differentiates an operation on integers that PyTorch cannot batch",
}


@contextmanager
def explain_batching_errors(module: nn.Module, inputs: Tree) -> Iterator[None]:
    """A context in which errors of transforms of `torch.func` name the layer and the remedy: of `vmap` over tasks, and
    of the derivatives of implicit solvers."""
    try:
        yield
    except RuntimeError as error:
        cause = next((cause for pattern, cause in _CAUSES.items() if pattern in str(error)), None)
        if cause is None or not in_transform():
            raise
        remedy = (
            "so the tasks cannot run in one batch: use mode='loop' for this model, or write that layer without it"
            if is_batched(inputs)
            else "which derivatives by torch.func, such as those of an implicit solver, do not support: write that "
            "layer without it"
        )
        raise RuntimeError(f"{_failed_layer(module, error.__traceback__)} {cause}, {remedy}") from error


@contextmanager
def explain_missing_derivatives(module: nn.Module, forward: Callable[[], Any]) -> Iterator[None]:
    """A context in which errors about a missing second derivative name the layer of `module` and the remedy.

    `forward` repeats the forward pass, to find the layer.
    """
    try:
        yield
    except RuntimeError as error:
        missing = re.search(r"derivative for (?:aten::|')_?(\w+?)(?:_backward)?'? is not implemented", str(error))
        if missing is None:
            raise
        with torch.no_grad(), _LayerFinder(module, missing[1]) as finder:
            forward()
        raise RuntimeError(
            f"{finder.layer or 'the model'} uses {missing[1]}, of which PyTorch has no second derivative: "
            "use the first-order approximation, order=1, or exclude the parameters of that layer and of those before "
            "it from adaptation by adaptable=…, or write it in other operations"
        ) from error


class _LayerFinder(TorchDispatchMode):
    """Finds the layer that first calls an operation."""

    def __init__(self, module: nn.Module, operation: str) -> None:
        super().__init__()
        self.names = {id(part): name for name, part in module.named_modules()}
        self.operation, self.stack, self.layer = operation, list[nn.Module](), ""

    def __enter__(self) -> _LayerFinder:
        self.hooks = [
            register_module_forward_pre_hook(lambda module, args: self.stack.append(module)),
            register_module_forward_hook(lambda module, args, output: self.stack.__delitem__(-1), always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not self.layer and func._schema.name[len("aten::") :].lstrip("_").startswith(self.operation):
            layer = next((part for part in reversed(self.stack) if _name(part, self.names) is not None), None)
            self.layer = described(_name(layer, self.names) or "", layer) if layer is not None else ""
        return func(*args, **(kwargs or {}))


def is_batched(inputs: Tree) -> bool:
    """Whether inputs are batched over tasks by `vmap`."""
    return any(isinstance(leaf, Tensor) and _is_batched_tensor(leaf) for leaf in tree_leaves(inputs))


def _is_batched_tensor(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return functorch.is_batchedtensor(tensor)


def _failed_layer(module: nn.Module, traceback: TracebackType | None) -> str:
    """The innermost layer of `module` on a traceback."""
    names = {id(part): name for name, part in module.named_modules()}
    layer: nn.Module = module
    while traceback is not None:
        instance = traceback.tb_frame.f_locals.get("self")
        if isinstance(instance, nn.Module) and _name(instance, names) is not None:
            layer = instance
        traceback = traceback.tb_next
    return described(_name(layer, names) or "", layer)


def _name(layer: nn.Module, names: dict[int, str]) -> str | None:
    """The qualified name of a layer, or of the layer that it is a replica of."""
    return layer.__dict__.get("_kshot_name", names.get(id(layer)))


def described(name: str, layer: nn.Module) -> str:
    """A layer in an error message."""
    return f"the layer {name!r} ({type(layer).__name__})" if name else f"the model ({type(layer).__name__})"
