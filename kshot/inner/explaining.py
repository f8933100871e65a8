"""What PyTorch cannot differentiate or batch, said with the name of the layer and the way out."""

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

from kshot.types import Tree

_CAUSES = (
    ("vmap: inplace arithmetic", "changes in place a tensor that all tasks share"),
    ("doesn't match the broadcast shape", "changes in place a tensor that all tasks share"),
    ("calling .item() on a Tensor", "turns a tensor into a number"),
    ("data-dependent control flow", "branches on the value of a tensor"),
    ("dynamic shape", "makes a tensor whose shape depends on values"),
    ("Batching rule not implemented", "uses an operation that cannot be batched over tasks"),
)


@contextmanager
def explained(module: nn.Module, inputs: Tree) -> Iterator[None]:
    """Turns an error that stems from batching over tasks into one that names the layer and the way out."""
    try:
        yield
    except RuntimeError as error:
        if is_batched(inputs):
            for mark, cause in _CAUSES:
                if mark in str(error):
                    raise RuntimeError(
                        f"{_running(module, error.__traceback__)} {cause}, so the tasks cannot run in one batch: "
                        "use mode='loop' for this model, or write that layer without it"
                    ) from error
        raise


@contextmanager
def differentiated(module: nn.Module, again: Callable[[], Any]) -> Iterator[None]:
    """Turns an error for want of a second derivative into one that names the layer and the way out.

    Args:
        module: the model, or what holds it.
        again: makes the same forward pass once more, to find the layer.
    """
    try:
        yield
    except RuntimeError as error:
        missing = re.search(r"derivative for (?:aten::|')_?(\w+?)(?:_backward)?'? is not implemented", str(error))
        if missing is None:
            raise
        with torch.no_grad(), _Seeker(module, missing[1]) as seeker:
            again()
        raise RuntimeError(
            f"{seeker.found or 'the model'} uses {missing[1]}, of which PyTorch has no second derivative: "
            "take the first-order approximation, order=1, or keep the parameters before and in that layer from "
            "adapting by adaptable=…, or write it in other operations"
        ) from error


class _Seeker(TorchDispatchMode):
    """Finds the layer in which an operation is called first."""

    def __init__(self, module: nn.Module, operation: str) -> None:
        super().__init__()
        self.names = {id(part): name for name, part in module.named_modules()}
        self.operation, self.inside, self.found = operation, list[nn.Module](), ""

    def __enter__(self) -> _Seeker:
        self.hooks = [
            register_module_forward_pre_hook(lambda module, args: self.inside.append(module)),
            register_module_forward_hook(lambda module, args, output: self.inside.__delitem__(-1), always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not self.found and func._schema.name[len("aten::") :].lstrip("_").startswith(self.operation):
            layer = next((part for part in reversed(self.inside) if id(part) in self.names), None)
            self.found = _named(self.names[id(layer)], layer) if layer is not None else ""
        return func(*args, **(kwargs or {}))


def is_batched(inputs: Tree) -> bool:
    """Whether inputs hold many tasks at once, under `vmap`."""
    return any(isinstance(leaf, Tensor) and _has_tasks(leaf) for leaf in tree_leaves(inputs))


def _has_tasks(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return functorch.is_batchedtensor(tensor)


def _running(module: nn.Module, traceback: TracebackType | None) -> str:
    """The innermost layer of `module` that was running."""
    names = {id(part): name for name, part in module.named_modules()}
    found: nn.Module = module
    while traceback is not None:
        running = traceback.tb_frame.f_locals.get("self")
        if isinstance(running, nn.Module) and id(running) in names:
            found = running
        traceback = traceback.tb_next
    return _named(names[id(found)], found)


def _named(name: str, layer: nn.Module) -> str:
    return f"the layer {name!r} ({type(layer).__name__})" if name else f"the model ({type(layer).__name__})"
