"""The meta-gradient of one step: the mean outer loss over a stack of tasks, and its gradient, by one of four engines.

`loop` processes the tasks one by one and frees the graph of each before the next: the least memory. `vmap` runs all
tasks in one batched pass. `traced` records the operations of a step once per shape of tasks and replays them without
Python and autograd: those of the batched pass or, for convolutions on a CPU, those of one task, on as many tasks in
parallel as there are cores. `compiled` compiles the trace of the batched pass. `auto` measures the real step and
chooses. If a step does not fit into memory, the tasks are processed in chunks, and inner steps are recomputed. Only
this file knows the engines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.functional import assume_equal_weights
from kshot.inner.layer_errors import explain_missing_derivatives
from kshot.inner.memory_format import has_convolutions
from kshot.inner.unrolling import recomputing
from kshot.learner import Learner
from kshot.training.memory import GIB, available_memory, memory_size, predict_peak
from kshot.training.programs import Program, compile_program, draws_random_numbers, trace_stack, trace_task
from kshot.types import Params, Task, tree_leaves, tree_map, unstack

Mode = Literal["auto", "loop", "vmap", "traced", "compiled"]
Engine = Literal["loop", "vmap", "traced", "compiled"]

log = logging.getLogger(__name__)

MEMORY_FRACTION = 0.8  # of the free memory, for one step
SMALL_STEP = 5_000  # a step needs no memory plan if its parameters and tasks fit this many times into memory
NUM_TRIALS = 3  # steps that "auto" takes by each engine before it chooses; the first is a warm-up


class Plan(NamedTuple):
    """How a step stays within its memory: tasks in one pass (None: all), and whether inner steps are recomputed."""

    chunk: int | None = None
    recompute: bool = False


class MetaGradient:
    r"""Adds $\nabla_\theta \frac1T \sum_t L_t(\theta)$ to the `.grad` of a learner's parameters at each call.

    Args:
        learner: its `forward` returns the outer loss of a task.
        mode: as in `fit`. Tracing takes seconds. Compiling takes tens of seconds, needs a C++ compiler and pays off
            after some thousand steps of a small model.
        backend: backend of `torch.compile`.
        memory: bytes that a step may use; by default most of the device's free memory.
        chunk: number of tasks in one batched pass; by default as many as fit.
        recompute: whether inner steps are recomputed in the backward pass, if tasks are processed one by one; by
            default only if the step does not fit otherwise.
        trace_one_task: whether "traced" records one task and replays it for each, instead of the batched pass; by
            default where convolutions run on a CPU, which are slower in a batch.

    Attributes:
        engine: the engine of the next step; None while "auto" is measuring.
        choice: why the engine was chosen, unless it is the requested one.
        plan: how the last step stayed within memory.

    Raises:
        ValueError: an unknown mode, or a chunk below 1.
        MemoryError: in a call, if a single task does not fit into memory.

    Example:
        >>> learner = kshot.maml(torch.nn.Linear(1, 1), inner_lr=0.01, objective=kshot.objectives.mse)
        >>> gradient = MetaGradient(learner, "vmap")
        >>> loss = gradient(kshot.sources.sinusoids().stack("train", range(4)))
        >>> learner.model.weight.grad.shape
        torch.Size([1, 1])
    """

    @check_arguments
    def __init__(
        self,
        learner: Learner,
        mode: Mode = "auto",
        *,
        backend: str = "inductor",
        memory: int | None = None,
        chunk: PositiveInt | None = None,
        recompute: bool | None = None,
        trace_one_task: bool | None = None,
    ) -> None:
        self.learner = learner
        self.engine: Engine | None = None if mode == "auto" else mode
        self.choice = ""
        self.plan = Plan()
        self._limits = memory, chunk, recompute
        self._plans: dict[Any, Plan] = {}  # by engine and shapes of the tasks
        self._seconds: dict[Engine, list[float]] = {"loop": [], "vmap": []}
        if trace_one_task is None:
            device = next((p.device.type for p in learner.parameters()), "cpu")
            trace_one_task = device == "cpu" and has_convolutions(learner)
        self._traces_one_task = trace_one_task
        self._failures: list[str] = []  # of engines that "auto" tried
        self._pools: dict[int, ThreadPoolExecutor] = {}  # by number of threads
        if not learner.annealed:
            self._seconds["traced"] = []
        elif mode in ("traced", "compiled"):
            self._use("vmap", f"since this learner's loss changes in the course of training and cannot be {mode}")
        self._backend = backend
        self._programs: dict[Any, Program] = {}  # by everything that a trace depends on

    def __call__(self, tasks: Task) -> Tensor:
        """Add the gradient of the mean loss over a stack of T tasks; return that loss, (), detached."""
        if self.engine is None:
            return self._measure(tasks)
        try:
            return self._step(self.engine, tasks)
        except Exception as error:  # tracing and compiling may raise anything: fall back to a plain engine
            if self.engine in ("loop", "vmap") or isinstance(error, MemoryError):
                raise
            plain: Engine = "loop" if self._one_by_one(self.engine) else "vmap"
            self._use(plain, f"since the step could not be {self.engine}: {_reason(error)}")
        return self._step(plain, tasks)

    def _one_by_one(self, engine: Engine) -> bool:
        """Whether an engine processes tasks one by one instead of in a batch."""
        return engine == "loop" or (engine == "traced" and self._traces_one_task)

    def _step(self, engine: Engine, tasks: Task) -> Tensor:
        """Take one step by an engine, within memory."""
        key = engine, _shapes(tasks)
        if key not in self._plans:
            self._plans[key] = self._make_plan(engine, tasks)
        self.plan = self._plans[key]
        if engine == "loop":
            with recomputing(self.plan.recompute):
                return self._loop(tasks)
        if self._one_by_one(engine):
            return self._replay_on_cores(tasks)

        def run_chunk(tasks: Task, fraction: float) -> Tensor:
            return self._vmap(tasks, fraction) if engine == "vmap" else self._replay(engine, tasks, fraction)

        num_tasks, chunk = len(tasks.support.weight), self.plan.chunk
        if chunk is None or chunk >= num_tasks:
            return run_chunk(tasks, 1.0)
        chunks = [tree_map(lambda leaf, i=i: leaf[i : i + chunk], tasks) for i in range(0, num_tasks, chunk)]
        return torch.stack([run_chunk(part, len(part.support.weight) / num_tasks) for part in chunks]).sum()

    def _loop(self, tasks: Task) -> Tensor:
        total, num_tasks = tasks.support.weight.new_zeros(()), len(tasks.support.weight)
        for task in unstack(tasks):
            with explain_missing_derivatives(self.learner, lambda task=task: self.learner(task)):  # type: ignore[misc]
                loss = self.learner(task) / num_tasks
                loss.backward()
            total += loss.detach()
        return total

    def _vmap(self, tasks: Task, fraction: float) -> Tensor:
        """Process a fraction of the step's tasks in one batch; returns their part of the mean loss."""
        with explain_missing_derivatives(self.learner, lambda: self.learner(unstack(tasks)[0])):
            loss = torch.vmap(self.learner, randomness="different")(tasks).mean() * fraction
            loss.backward()
        return loss.detach()

    def _replay(self, engine: Engine, tasks: Task, fraction: float) -> Tensor:
        """As `_vmap`, by the program of a stack of tasks."""
        trained, fixed = self._parameters()
        program = self._program(engine, tasks, (trained, fixed, tasks))
        with torch.no_grad():
            grads, loss = program(trained, fixed, tasks)
        self._add_grads(grads, fraction)
        return loss.detach() * fraction

    def _replay_on_cores(self, tasks: Task) -> Tensor:
        """As `_loop`, by the program of one task, on all cores in parallel."""
        trained, fixed = self._parameters()
        singles = unstack(tasks)
        program = self._program("traced", tasks, (trained, fixed, singles[0]))

        @torch.no_grad()
        def sum_over(part: list[Task]) -> tuple[Params, Tensor]:
            grads, total = program(trained, fixed, part[0])
            for task in part[1:]:
                task_grads, loss = program(trained, fixed, task)
                grads = dict(zip(grads, torch._foreach_add(list(grads.values()), list(task_grads.values()))))
                total = total + loss
            return grads, total

        # random numbers are drawn in the order of the tasks
        count = 1 if draws_random_numbers(program) else min(torch.get_num_threads(), len(singles))
        if count == 1:
            results = [sum_over(singles)]
        else:
            if count not in self._pools:
                self._pools[count] = _single_core_threads(count)
            results = list(self._pools[count].map(sum_over, [singles[start::count] for start in range(count)]))
        for grads, _ in results:
            self._add_grads(grads, 1 / len(singles))
        return torch.stack([total for _, total in results]).sum() / len(singles)

    def _parameters(self) -> tuple[Params, Params]:
        """The trained parameters, and the fixed ones with the buffers, detached, by name."""
        trained: Params = {}
        fixed: Params = dict(self.learner.named_buffers())
        for name, parameter in self.learner.named_parameters():
            (trained if parameter.requires_grad else fixed)[name] = parameter.detach()
        return trained, fixed

    def _program(self, engine: Engine, tasks: Task, example: tuple[Params, Params, Task]) -> Program:
        """The program for tasks of these shapes, traced on an example."""
        weights = tasks.support.weight, tasks.query.weight
        equal_weights = all(bool(((weight == weight[..., :1]) & (weight > 0)).all()) for weight in weights)
        key = engine, equal_weights, self.learner.training, tuple(example[0]), _shapes(example[2])
        if key not in self._programs:
            one_by_one = self._one_by_one(engine)
            task, trace = (example[2], trace_task) if one_by_one else (unstack(tasks)[0], trace_stack)
            explained = explain_missing_derivatives(self.learner, lambda: self.learner(task))
            with explained, assume_equal_weights(equal_weights), recomputing(self.plan.recompute):
                program = trace(self.learner, example)
            self._programs[key] = compile_program(program, self._backend) if engine == "compiled" else program
        return self._programs[key]

    def _add_grads(self, grads: Params, factor: float) -> None:
        """Add scaled gradients, by name, to those of the parameters."""
        scaled = dict(zip(grads, torch._foreach_mul(list(grads.values()), factor)))  # copies, which `.grad` may keep
        for name, parameter in self.learner.named_parameters():
            if name in scaled:
                parameter.grad = scaled[name] if parameter.grad is None else parameter.grad + scaled[name]

    def _make_plan(self, engine: Engine, tasks: Task) -> Plan:
        """The first plan that fits: all tasks at once, then fewer or with recomputed inner steps."""
        memory, chunk, recompute = self._limits
        batched = not self._one_by_one(engine)
        if (chunk if batched else recompute) is not None:
            return Plan(chunk, bool(recompute) and not batched)
        device = tasks.support.weight.device
        limit = MEMORY_FRACTION * available_memory(device) if memory is None else memory
        if memory is None and SMALL_STEP * memory_size(self.learner, tasks) < limit:
            return Plan()
        try:
            return self._fitting_plan(engine, tasks, limit)
        except MemoryError:
            raise
        except Exception as error:  # a step that runs may still not run on fake tensors
            log.info("the memory of a step is not predicted: %s", str(error).split("\n")[0])
            return Plan()

    def _fitting_plan(self, engine: Engine, tasks: Task, limit: float) -> Plan:
        num_tasks, batched = len(tasks.support.weight), not self._one_by_one(engine)

        def step(task_loss: Callable[[Task], Tensor], tasks: Task) -> None:
            if batched:
                loss = torch.vmap(task_loss, randomness="different")(tasks).mean()
            else:
                loss = task_loss(unstack(tasks)[0])
            loss.backward()

        def peak(count: int, *, recompute: bool = False) -> int:
            with recomputing(recompute):
                return predict_peak(self.learner, tree_map(lambda leaf: leaf[:count], tasks), step)

        if batched:
            peak_all, needed = peak(num_tasks), peak(1)
            if peak_all <= limit:
                return Plan()
            per_task = max((peak_all - needed) / max(num_tasks - 1, 1), 1)
            chunk = int((limit - needed) // per_task) + 1
            if chunk >= 1:
                log.info("tasks go in chunks of %d: all %d would need %.1f GiB", chunk, num_tasks, peak_all / GIB)
                return Plan(chunk)
            remedy = "with mode='loop', which can recompute its inner steps, it needs less"
        else:
            parallel = min(torch.get_num_threads(), num_tasks) if engine == "traced" else 1
            stored = parallel * peak(1)
            if stored <= limit:
                return Plan()
            needed = parallel * peak(1, recompute=True)
            if needed <= limit:
                log.info("inner steps are recomputed: %.1f GiB instead of %.1f", needed / GIB, stored / GIB)
                return Plan(recompute=True)
            remedy = "use smaller images, fewer queries, a smaller model or order=1"
        raise MemoryError(
            f"the meta-gradient of one task needs about {needed / GIB:.1f} GiB, "
            f"but the limit is {limit / GIB:.1f} GiB: {remedy}"
        )

    def _measure(self, tasks: Task) -> Tensor:
        """Take this step by the engine with the fewest trials; after the last trial choose the fastest."""
        engine = min(self._seconds, key=lambda engine: len(self._seconds[engine]))
        started = time.perf_counter()
        try:
            loss = self._step(engine, tasks)
        except Exception as error:  # batching and tracing may raise anything
            if engine == "loop":
                raise
            del self._seconds[engine]
            self._failures.append(f"{engine} does not run: {_reason(error)}")
            if len(self._seconds) == 1:
                self._use("loop", f"since {'; '.join(self._failures)}")
            return self._step("loop", tasks)
        if loss.is_cuda:
            torch.cuda.synchronize(loss.device)
        self._seconds[engine].append(time.perf_counter() - started)
        if all(len(times) == NUM_TRIALS for times in self._seconds.values()):
            best = {engine: min(times[1:]) for engine, times in self._seconds.items()}
            _, fastest = min((seconds, engine) for engine, seconds in best.items())
            timings = ", ".join(f"{engine} {1e3 * seconds:.0f} ms" for engine, seconds in best.items())
            self._use(fastest, f"the fastest by measurement ({timings} per step)")
        return loss

    def _use(self, engine: Engine, reason: str) -> None:
        self.engine, self.choice = engine, f"{engine}, {reason}"
        log.info("the meta-gradient is computed by %s", self.choice)


def _single_core_threads(count: int) -> ThreadPoolExecutor:
    """Threads with one core each: operations of a small task are too short to be split, and waiting cores spin."""
    pool, barrier, num_cores = ThreadPoolExecutor(count), Barrier(count), torch.get_num_threads()

    def initialise(_: int) -> None:
        barrier.wait()  # so that each of these calls runs in a different thread
        torch.set_num_threads(1)

    list(pool.map(initialise, range(count)))
    torch.set_num_threads(num_cores)  # of this thread and of later ones
    return pool


def _reason(error: Exception) -> str:
    """The first lines of an error."""
    return " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__


def _shapes(tasks: Task) -> tuple:
    return tuple((leaf.shape, leaf.dtype) for leaf in tree_leaves(tasks))


def meta_gradient(learner: Learner, tasks: Task, mode: Mode = "loop") -> Tensor:
    """Add the gradient of one stack of tasks to the `.grad` of the learner's parameters; see `MetaGradient`."""
    return MetaGradient(learner, mode)(tasks)
