"""The meta-gradient of one step: the mean outer loss over a stack of tasks, and its gradient. Several ways, one result.

`loop` goes through the tasks one by one and frees each one's graph before the next: the least memory. `threads` does so
on every core of a CPU at once. `vmap` runs all tasks in one batched pass. `compiled` compiles that whole pass, gradient
included, once for each shape of tasks. `auto` measures the real step and picks. Where a step would not fit into memory
the tasks are taken in chunks, and inner steps are computed twice rather than kept. Only this file knows the difference.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from kshot.inner.explaining import differentiated
from kshot.inner.unrolling import recomputing
from kshot.learner import Learner
from kshot.training.memory import GIB, available, predicted_peak, size
from kshot.training.threads import Threads
from kshot.types import Params, Task, tree_leaves, tree_map, unstack

Mode = Literal["auto", "loop", "threads", "vmap", "compiled"]
Way = Literal["loop", "threads", "vmap", "compiled"]

log = logging.getLogger(__name__)

SHARE = 0.8  # of the memory that is free, for one step
SMALL = 5_000  # a step whose parameters and tasks fit this often into memory needs no plan

TRIALS = 3  # steps that "auto" takes each way before it picks; the first warms up and does not count


class Plan(NamedTuple):
    """How a step keeps within memory.

    Attributes:
        chunk: tasks in one pass; None is all of them.
        recompute: whether inner steps are computed again in the backward pass rather than kept.
    """

    chunk: int | None = None
    recompute: bool = False


class MetaGradient:
    r"""Adds $\nabla_\theta \frac1T \sum_t L_t(\theta)$ to the `.grad` of a learner's parameters, step after step.

    Args:
        learner: whose `forward` gives a task's outer loss.
        mode: "loop", "threads", "vmap", "compiled", or "auto": a few steps are taken each way but compiled, and the
            fastest goes on. Compiling pays from some thousand steps of a small model on, takes tens of seconds, and
            needs a C++ compiler: it is asked for by its name. Threads are for a CPU with several cores.
        backend: what compiles, a backend of `torch.compile`.
        memory: bytes that a step may take; by default most of what the device has free. A step that would take more,
            by what is predicted before it is taken, goes in chunks of tasks, or recomputes its inner steps.
        chunk: tasks in one pass of "vmap" and "compiled"; by default as many as fit.
        recompute: whether "loop" and "threads" compute inner steps again in the backward pass rather than keep them;
            by default where they must to fit.

    Attributes:
        way: how the next step is taken; None while "auto" is still measuring.
        choice: the sentence that says which way was taken instead of what was asked, and why; else empty.
        plan: how the last step kept within memory.

    Raises:
        ValueError: another mode.
        MemoryError: a step, when called, of which a single task would not fit.

    Example:
        >>> learner = kshot.maml(torch.nn.Linear(1, 1), inner_lr=0.01, objective=kshot.objectives.mse)
        >>> gradient = MetaGradient(learner, "vmap")
        >>> loss = gradient(kshot.tasks.sinusoids().stack("train", range(4)))
        >>> learner.model.weight.grad.shape
        torch.Size([1, 1])
    """

    def __init__(
        self,
        learner: Learner,
        mode: Mode = "auto",
        *,
        backend: str = "inductor",
        memory: int | None = None,
        chunk: int | None = None,
        recompute: bool | None = None,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be at least 1 task, or None for as many as fit, got {chunk}")
        self.learner = learner
        self.way: Way | None = None if mode == "auto" else mode
        self.choice = ""
        self.plan = Plan()
        self._asked = memory, chunk, recompute
        self._plans: dict[Any, Plan] = {}  # by the way and the shapes of the tasks
        self._seconds: dict[Way, list[float]] = {"loop": [], "vmap": []}
        if torch.get_num_threads() > 1 and _device(learner).type == "cpu":
            self._seconds["threads"] = []
        self._threads: Threads | None = None
        if mode == "compiled" and learner.annealed:
            self._take("vmap", "since this learner's loss changes in the course of training, and is not compiled")
        self._backend = backend
        self._programs: dict[Any, Callable[..., tuple[Params, Tensor]]] = {}  # by the shapes of the tasks

    def __call__(self, tasks: Task) -> Tensor:
        """Add the gradient over a stack of T tasks; returns the mean loss, (), detached."""
        if self.way is None:
            return self._measure(tasks)
        if self.way == "compiled":
            try:
                return self._step("compiled", tasks)
            except MemoryError:
                raise
            except Exception as error:  # whatever a compiler may raise; the step itself is taken the plain way
                reason = " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__  # who, and what
                self._take("vmap", f"since the step could not be compiled: {reason}")
        if self.way == "threads" and self._threads is None:
            return self._first_of_threads(tasks)
        return self._step(self.way, tasks)

    def _step(self, way: Way, tasks: Task) -> Tensor:
        """One step, some way, within memory."""
        key = way, *_shapes(tasks)
        if key not in self._plans:
            self._plans[key] = self._planned(way, tasks)
        self.plan = self._plans[key]
        with recomputing(self.plan.recompute):
            if way == "loop":
                return self._loop(tasks)
            if way == "threads":
                return self._on_threads(tasks)
            count = len(tasks.support.weight)
            chunk = min(self.plan.chunk or count, count)
            once = self._vmap if way == "vmap" else self._compiled
            starts = range(0, count, chunk)
            parts = [tree_map(lambda leaf, start=start: leaf[start : start + chunk], tasks) for start in starts]
            return torch.stack([once(part, len(part.support.weight) / count) for part in parts]).sum()

    def _loop(self, tasks: Task) -> Tensor:
        return _one_by_one(self.learner, unstack(tasks), len(tasks.support.weight))

    def _on_threads(self, tasks: Task) -> Tensor:
        assert self._threads is not None
        count, recompute = len(tasks.support.weight), self.plan.recompute

        def taken(replica: Learner, part: list[Task]) -> Tensor:
            with recomputing(recompute):  # of this thread
                return _one_by_one(replica, part, count)

        return self._threads(self.learner, unstack(tasks), taken)

    def _first_of_threads(self, tasks: Task) -> Tensor:
        """A first step in the loop, that shows whether tasks draw random numbers, which threads would mix up."""
        before, cores = torch.get_rng_state(), torch.get_num_threads()
        loss = self._step("loop", tasks)
        if cores == 1 or loss.device.type != "cpu":
            self._take("loop", "since threads need a CPU with several cores")
        elif not torch.equal(before, torch.get_rng_state()):
            self._take("loop", "since this learner draws random numbers, whose order threads would not keep")
        else:
            self._threads = Threads(cores)
        return loss

    def _vmap(self, tasks: Task, share: float) -> Tensor:
        """The share of the mean loss that these tasks have."""
        with differentiated(self.learner, lambda: self.learner(unstack(tasks)[0])):
            loss = torch.vmap(self.learner, randomness="different")(tasks).mean() * share
            loss.backward()
        return loss.detach()

    def _compiled(self, tasks: Task, share: float) -> Tensor:
        named = {name: p.detach() for name, p in self.learner.named_parameters()}
        learning = {name: named.pop(name) for name, p in self.learner.named_parameters() if p.requires_grad}
        fixed = named | dict(self.learner.named_buffers())
        shapes = (self.learner.training, *_shapes(tasks))
        if shapes not in self._programs:
            self._programs[shapes] = _compile(self.learner, (learning, fixed, tasks), self._backend)
        grads, loss = self._programs[shapes](learning, fixed, tasks)
        for name, parameter in self.learner.named_parameters():
            if name in grads:
                part = grads[name] if share == 1 else grads[name] * share
                parameter.grad = part if parameter.grad is None else parameter.grad + part
        return loss.detach() * share

    def _planned(self, way: Way, tasks: Task) -> Plan:
        """The first plan that fits: all tasks, as many as fit, and with inner steps recomputed."""
        memory, chunk, recompute = self._asked
        batched = way in ("vmap", "compiled")
        if (chunk if batched else recompute) is not None:
            return Plan(chunk, bool(recompute) and not batched)
        device = tasks.support.weight.device
        room = SHARE * available(device) if memory is None else memory
        if memory is None and SMALL * size(self.learner, tasks) < room:
            return Plan()
        try:
            return self._fitting(way, tasks, room)
        except MemoryError:
            raise
        except Exception as error:  # what runs may yet have no shapes to plan by
            log.info("the memory of a step is not predicted: %s", str(error).split("\n")[0])
            return Plan()

    def _fitting(self, way: Way, tasks: Task, room: float) -> Plan:
        count = len(tasks.support.weight)

        def peak(number: int, *, recompute: bool = False) -> int:
            some = tree_map(lambda leaf: leaf[:number], tasks)
            return predicted_peak(self.learner, some, _by_vmap if way in ("vmap", "compiled") else _by_loop(recompute))

        if way in ("vmap", "compiled"):
            whole, one = peak(count), peak(1)
            if whole <= room:
                return Plan()
            each = max((whole - one) / max(count - 1, 1), 1)
            chunk = int((room - one) // each) + 1
            if chunk >= 1:
                log.info("the tasks are taken %d at a time: all %d would take %.1f GiB", chunk, count, whole / GIB)
                return Plan(chunk)
            raise _too_large(one, room, "with mode='loop', which can recompute its inner steps, it takes less")
        at_once = min(torch.get_num_threads(), count) if way == "threads" else 1
        whole = at_once * peak(1)
        if whole <= room:
            return Plan()
        least = at_once * peak(1, recompute=True)
        if least <= room:
            log.info(
                "inner steps are computed twice rather than kept: %.1f GiB instead of %.1f", least / GIB, whole / GIB
            )
            return Plan(recompute=True)
        raise _too_large(least, room, "smaller images, fewer queries, a smaller model or order=1 take less")

    def _measure(self, tasks: Task) -> Tensor:
        """Take this step the way that has been tried least; once all have, keep the fastest."""
        way = min(self._seconds, key=lambda w: len(self._seconds[w]))
        started = time.perf_counter()
        try:
            if way == "threads" and self._threads is None:
                loss = self._first_of_threads(tasks)
                if self.way is not None:  # no threads for this learner
                    self.way, self.choice = None, ""
                    del self._seconds["threads"]
                    return loss
            else:
                loss = self._step(way, tasks)
        except (RuntimeError, MemoryError) as error:
            if way != "vmap":
                raise
            self._take("loop", f"since these tasks do not run under vmap: {str(error).splitlines()[0]}")
            self.learner.zero_grad()
            return self._step("loop", tasks)
        if loss.is_cuda:
            torch.cuda.synchronize(loss.device)
        self._seconds[way].append(time.perf_counter() - started)
        if all(len(times) == TRIALS for times in self._seconds.values()):
            best = {w: min(times[1:]) for w, times in self._seconds.items()}
            _, fastest = min((seconds, w) for w, seconds in best.items())
            told = ", ".join(f"{w} {1e3 * seconds:.0f} ms" for w, seconds in best.items())
            self._take(fastest, f"the fastest by measure ({told} a step)")
        return loss

    def _take(self, way: Way, why: str) -> None:
        self.way, self.choice = way, f"{way}, {why}"
        log.info("the meta-gradient is taken as %s", self.choice)


def _one_by_one(learner: Learner, each: Sequence[Task], count: int) -> Tensor:
    """Adds the gradient of each task's loss, divided by a count; returns the sum of those losses."""
    total = each[0].support.weight.new_zeros(())
    for task in each:
        with differentiated(learner, lambda task=task: learner(task)):  # type: ignore[misc]
            loss = learner(task) / count
            loss.backward()
        total += loss.detach()
    return total


