"""The meta-gradient of one step: the mean outer loss over a stack of tasks, and its gradient. Several ways, one result.

`loop` goes through the tasks one by one and frees each one's graph before the next: the least memory. `vmap` runs all
tasks in one batched pass. `compiled` compiles that whole pass, gradient included, once for each shape of tasks. `auto`
measures the real step and picks. Only this file knows the difference.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from kshot.inner.explaining import differentiated
from kshot.learner import Learner
from kshot.types import Params, Task, tree_leaves, unstack

Mode = Literal["auto", "loop", "vmap", "compiled"]
Way = Literal["loop", "vmap", "compiled"]

log = logging.getLogger(__name__)

TRIALS = 3  # steps that "auto" takes each way before it picks; the first warms up and does not count


class MetaGradient:
    r"""Adds $\nabla_\theta \frac1T \sum_t L_t(\theta)$ to the `.grad` of a learner's parameters, step after step.

    Args:
        learner: whose `forward` gives a task's outer loss.
        mode: "loop", "vmap", "compiled", or "auto": a few steps are taken as loop and as vmap, and the faster goes on.
            Compiling pays from some thousand steps of a small model on, takes tens of seconds, and needs a C++
            compiler: it is asked for by its name.
        backend: what compiles, a backend of `torch.compile`.

    Attributes:
        way: how the next step is taken; None while "auto" is still measuring.
        choice: the sentence that says which way was taken instead of what was asked, and why; else empty.

    Raises:
        ValueError: another mode.

    Example:
        >>> learner = kshot.maml(torch.nn.Linear(1, 1), inner_lr=0.01, objective=kshot.objectives.mse)
        >>> gradient = MetaGradient(learner, "vmap")
        >>> loss = gradient(kshot.tasks.sinusoids().stack("train", range(4)))
        >>> learner.model.weight.grad.shape
        torch.Size([1, 1])
    """

    def __init__(self, learner: Learner, mode: Mode = "auto", *, backend: str = "inductor") -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
        self.learner = learner
        self.way: Way | None = None if mode == "auto" else mode
        self.choice = ""
        self._seconds: dict[Way, list[float]] = {"loop": [], "vmap": []}
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
                return self._compiled(tasks)
            except Exception as error:  # whatever a compiler may raise; the step itself is taken the plain way
                reason = " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__  # who, and what
                self._take("vmap", f"since the step could not be compiled: {reason}")
        return self._loop(tasks) if self.way == "loop" else self._vmap(tasks)

    def _loop(self, tasks: Task) -> Tensor:
        each = unstack(tasks)
        total = tasks.support.weight.new_zeros(())
        for task in each:
            with differentiated(self.learner, lambda task=task: self.learner(task)):  # type: ignore[misc]
                loss = self.learner(task) / len(each)
                loss.backward()
            total += loss.detach()
        return total

    def _vmap(self, tasks: Task) -> Tensor:
        with differentiated(self.learner, lambda: self.learner(unstack(tasks)[0])):
            loss = torch.vmap(self.learner, randomness="different")(tasks).mean()
            loss.backward()
        return loss.detach()

    def _compiled(self, tasks: Task) -> Tensor:
        named = {name: p.detach() for name, p in self.learner.named_parameters()}
        learning = {name: named.pop(name) for name, p in self.learner.named_parameters() if p.requires_grad}
        fixed = named | dict(self.learner.named_buffers())
        shapes = (self.learner.training, *((leaf.shape, leaf.dtype) for leaf in tree_leaves(tasks)))
        if shapes not in self._programs:
            self._programs[shapes] = _compile(self.learner, (learning, fixed, tasks), self._backend)
        grads, loss = self._programs[shapes](learning, fixed, tasks)
        for name, parameter in self.learner.named_parameters():
            if name in grads:
                parameter.grad = grads[name] if parameter.grad is None else parameter.grad + grads[name]
        return loss.detach()

    def _measure(self, tasks: Task) -> Tensor:
        """Take this step the way that has been tried least; once all have, keep the fastest."""
        way = min(self._seconds, key=lambda w: len(self._seconds[w]))
        started = time.perf_counter()
        try:
            loss = self._loop(tasks) if way == "loop" else self._vmap(tasks)
        except RuntimeError as error:
            if way == "loop":
                raise
            self._take("loop", f"since these tasks do not run under vmap: {str(error).splitlines()[0]}")
            self.learner.zero_grad()
            return self._loop(tasks)
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
