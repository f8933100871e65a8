"""A program as one CUDA graph, for small kernels, which take less time than their launches."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from kshot.training.memory import available_memory
from kshot.training.programs import Program
from kshot.types import Params, Task

log = logging.getLogger(__name__)

WARM_UP = 3  # calls before the recording, in which libraries choose algorithms and allocate their workspaces
MEMORY_FRACTION = 0.25  # of the free memory that a graph may keep; the kernels of larger steps outweigh their launches


class CudaGraph:
    """A program that is recorded at its first call, and replayed for tensors of the same shapes at later ones.

    A call copies the arguments to where the graph reads them, and the results from where it writes them. A program
    that waits for the CPU, as solvers do that check their result, or that needs much memory runs without a graph.

    Args:
        program: draws no random numbers, and has all its tensors on one GPU.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._recorded: Recording | None = None
        self._called = False

    def __call__(self, trained: Params, fixed: Params, tasks: Task) -> Any:
        arguments = trained, fixed, tasks
        if not self._called:
            self._called = True
            try:
                self._recorded = Recording(self.program, arguments)
            except RuntimeError as error:
                log.info("kernels are launched one by one: %s", str(error).split("\n")[0])
        return self.program(*arguments) if self._recorded is None else self._recorded(arguments)


class Recording:
    """The graph of one call of a program, with the memory that it reads and writes.

    Raises RuntimeError if the program cannot be recorded.
    """

    def __init__(self, program: Program, arguments: tuple[Params, Params, Task]) -> None:
        self.inputs = tree_map(torch.clone, arguments)
        device = arguments[2].support.weight.device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    program(*self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            limit, before = MEMORY_FRACTION * available_memory(device), torch.cuda.memory_reserved(device)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads may write checkpoints
                self.outputs = program(*self.inputs)
            if torch.cuda.memory_reserved(device) - before > limit:
                raise RuntimeError("a graph would keep too much memory")

    def __call__(self, arguments: tuple[Params, Params, Task]) -> Any:
        torch._foreach_copy_(tree_leaves(self.inputs), tree_leaves(arguments))
        self.graph.replay()
        return tree_map(torch.clone, self.outputs)