def _by_vmap(one: Callable[[Task], Tensor], tasks: Task) -> None:
    torch.vmap(one, randomness="different")(tasks).mean().backward()


def _by_loop(recompute: bool) -> Callable[[Callable[[Task], Tensor], Task], None]:
    def step(one: Callable[[Task], Tensor], tasks: Task) -> None:
        with recomputing(recompute):
            for task in unstack(tasks):
                one(task).backward()

    return step


def _too_large(needed: float, room: float, way_out: str) -> MemoryError:
    return MemoryError(
        f"a meta-gradient of one task takes about {needed / GIB:.1f} GiB, of {room / GIB:.1f} GiB that it may take: "
        f"{way_out}"
    )


def _shapes(tasks: Task) -> tuple:
    return tuple((leaf.shape, leaf.dtype) for leaf in tree_leaves(tasks))


def _device(learner: Learner) -> torch.device:
    return next((p.device for p in learner.parameters()), torch.device("cpu"))


def meta_gradient(learner: Learner, tasks: Task, mode: Mode = "loop") -> Tensor:
    """Add the gradient of one stack of tasks to the `.grad` of the learner's parameters; see `MetaGradient`."""
    return MetaGradient(learner, mode)(tasks)


def _compile(
    learner: Learner, example: tuple[Params, Params, Task], backend: str
) -> Callable[[Params, Params, Task], tuple[Params, Tensor]]:
    """The compiled (learning, fixed, tasks) -> (gradients, mean loss) for the shapes of an example.

    The step is traced to plain tensor operations first, gradients of gradients included: tracing the Python of nested
    `functional_call`s instead gives, without a word, the gradient of a learner that does not adapt.
    """
    from kshot.tasks.library import cache_folder

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))  # programs outlive the process

    def mean_loss(learning: Params, fixed: Params, tasks: Task) -> Tensor:
        def one(task: Task) -> Tensor:
            return torch.func.functional_call(learner, learning | fixed, (task,))

        return torch.vmap(one, randomness="different")(tasks).mean()

    graph = make_fx(torch.func.grad_and_value(mean_loss))(*example)
    return torch.compile(graph, fullgraph=True, dynamic=False, backend=backend)
