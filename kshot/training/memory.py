"""Prediction of the memory that a step needs, and the memory that is available.

The step, with its backward pass, runs on fake tensors, which have shapes but neither values nor memory, while its
allocations and deallocations are counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kshot.free_memory import free_memory
from kshot.inner.replica import substituted
from kshot.learner import Learner
from kshot.types import Task

GIB = 2**30


def predict_peak(learner: Learner, tasks: Task, step: Callable[[Learner, Task], Any]) -> int:
    """The peak memory of a step in bytes, without the learner, the tasks and temporary workspaces of kernels.

    `step` takes the step, given the learner and a stack of tasks. Raises RuntimeError if its shapes depend on values.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            return mode.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)

        named = {name: fake(tensor) for name, tensor in [*learner.named_parameters(), *learner.named_buffers()]}
        fake_tasks = tree_map(fake, tasks)
        with substituted(learner, named), _AllocationCounter() as counter:
            step(learner, fake_tasks)
    return counter.peak


class _AllocationCounter(TorchDispatchMode):
    """Counts the memory of live tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.live = 0
        self.counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        inputs = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in self.counted and id(storage) not in inputs:
                    self.counted.add(id(storage))
                    self.live += storage.nbytes()
                    weakref.finalize(storage, self._freed, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.counted.discard(key)
        self.live -= size


def available_memory(device: torch.device) -> int:
    """Bytes on a device that this process can allocate."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_memory()


def memory_size(module: nn.Module, tasks: Task) -> int:
    """Bytes of a module's parameters and of tasks."""
    return sum(leaf.numel() * leaf.element_size() for leaf in [*module.parameters(), *tree_leaves(tasks)])
