"""How much memory a step will take, told before it is taken, and how much there is.

The step is run on fake tensors, which have shapes but no values and no memory, and what it would allocate and free is
added up, its backward pass included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from kshot.learner import Learner
from kshot.types import Task

GIB = 2**30


def predicted_peak(learner: Learner, tasks: Task, loss: Callable[[Callable[[Task], torch.Tensor], Task], Any]) -> int:
    """The most bytes that a step holds at one time, beside the learner's own and the tasks.

    Kernels' workspaces, which are freed at once, are not in it.

    Args:
        learner: whose `forward` is differentiated.
        tasks: what it is called on.
        loss: takes the step, given a function from one task to its loss, and the tasks.

    Raises:
        RuntimeError: a step that depends on values, and so has no shape of its own.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        named = {name: _fake(fake, p) for name, p in [*learner.named_parameters(), *learner.named_buffers()]}
        given = tree_map(lambda leaf: _fake(fake, leaf), tasks)
        with _Counter() as counter:
            loss(lambda task: torch.func.functional_call(learner, named, (task,)), given)
    return counter.peak


def _fake(mode: FakeTensorMode, tensor: torch.Tensor) -> torch.Tensor:
    return mode.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)


class _Counter(TorchDispatchMode):
    """Adds up the memory of the tensors that live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.live = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                memory = leaf.untyped_storage()
                if id(memory) not in self.known and id(memory) not in before:
                    self.known.add(id(memory))
                    self.live += memory.nbytes()
                    weakref.finalize(memory, self._freed, id(memory), memory.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def available(device: torch.device) -> int:
    """Bytes that are free on a device, to this process."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil

    free = psutil.virtual_memory().available
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():  # a container's own bound
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def size(module: nn.Module, tasks: Task) -> int:
    """Bytes of a module's parameters and of tasks."""
    return sum(leaf.numel() * leaf.element_size() for leaf in [*module.parameters(), *tree_leaves(tasks)])
