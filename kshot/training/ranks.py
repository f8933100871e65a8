"""Several processes that train one learner: each takes some of the tasks of a step, and gradients are averaged.

The processes are those of `torch.distributed`, which `torchrun`, `accelerate launch` or `kshot run --processes` start.
In training, all run the same program. Tasks and decisions are pure functions of what all processes know, so that only
gradients, results of single tasks, and what a clock or an error decides are sent. Where errors are recorded and the
program goes on, process 0 runs it alone, in `leading`, and the others score the tasks that it sends (`help_first`).
Without a process group there is one process.
"""

from __future__ import annotations

import io
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from kshot.context import holding
from kshot.training.replay import Gradient
from kshot.training.shards import calling, give, serve
from kshot.training.timing import named
from kshot.types import Params

Item = TypeVar("Item")
Result = TypeVar("Result")
BLOCK = 8
"""Items of each process between two exchanges of results."""
WORTH_SENDING = 3.0
"""An item is sent to another process if it costs so many times what it costs to turn it into bytes."""
PATIENCE = timedelta(days=30)
"""How long the others wait for what process 0 does alone."""
END, ITEMS, WEIGHTS = range(3)
"""The calls of process 0."""


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
    return from_rank(0, value)


def from_rank(rank: int, value: Item) -> Item:
    """The value of one process."""
    if ranks().size == 1:
        return value
    held = [value]
    with _answered():
        dist.broadcast_object_list(held, src=rank)
    return held[0]


def from_all(value: Item) -> list[Item]:
    """The values of all processes, in their order."""
    if ranks().size == 1:
        return [value]
    held = [value] * ranks().size
    with _answered():
        dist.all_gather_object(held, value)
    return held


@contextmanager
def alone() -> Iterator[None]:
    """A context in which this process works as if there was no other."""
    with holding(_alone, True), holding(_others, None):
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
    with _answered():
        serve()
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


def map_over_ranks(
    work: Callable[[Item], Result], items: Iterable[Item], *, led: bool = True
) -> Iterator[tuple[Item, Result]]:
    """Each item with the result of `work`, in order; a process works on some of the items and receives all results.

    Args:
        work: a function whose results can be pickled, and that does not depend on the order of its calls. In `leading`,
            the items are pickled too, and the function, or process 0 does all of them.
        items: the same in all processes.
        led: whether the items are shared in `leading` too.
    """
    if (others := _others.get()) is not None and led:
        yield from others.map(work, items)
        return
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


@contextmanager
def leading(others: Others | None) -> Iterator[None]:
    """In process 0, a context in which it runs the program alone, and `map_over_ranks` has items done by the others.

    They call `help_first`, which ends with the context. Process 0 has the threads of all processes of its machine,
    except while items are shared.
    """
    if others is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(threads * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    try:
        with holding(_alone, True), holding(_others, others), holding(calling, partial(others.call, WEIGHTS)):
            yield
    except LostProcess:  # nobody is left to be called
        raise
    except Exception:  # the others wait for a call, however it ends
        others.call(END)
        raise
    else:
        others.call(END)
    finally:
        torch.set_num_threads(threads)


def help_first(others: Others | None) -> None:
    """In a process other than 0, do the items that process 0 sends, and give weights, until its `leading` ends.

    Raises:
        LostProcess: process 0 ended otherwise, as by a signal.
    """
    if others is None:
        return
    work: Callable[[Any], Any] | None = None
    while (call := others.next_call()) != END:
        if call == WEIGHTS:
            with _answered():
                give()
            continue
        received: list[Any] = [None]
        with _answered():
            dist.scatter_object_list(received, None, src=0)
        packed_work, packed_items = received[0]
        try:
            if packed_work is not None:
                work = None  # no longer that of before, if this one fails
                work = _unpacked(packed_work)
            assert work is not None
            with alone():
                found = _packed([work(item) for item in _unpacked(packed_items)])
        except Exception:  # process 0 does these items itself, where the error is what it is in one process
            found = None
        with _answered():
            dist.gather_object(found, dst=0)


class Others:
    """The processes that help process 0, as each of them and process 0 see it.

    All make it at once, and early: it waits for all, even for one that has ended.
    """

    def __init__(self) -> None:
        self.size, self.threads, self.busy = dist.get_world_size(), torch.get_num_threads(), False
        with _answered():
            self._calls = dist.new_group(timeout=PATIENCE, backend="gloo")

    def call(self, what: int) -> None:
        """Tell the others whether items come, weights that they share are wanted, or the context ends."""
        with _answered():
            dist.broadcast(torch.tensor([what]), src=0, group=self._calls)

    def next_call(self) -> int:
        """Wait for a call of process 0."""
        what = torch.tensor([END])
        with _answered():
            dist.broadcast(what, src=0, group=self._calls)
        return int(what)

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        """As `map_over_ranks`, in process 0; a call within another one is not shared."""
        left, threads = iter(items), torch.get_num_threads()
        packed = None
        with suppress(Exception):  # of the pickling of any object
            packed = _packed(work)
        if packed is None or self.busy:
            yield from ((item, work(item)) for item in left)
            return
        self.busy = True
        torch.set_num_threads(self.threads)
        try:
            yield from ((item, work(item)) for item in islice(left, 1))  # which may compile, or fill a cache
            for item in islice(left, 1):
                started = time.perf_counter()
                result = work(item)
                worked = time.perf_counter()
                _packed(item)
                costs_less = worked - started < WORTH_SENDING * (time.perf_counter() - worked)
                yield item, result
                if costs_less:
                    yield from ((item, work(item)) for item in left)
            while block := list(islice(left, BLOCK * self.size)):
                parts = self._parts(work, packed, block)
                packed = None  # the others have it
                for number, item in enumerate(block):
                    part = parts[number % self.size]
                    yield item, work(item) if part is None else part[number // self.size]
        finally:
            self.busy = False
            torch.set_num_threads(threads)

    def _parts(
        self, work: Callable[[Item], Result], packed: bytes | None, block: Sequence[Item]
    ) -> list[list[Result] | None]:
        """The results of each process, of process 0 first; None for one that failed."""
        sent = [(packed, _packed(block[rank :: self.size])) for rank in range(1, self.size)]
        self.call(ITEMS)
        with _answered():
            dist.scatter_object_list([None], [None, *sent], src=0)
        try:
            own = [work(item) for item in block[:: self.size]]
        except Exception:  # it comes again where the item is done in its turn
            own = None
        found: list[bytes | None] = [None] * self.size
        with _answered():
            dist.gather_object(None, found, dst=0)
        return [own, *(None if part is None else _unpacked(part) for part in found[1:])]


def others() -> Others | None:
    """What `leading` and `help_first` need; None for one process."""
    return Others() if ranks().size > 1 else None


_others: ContextVar[Others | None] = ContextVar("others", default=None)


def _packed(tree: object) -> bytes:
    """An object as bytes; of a tensor that is a view, no more than what it shows."""
    file = io.BytesIO()
    torch.save(tree_map_only(Tensor, torch.clone, tree), file, pickle_protocol=pickle.HIGHEST_PROTOCOL)
    return file.getvalue()


def _unpacked(content: bytes) -> Any:
    """The object of `_packed` by another process of the run, on the GPU of this process if it was on one."""

    def place(storage: Any, device: str) -> Any:
        return storage.cuda() if device.startswith("cuda") else storage

    return torch.load(io.BytesIO(content), map_location=place, weights_only=False)
