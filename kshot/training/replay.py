"""Replays of recorded steps: the programs by all that a trace depends on, and their comparison with plain steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from kshot.inner.functional import assume_equal_weights
from kshot.inner.layer_errors import explain_missing_derivatives
from kshot.inner.precision import loss_scales
from kshot.inner.unrolling import recomputing
from kshot.learner import Learner
from kshot.training.cuda_graph import CudaGraph
from kshot.training.programs import (
    SCALES,
    Program,
    compile_program,
    draws_random_numbers,
    python_state,
    trace_stack,
    trace_task,
)
from kshot.types import Params, Task, tree_leaves, unstack

Recorded = Literal["traced", "compiled"]
MAX_STATES = 4
"""States of a learner's attributes that are recorded, for tasks of one shape, before it counts as always changing."""


class Gradient(NamedTuple):
    """The mean loss over tasks, (), its gradient by name, and the mean of the buffers that the tasks have changed."""

    loss: Tensor
    grads: Params
    buffers: Params


class Entry:
    """A program, of one task or of a stack, the one that it was compiled from, and the number of its replays."""

    def __init__(self, program: Program, traced: GraphModule, one_task: bool) -> None:
        self.program, self.traced, self.one_task, self.replays = program, traced, one_task, 0


class Replayer:
    """Computes gradients by programs, which it records when it needs them.

    Args:
        learner: its `forward` returns the outer loss of a task.
        backend: backend of `torch.compile`.
        one_task: whether "traced" records one task and replays it for each, on all cores, instead of a stack of tasks.
    """

    def __init__(self, learner: Learner, backend: str, one_task: bool) -> None:
        self.learner, self.backend, self.one_task = learner, backend, one_task
        self._entries: dict[Any, Entry] = {}
        self._states: dict[Any, set[tuple]] = {}  # states of the learner's attributes, by shapes of the tasks
        self._pools: dict[int, ThreadPoolExecutor] = {}  # by number of threads

    def __call__(self, entry: Entry, tasks: Task, *, eager: bool = False) -> Gradient:
        """The gradient of the mean loss over a stack of tasks; `eager` runs a program without compilation."""
        program = entry.traced if eager else entry.program
        trained, fixed = self._parameters()
        if entry.one_task:
            return self._on_cores(program, trained, fixed, unstack(tasks))
        with torch.no_grad():
            grads, loss, buffers = program(trained, fixed, tasks)
        return Gradient(loss.detach(), grads, mean_over_tasks(buffers))

    def entry(self, engine: Recorded, tasks: Task, *, recompute: bool) -> Entry:
        """The program for tasks of these shapes and the present state of the learner; raises if it does not trace."""
        trained, fixed = self._parameters()
        one_task = engine == "traced" and self.one_task
        example = trained, fixed, unstack(tasks)[0] if one_task else tasks
        equal_weights = have_equal_weights(tasks)
        key = engine, equal_weights, tuple(trained), shapes_of(example[2])
        state = python_state(self.learner)
        if (key, state) not in self._entries:
            states = self._states.setdefault(key, set())
            states.add(state)
            if len(states) > MAX_STATES:
                raise RuntimeError("attributes of its layers that are numbers, strings or flags keep changing")
            task, trace = (example[2], trace_task) if one_task else (unstack(tasks)[0], trace_stack)
            explained = explain_missing_derivatives(self.learner, lambda: self.learner(task))
            with (
                separate_grads(dict(self.learner.named_parameters())),
                explained,
                assume_equal_weights(equal_weights),
                recomputing(recompute),
            ):
                traced = trace(self.learner, example)
            program = compile_program(traced, self.backend) if engine == "compiled" else traced
            if not one_task and on_gpu(example) and not draws_random_numbers(traced):
                program = CudaGraph(program)
            self._entries[key, state] = Entry(program, traced, one_task)
        return self._entries[key, state]

    def _on_cores(self, program: Program, trained: Params, fixed: Params, tasks: list[Task]) -> Gradient:
        """The gradient by the program of one task, on all cores in parallel."""

        @torch.no_grad()
        def sum_over(part: list[Task]) -> tuple[Params, Tensor, list[Params]]:
            grads, total, buffers = program(trained, fixed, part[0])
            changed = [buffers]
            for task in part[1:]:
                task_grads, loss, buffers = program(trained, fixed, task)
                grads = dict(zip(grads, torch._foreach_add(list(grads.values()), list(task_grads.values()))))
                total = total + loss
                changed.append(buffers)
            return grads, total, changed

        # random numbers are drawn in the order of the tasks
        count = 1 if draws_random_numbers(program) else min(torch.get_num_threads(), len(tasks))
        if count == 1:
            results = [sum_over(tasks)]
        else:
            if count not in self._pools:
                self._pools[count] = _single_core_threads(count)
            results = list(self._pools[count].map(sum_over, [tasks[start::count] for start in range(count)]))
        names = list(results[0][0])
        grads = [
            torch.stack(parts).sum(0) if count > 1 else parts[0] for parts in zip(*(r[0].values() for r in results))
        ]
        loss = torch.stack([total for _, total, _ in results]).sum() / len(tasks)
        buffers = [results[number % count][2][number // count] for number in range(len(tasks))]
        return Gradient(
            loss, dict(zip(names, torch._foreach_mul(grads, 1 / len(tasks)))), mean_over_tasks(stacked(buffers))
        )

    def _parameters(self) -> tuple[Params, Params]:
        """The trained parameters, and the fixed ones with the buffers and the scales of losses, detached, by name."""
        trained: Params = {}
        fixed: Params = {name: scale for name, scale in zip(SCALES, loss_scales()) if scale is not None}
        fixed |= dict(self.learner.named_buffers())
        for name, parameter in self.learner.named_parameters():
            (trained if parameter.requires_grad else fixed)[name] = parameter.detach()
        return trained, fixed


@contextmanager
def separate_grads(parameters: Mapping[str, nn.Parameter]) -> Iterator[Params]:
    """A context in which gradients are accumulated apart from those that parameters hold; yields them, by name."""
    named = [(name, parameter) for name, parameter in parameters.items() if parameter.requires_grad]
    held = [parameter.grad for _, parameter in named]
    grads: Params = {}
    for _, parameter in named:
        parameter.grad = None
    try:
        yield grads
        grads.update((name, parameter.grad) for name, parameter in named if parameter.grad is not None)
    finally:
        for (_, parameter), grad in zip(named, held):
            parameter.grad = grad


def stacked(buffers: list[Params]) -> Params:
    """The buffers of some tasks, by name, stacked over the tasks."""
    return {name: torch.stack([task[name] for task in buffers]) for name in buffers[0]} if buffers else {}


def weighted_mean(parts: list[tuple[Gradient, float]]) -> Gradient:
    """The gradient of the mean over all tasks from those of parts of them, which are fractions of the whole."""

    def mean(values: list[Tensor]) -> Tensor:
        if not values[0].is_floating_point():
            return values[0]
        return torch.stack([value * fraction for value, (_, fraction) in zip(values, parts)]).sum(0)

    gradients = [gradient for gradient, _ in parts]
    return Gradient(
        mean([gradient.loss for gradient in gradients]),
        *({n: mean([tree[n] for tree in trees]) for n in trees[0]} for trees in zip(*(g[1:] for g in gradients))),
    )


def mean_over_tasks(buffers: Params) -> Params:
    """Buffers (T, ...) as one value: the mean of floating-point numbers, of other types that of the first task."""
    return {name: b.mean(0) if b.is_floating_point() else b[0] for name, b in buffers.items()}


def is_due(number: int) -> bool:
    """Whether a replay is compared with a plain step: replays 1, 2, 5, 10, 20, 50, 100, …"""
    while number >= 10 and number % 10 == 0:
        number //= 10
    return number in (1, 2, 5)


def difference(found: Gradient, expected: Gradient) -> float:
    r"""The larger one of the relative differences of the losses and of the gradients, $|g - g'| / |g'|$."""
    if found.grads.keys() != expected.grads.keys():
        return float("inf")
    pairs = [(found.grads[name].double(), grad.double()) for name, grad in expected.grads.items()]
    pairs = [(torch.cat([a.flatten() for a, _ in pairs]), torch.cat([b.flatten() for _, b in pairs]))] if pairs else []
    pairs.append((found.loss.double()[None], expected.loss.double()[None]))
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)


def is_finite(gradient: Gradient) -> bool:
    """Whether the loss and its gradient have neither infinities nor NaN."""
    return all(bool(tensor.isfinite().all()) for tensor in (gradient.loss, *gradient.grads.values()))


def have_equal_weights(tasks: Task) -> bool:
    """Whether all examples of the tasks have equal weights, above 0."""
    weights = tasks.support.weight, tasks.query.weight
    return all(bool(((weight == weight[..., :1]) & (weight > 0)).all()) for weight in weights)


def shapes_of(tasks: Task) -> tuple:
    """Shapes and dtypes of the tensors of tasks."""
    return tuple((leaf.shape, leaf.dtype) for leaf in tree_leaves(tasks))


def on_gpu(tree: Any) -> bool:
    """Whether all tensors of a tree are on a GPU of CUDA."""
    return all(leaf.is_cuda for leaf in tree_leaves(tree))


def _single_core_threads(count: int) -> ThreadPoolExecutor:
    """Threads with one core each: operations of a small task are too short to be split, and waiting cores spin."""
    pool, barrier, num_cores = ThreadPoolExecutor(count), Barrier(count), torch.get_num_threads()

    def initialise(_: int) -> None:
        barrier.wait()  # so that each of these calls runs in a different thread
        torch.set_num_threads(1)

    list(pool.map(initialise, range(count)))
    torch.set_num_threads(num_cores)  # of this thread and of later ones
    return pool
