"""Several processes that train one learner: each takes some of the tasks of a step, and gradients are averaged.

The processes are those of `torch.distributed`, which `torchrun`, `accelerate launch` or `kshot run --processes` start.
All run the same program. Tasks and decisions are pure functions of what all processes know, so that only gradients,
results of single tasks, and what a clock or an error decides are sent. Without a process group there is one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from kshot.context import holding
from kshot.training.replay import Gradient
from kshot.training.timing import named
from kshot.types import Params

Item = TypeVar("Item")
Result = TypeVar("Result")
BLOCK = 8
"""Items of each process between two exchanges of results."""


class Ranks(NamedTuple):
    """The number of this process, from 0 on, and that of all processes."""

    rank: int
    size: int

    def part_of(self, numbers: range) -> range:
        """Every `size`-th number, from that of this process on.

        Raises:
            ValueError: there are fewer numbers than processes.
        """
        if len(numbers) < self.size:
            raise ValueError(
                f"a step of {len(numbers)} tasks cannot be shared by {self.size} processes: set tasks_per_step to at "
                f"least {self.size}, or start fewer processes"
            )
        return numbers[self.rank :: self.size]


def ranks() -> Ranks:
    """This process among those of the process group."""
    if dist.is_available() and dist.is_initialized() and not _alone.get():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks(0, 1)


def mean_gradient(gradient: Gradient, parameters: Mapping[str, nn.Parameter], num_tasks: int) -> Gradient:
    """The gradient of the mean loss over the tasks of all processes, from that over the tasks of this one.

    A parameter has no gradient if it has none in all processes. Buffers are averaged if they are floating point.
    """
    if ranks().size == 1:
        return gradient
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    has_grad = gradient.loss.new_tensor([float(name in gradient.grads) for name in trained])
    tensors = {"loss": gradient.loss, "has grad": has_grad}
    tensors |= {f"grad {name}": gradient.grads.get(name, torch.zeros_like(each)) for name, each in trained.items()}
    tensors |= {f"buffer {name}": each for name, each in gradient.buffers.items() if each.is_floating_point()}
    means = _means(tensors, num_tasks)
    grads = {name: means[f"grad {name}"] for name, share in zip(trained, means["has grad"]) if share > 0}
    buffers = {name: means.get(f"buffer {name}", each) for name, each in gradient.buffers.items()}
    return Gradient(means["loss"], grads, buffers)


def _means(tensors: Params, weight: float) -> Params:
    r"""Means over processes, $\sum_r w_r x_r / \sum_r w_r$, bitwise the same in all of them.

    One all-reduce for each type of number.

    Args:
        tensors: floating point; names and shapes are the same in all processes.
        weight: $w$ of this process.
    """
    found: Params = {}
    for dtype in sorted({tensor.dtype for tensor in tensors.values()}, key=str):
        parts = {name: tensor for name, tensor in tensors.items() if tensor.dtype == dtype}
        one = next(iter(parts.values())).new_ones(1)
        flat = torch.cat([*(part.flatten() for part in parts.values()), one]) * weight
        with _answered():
            dist.all_reduce(flat)
        means = (flat[:-1] / flat[-1]).split([part.numel() for part in parts.values()])
        found |= {name: mean.view_as(part) for (name, part), mean in zip(parts.items(), means)}
    return found


def copy_from_first(module: nn.Module) -> None:
    """Set the parameters and buffers of a module to those of process 0, in place."""
    if ranks().size > 1:
        with torch.no_grad(), _answered():
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor, src=0)


def from_first(value: Item) -> Item:
    """The value of process 0, such as a decision, or whether its clock has passed a deadline."""
    if ranks().size == 1:
        return value
    held = [value]
    with _answered():
        dist.broadcast_object_list(held, src=0)
    return held[0]


@contextmanager
def alone() -> Iterator[None]:
    """A context in which this process works as if there was no other."""
    with holding(_alone, True):
        yield


_alone: ContextVar[bool] = ContextVar("alone", default=False)


class LostProcess(ConnectionError):
    """Another process ended, or does not answer."""


@contextmanager
def _answered() -> Iterator[None]:
    try:
        with named("all-reduce"):
            yield
    except RuntimeError as error:  # of gloo and nccl, which have no errors of their own
        raise LostProcess(
            f"another process of the run ended, or did not answer in time: {str(error).splitlines()[0]}"
        ) from error


class Asked:
    """What `failing_together` yields.

    Attributes:
        by_any: whether one of the processes asks, once the context has ended.
    """

    def __init__(self, by_this: bool) -> None:
        self.by_any = by_this


@contextmanager
def failing_together(asks: bool = False) -> Iterator[Asked]:
    """A context at whose end all processes raise an error if one did, so that none waits for another.

    Args:
        asks: whether this process asks all for something, such as to stop. It is sent with what is sent anyway.

    Raises:
        LinAlgError: another process had one.
        RuntimeError: another process had another error; the message is its message.
    """
    asked = Asked(asks)
    if ranks().size == 1:
        yield asked
        return
    error: Exception | None = None
    try:
        yield asked
    except Exception as raised:
        error = raised
    counts = torch.tensor([error is not None, asks], dtype=torch.int64)
    with _answered():
        dist.all_reduce(counts)
        failed, asking = counts.tolist()
        asked.by_any = asking > 0
        if not failed:
            return
        said: list[tuple[bool, str] | None] = [None] * ranks().size
        own = None if error is None else (isinstance(error, torch.linalg.LinAlgError), str(error))
        dist.all_gather_object(said, own)
    if error is not None:
        raise error
    rank, (is_linalg, message) = next((rank, each) for rank, each in enumerate(said) if each is not None)
    raise (torch.linalg.LinAlgError if is_linalg else RuntimeError)(f"process {rank}: {message}")


def map_over_ranks(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Each item with the result of `work`, in order; a process works on some of the items and receives all results.

    Args:
        work: a function whose results can be pickled, and that does not depend on the order of its calls.
        items: the same in all processes.
    """
    rank, size = ranks()
    if size == 1:
        yield from ((item, work(item)) for item in items)
        return
    left = iter(items)
    while block := list(islice(left, BLOCK * size)):
        with failing_together():
            own = [work(item) for item in block[rank::size]]
        parts: list[list[Result]] = [[] for _ in range(size)]
        with _answered():
            dist.all_gather_object(parts, own)
        yield from ((item, parts[number % size][number // size]) for number, item in enumerate(block))
