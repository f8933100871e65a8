"""Tasks side by side on a CPU: each thread takes whole tasks on one core of its own.

The operations of a small task are too short to be shared among cores, and cores that wait for one another spin.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import Tensor, nn

from kshot.inner.kernels import kinds, twice_differentiable
from kshot.learner import Learner
from kshot.types import Task


class Threads:
    """Adds the gradients of tasks to a learner's parameters, in an order that doesn't depend on which thread is faster.

    Args:
        count: how many threads, each with one core.
    """

    def __init__(self, count: int) -> None:
        self.pool = ThreadPoolExecutor(count)
        together, cores = Barrier(count), torch.get_num_threads()

        def begin() -> None:
            together.wait()  # so that each task of these goes to a thread of its own
            torch.set_num_threads(1)

        for begun in [self.pool.submit(begin) for _ in range(count)]:
            begun.result()
        torch.set_num_threads(cores)  # of this thread, and of those to come
        self.count = count

    def __call__(self, learner: Learner, each: list[Task], taken: Callable[[Learner, list[Task]], Tensor]) -> Tensor:
        """The sum of `taken(replica, tasks)` over the threads; each has a replica on the same weights."""
        with twice_differentiable(**kinds(learner)):  # a switch of the process: threads must not turn it on and off
            replicas = [_replica(learner) for _ in range(min(self.count, len(each)))]
            parts = [each[start :: len(replicas)] for start in range(len(replicas))]
            results = [self.pool.submit(taken, replica, part) for replica, part in zip(replicas, parts)]
            total = sum((result.result() for result in results), torch.zeros(()))
        for replica in replicas:
            for parameter, own in zip(learner.parameters(), replica.parameters()):
                if own.grad is not None:
                    parameter.grad = own.grad if parameter.grad is None else parameter.grad + own.grad
        return total


def _replica(learner: Learner) -> Learner:
    """The learner with parameters that share its memory and have gradients of their own."""
    return copy.deepcopy(learner, {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in learner.parameters()})
