"""The meta-gradient of one step: the mean outer loss over a stack of tasks, and its gradient. Several ways, one result.

`loop` goes through the tasks one by one and frees each one's graph before the next: the least memory. `vmap` runs all
tasks in one batched pass. `traced` records the operations of a step once for each shape of tasks, and replays them
without Python and autograd: those of the batched pass or, where convolutions run on a CPU, those of one task, for as
many tasks at once as there are cores. `compiled` compiles the record of the batched pass. `auto` measures the real step
and picks. Where a step would not fit into memory the tasks are taken in chunks, and inner steps are computed twice
rather than kept. Only this file knows the difference.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from kshot.inner.explaining import differentiated
from kshot.inner.functional import rows_alike
from kshot.inner.layout import convolves
from kshot.inner.unrolling import recomputing
from kshot.learner import Learner
from kshot.training.cores import Cores
from kshot.training.memory import GIB, available, predicted_peak, size
from kshot.training.programs import Program, compiled, draws, of_a_stack, of_one_task
from kshot.types import Params, Task, tree_leaves, tree_map, unstack

Mode = Literal["auto", "loop", "vmap", "traced", "compiled"]
Engine = Literal["loop", "vmap", "traced", "compiled"]

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
        mode: "loop", "vmap", "traced", "compiled", or "auto": a few steps are taken each way but compiled, and the
            fastest goes on. Tracing takes seconds. Compiling pays from some thousand steps of a small model on, takes
            tens of seconds, and needs a C++ compiler: it is asked for by its name.
        backend: what compiles, a backend of `torch.compile`.
        memory: bytes that a step may take; by default most of what the device has free. A step that would take more,
            by what is predicted before it is taken, goes in chunks of tasks, or recomputes its inner steps.
        chunk: tasks in one batched pass; by default as many as fit.
        recompute: whether inner steps are computed again in the backward pass rather than kept, where tasks go one by
            one; by default where they must to fit.

    Attributes:
        engine: how the next step is taken; None while "auto" is still measuring.
        choice: the sentence that says which way was taken instead of what was asked, and why; else empty.
        plan: how the last step kept within memory.
        single: whether "traced" records one task, and replays it on every core, rather than the batched pass; so it is
            where convolutions run on a CPU, which are slower in a batch.

    Raises:
        ValueError: another mode.
        MemoryError: a step, when called, of which a single task would not fit.

    Example:
        >>> learner = kshot.maml(torch.nn.Linear(1, 1), inner_lr=0.01, objective=kshot.objectives.mse)
        >>> gradient = MetaGradient(learner, "vmap")
        >>> loss = gradient(kshot.sources.sinusoids().stack("train", range(4)))
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
        self.engine: Engine | None = None if mode == "auto" else mode
        self.choice = ""
        self.plan = Plan()
        self._asked = memory, chunk, recompute
        self._plans: dict[Any, Plan] = {}  # by the way and the shapes of the tasks
        self._seconds: dict[Engine, list[float]] = {"loop": [], "vmap": []}
        self.single = convolves(learner) and _device(learner).type == "cpu"
        self._failed: list[str] = []  # what "auto" found out of the ways that do not run
        self._cores: Cores | None = None
        if not learner.annealed:
            self._seconds["traced"] = []
        elif mode in ("traced", "compiled"):
            self._take("vmap", f"since this learner's loss changes in the course of training, and is not {mode}")
        self._backend = backend
        self._programs: dict[Any, Program] = {}  # by all that they hold for

    def __call__(self, tasks: Task) -> Tensor:
        """Add the gradient over a stack of T tasks; returns the mean loss, (), detached."""
        if self.engine is None:
            return self._measure(tasks)
        if self.engine in ("traced", "compiled"):
            try:
                return self._step(self.engine, tasks)
            except MemoryError:
                raise
            except Exception as error:  # whatever tracing and compiling may raise: the step is taken by a plain engine
                plain: Engine = "loop" if self._one_by_one(self.engine) else "vmap"
                self._take(plain, f"since the step could not be {self.engine}: {_reason(error)}")
        return self._step(self.engine, tasks)

    def _one_by_one(self, engine: Engine) -> bool:
        """Whether that way takes tasks singly, rather than in one batch."""
        return engine == "loop" or (engine == "traced" and self.single)

    def _step(self, engine: Engine, tasks: Task) -> Tensor:
        """One step by an engine, within memory."""
        key = engine, _shapes(tasks)
        if key not in self._plans:
            self._plans[key] = self._planned(engine, tasks)
        self.plan = self._plans[key]
        if engine == "loop":
            with recomputing(self.plan.recompute):
                return self._loop(tasks)
        if self._one_by_one(engine):
            return self._on_cores(tasks)

        def once(tasks: Task, share: float) -> Tensor:
            return self._vmap(tasks, share) if engine == "vmap" else self._replay(engine, tasks, share)

        count, chunk = len(tasks.support.weight), self.plan.chunk
        if chunk is None or chunk >= count:
            return once(tasks, 1.0)
        parts = [tree_map(lambda leaf, at=at: leaf[at : at + chunk], tasks) for at in range(0, count, chunk)]
        return torch.stack([once(part, len(part.support.weight) / count) for part in parts]).sum()

    def _loop(self, tasks: Task) -> Tensor:
        total, count = tasks.support.weight.new_zeros(()), len(tasks.support.weight)
        for task in unstack(tasks):
            with differentiated(self.learner, lambda task=task: self.learner(task)):  # type: ignore[misc]
                loss = self.learner(task) / count
                loss.backward()
            total += loss.detach()
        return total

    def _vmap(self, tasks: Task, share: float) -> Tensor:
        """The share of the mean loss that these tasks have."""
        with differentiated(self.learner, lambda: self.learner(unstack(tasks)[0])):
            loss = torch.vmap(self.learner, randomness="different")(tasks).mean() * share
            loss.backward()
        return loss.detach()

    def _replay(self, engine: Engine, tasks: Task, share: float) -> Tensor:
        """As `_vmap`, by the program of a stack of tasks."""
        learning, fixed = self._parameters()
        program = self._program(engine, tasks, (learning, fixed, tasks))
        with torch.no_grad():
            grads, loss = program(learning, fixed, tasks)
        self._add(grads, share)
        return loss.detach() * share

    def _on_cores(self, tasks: Task) -> Tensor:
        """As `_loop`, by the program of one task, on all cores at once."""
        learning, fixed = self._parameters()
        each = unstack(tasks)
        program = self._program("traced", tasks, (learning, fixed, each[0]))

        @torch.no_grad()
        def taken(part: list[Task]) -> tuple[Params, Tensor]:
            grads, total = program(learning, fixed, part[0])
            for task in part[1:]:
                more, loss = program(learning, fixed, task)
                grads = dict(zip(grads, torch._foreach_add(list(grads.values()), list(more.values()))))
                total = total + loss
            return grads, total

        count = 1 if draws(program) else min(torch.get_num_threads(), len(each))  # random numbers come in order
        if count > 1 and (self._cores is None or self._cores.count != count):
            self._cores = Cores(count)
        parts = [each[start::count] for start in range(count)]
        results = [taken(each)] if count == 1 or self._cores is None else self._cores.map(taken, parts)
        for grads, _ in results:
            self._add(grads, 1 / len(each))
        return torch.stack([total for _, total in results]).sum() / len(each)

    def _parameters(self) -> tuple[Params, Params]:
        """What learns, and what is fixed, detached, by name."""
        learning: Params = {}
        fixed: Params = dict(self.learner.named_buffers())
        for name, parameter in self.learner.named_parameters():
            (learning if parameter.requires_grad else fixed)[name] = parameter.detach()
        return learning, fixed

    def _program(self, engine: Engine, tasks: Task, example: tuple[Params, Params, Task]) -> Program:
        """The program for such tasks, recorded on an example."""
        alike = all(bool(((w == w[..., :1]) & (w > 0)).all()) for w in (tasks.support.weight, tasks.query.weight))
        key = engine, alike, self.learner.training, tuple(example[0]), _shapes(example[2])
        if key not in self._programs:
            single = self._one_by_one(engine)
            one, record = (example[2], of_one_task) if single else (unstack(tasks)[0], of_a_stack)
            explained = differentiated(self.learner, lambda: self.learner(one))
            with explained, rows_alike(alike), recomputing(self.plan.recompute):
                program = record(self.learner, example)
            self._programs[key] = compiled(program, self._backend) if engine == "compiled" else program
        return self._programs[key]

    def _add(self, grads: Params, share: float) -> None:
        """Add a share of gradients by name to those of the parameters."""
        scaled = dict(zip(grads, torch._foreach_mul(list(grads.values()), share)))  # in memory of their own
        for name, parameter in self.learner.named_parameters():
            if name in scaled:
                parameter.grad = scaled[name] if parameter.grad is None else parameter.grad + scaled[name]

    def _planned(self, engine: Engine, tasks: Task) -> Plan:
        """The first plan that fits: all tasks, as many as fit, and with inner steps recomputed."""
        memory, chunk, recompute = self._asked
        batched = not self._one_by_one(engine)
        if (chunk if batched else recompute) is not None:
            return Plan(chunk, bool(recompute) and not batched)
        device = tasks.support.weight.device
        room = SHARE * available(device) if memory is None else memory
        if memory is None and SMALL * size(self.learner, tasks) < room:
            return Plan()
        try:
            return self._fitting(engine, tasks, room)
        except MemoryError:
            raise
        except Exception as error:  # what runs may yet have no shapes to plan by
            log.info("the memory of a step is not predicted: %s", str(error).split("\n")[0])
            return Plan()

    def _fitting(self, engine: Engine, tasks: Task, room: float) -> Plan:
        count, batched = len(tasks.support.weight), not self._one_by_one(engine)

        def peak(number: int, *, recompute: bool = False) -> int:
            some = tree_map(lambda leaf: leaf[:number], tasks)
            return predicted_peak(self.learner, some, _by_vmap if batched else _by_loop(recompute))

        if batched:
            whole, one = peak(count), peak(1)
            if whole <= room:
                return Plan()
            each = max((whole - one) / max(count - 1, 1), 1)
            chunk = int((room - one) // each) + 1
            if chunk >= 1:
                log.info("the tasks are taken %d at a time: all %d would take %.1f GiB", chunk, count, whole / GIB)
                return Plan(chunk)
            raise _too_large(one, room, "with mode='loop', which can recompute its inner steps, it takes less")
        at_once = min(torch.get_num_threads(), count) if engine == "traced" else 1
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
        engine = min(self._seconds, key=lambda w: len(self._seconds[w]))
        started = time.perf_counter()
        try:
            loss = self._step(engine, tasks)
        except Exception as error:  # of what a batch, or a record, cannot do
            if engine == "loop":
                raise
            del self._seconds[engine]
            self._failed.append(f"{engine} does not run: {_reason(error)}")
            if len(self._seconds) == 1:
                self._take("loop", f"since {'; '.join(self._failed)}")
            return self._step("loop", tasks)
        if loss.is_cuda:
            torch.cuda.synchronize(loss.device)
        self._seconds[engine].append(time.perf_counter() - started)
        if all(len(times) == TRIALS for times in self._seconds.values()):
            best = {w: min(times[1:]) for w, times in self._seconds.items()}
            _, fastest = min((seconds, w) for w, seconds in best.items())
            told = ", ".join(f"{w} {1e3 * seconds:.0f} ms" for w, seconds in best.items())
            self._take(fastest, f"the fastest by measure ({told} a step)")
        return loss

    def _take(self, engine: Engine, why: str) -> None:
        self.engine, self.choice = engine, f"{engine}, {why}"
        log.info("the meta-gradient is taken as %s", self.choice)


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


def _reason(error: Exception) -> str:
    """Who, and what."""
    return " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__


def _shapes(tasks: Task) -> tuple:
    return tuple((leaf.shape, leaf.dtype) for leaf in tree_leaves(tasks))


def _device(learner: Learner) -> torch.device:
    return next((p.device for p in learner.parameters()), torch.device("cpu"))


def meta_gradient(learner: Learner, tasks: Task, mode: Mode = "loop") -> Tensor:
    """Add the gradient of one stack of tasks to the `.grad` of the learner's parameters; see `MetaGradient`."""
    return MetaGradient(learner, mode)(tasks)
