"""The meta-gradient of one step: the mean outer loss over a stack of tasks, and its gradient, by one of four engines.

`loop` processes the tasks one by one and frees the graph of each before the next: the least memory. `vmap` runs all
tasks in one batched pass. `traced` records the operations of a step once per shape of tasks and replays them without
Python and autograd: those of the batched pass or, for convolutions on a CPU, those of one task, on as many tasks in
parallel as there are cores. `compiled` compiles the trace of the batched pass. On a GPU, both are launched as CUDA
graphs. `auto` measures the real step and chooses. If a step does not fit into memory, by prediction or when it is
taken, the tasks are processed in chunks, and inner steps are recomputed. Only this file knows the engines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.free_memory import out_of_memory
from kshot.inner.functional import assume_equal_weights
from kshot.inner.layer_errors import explain_missing_derivatives
from kshot.inner.precision import Precision, Scales, check_master_weights, loss_scales, mixing, scaled, unscaled
from kshot.inner.random_state import random_state, set_random_state
from kshot.inner.unrolling import recomputing
from kshot.learner import Learner
from kshot.training.loss_scale import LossScale
from kshot.training.memory import GIB, available_memory, memory_size, predict_peak
from kshot.training.programs import draws_random_numbers, task_loss
from kshot.training.ranks import failing_together, mean_gradient
from kshot.training.replay import (
    Gradient,
    Replayer,
    difference,
    have_equal_weights,
    is_due,
    is_finite,
    mean_over_tasks,
    separate_grads,
    shapes_of,
    stacked,
    weighted_mean,
)
from kshot.training.shards import is_sharded, packed_weights
from kshot.training.timing import named
from kshot.training.trials import Plan, Trials
from kshot.types import Params, Task, tree_map, unstack

Mode = Literal["auto", "loop", "vmap", "traced", "compiled"]
Engine = Literal["loop", "vmap", "traced", "compiled"]

log = logging.getLogger(__name__)

MEMORY_FRACTION = 0.8  # of the free memory, for one step
BATCH_FRACTION = 0.5  # for a chunk of tasks: fragments of what earlier chunks freed take up to 0.7 of it again
REMEDY = "use smaller images, fewer queries, a smaller model or order=1"
SMALL_STEP = 5_000  # a step needs no memory plan if its parameters and tasks fit this many times into memory


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
        precision: as in `fit`.

    Attributes:
        engine: the engine of the next step; None while "auto" is measuring.
        choice: why the engine was chosen, unless it is the requested one.
        plan: how the last step stayed within memory.
        scale: that of losses in float16, else None. Who takes the steps calls its `halve` where a gradient is not
            finite, and its `count` where one is, as `fit` does.

    Raises:
        ValueError: an unknown mode or precision, a mode that does not go with `shard_frozen`, a chunk below 1, or a
            precision other than float32 for parameters that are not float32.
        MemoryError: in a call, if a single task does not fit into memory, or the `chunk` or `recompute` asked for.

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
        precision: Precision = "float32",
    ) -> None:
        self.learner, self.mode, self.precision = learner, mode, precision
        check_master_weights(learner.trained_parameters(), precision)
        self.scale = LossScale() if precision == "float16" else None
        self.engine: Engine | None = None if mode == "auto" else mode
        self.choice = ""
        if is_sharded(learner):
            if mode not in ("loop", "auto"):
                raise ValueError(
                    f"weights that processes share (shard_frozen) are gathered as the tasks are processed one by one, "
                    f"which mode {mode} does not do: set mode to loop"
                )
            self.engine, recompute = "loop", False  # a prediction of memory would gather weights
        self.plan = Plan()
        self._limits = memory, chunk, recompute
        self._plans: dict[str, Plan] = {}  # by engine and shapes of the tasks
        self._restored: dict[str, Plan] = {}  # those of the process that this one continues, not used so far
        self._trials: Trials[Engine] = Trials({"loop": [], "vmap": []})
        if trace_one_task is None:
            device = next((p.device.type for p in learner.parameters()), "cpu")
            trace_one_task = device == "cpu" and any(isinstance(part, torch.nn.Conv2d) for part in learner.modules())
        self._replayer = Replayer(learner, backend, trace_one_task)
        self._buffers: Params = {}  # those that the last step has changed
        self._named: dict[str, torch.nn.Parameter] = {}  # the parameters at the last call
        if not learner.annealed:
            self._trials.seconds["traced"] = []
        elif mode in ("traced", "compiled"):
            self._use("vmap", f"since this learner's loss changes in the course of training and cannot be {mode}")

    def __call__(self, tasks: Task) -> Tensor:
        """Add the gradient of the mean loss over a stack of T tasks; return that loss, (), detached.

        The processes of a process group each give some of the tasks, and get the mean over those of all.
        """
        scales = Scales() if self.scale is None else self.scale.scales(tasks.support.weight.device)
        with failing_together(), mixing(self.precision, scales):
            gradient = self._gradient(tasks)
        gradient = mean_gradient(gradient, self._named, len(tasks.support.weight))
        for name, parameter in self._named.items():
            if (grad := gradient.grads.get(name)) is not None:
                parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        self._buffers = gradient.buffers
        return gradient.loss

    def _gradient(self, tasks: Task) -> Gradient:
        """The gradient of this process's tasks, by an engine that can compute it."""
        self._named = dict(self.learner.named_parameters())
        hooked = next((name for name, parameter in self._named.items() if parameter._backward_hooks), None)
        if hooked is not None and self.engine != "loop":
            self._use("loop", f"since the parameter {hooked!r} has hooks, which apply to the gradient of each task")
        if self.engine is None:
            return self._measure(tasks)
        try:
            return self._step(self.engine, tasks)
        except Exception as error:  # tracing and compiling may raise anything: fall back to a plain engine
            if self.engine in ("loop", "vmap") or isinstance(error, MemoryError):
                raise
            reason = f"the step could not be {self.engine}: {_reason(error)}"
            self._use(self._plain(self.engine), f"since {reason}")
        try:
            return self._step(self.engine, tasks)
        except RuntimeError as error:
            if self.engine == "loop":
                raise
            self._use("loop", f"since {reason}; and vmap does not run: {_reason(error)}")
        return self._step("loop", tasks)

    @torch.no_grad()
    def update_buffers(self) -> None:
        """Set the buffers that modules have changed in the last step, by the rule of `inner.functional`."""
        for name, buffer in self.learner.named_buffers():
            if name in self._buffers:
                buffer.copy_(self._buffers[name])
        self._buffers = {}

    def _one_by_one(self, engine: Engine) -> bool:
        """Whether an engine processes tasks one by one instead of in a batch."""
        return engine == "loop" or (engine == "traced" and self._replayer.one_task)

    def _plain(self, engine: Engine) -> Engine:
        """The engine that computes the same without a recording."""
        return "loop" if self._one_by_one(engine) else "vmap"

    def _step(self, engine: Engine, tasks: Task) -> Gradient:
        """Take one step by an engine, within memory."""
        key = f"{engine} {shapes_of(tasks)}"
        if key not in self._plans:
            self._plans[key] = self._as_before(key, self._make_plan(engine, tasks))
        state = random_state(tasks)
        while True:
            self.plan = self._plans[key]
            try:
                return self._by_plan(engine, tasks)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or self._limits[1:] != (None, None):
                    raise
                smaller = self.plan.smaller(len(tasks.support.weight), one_by_one=self._one_by_one(engine))
                if smaller is None:
                    raise MemoryError(f"the meta-gradient of one task does not fit into memory: {REMEDY}") from error
            log.warning("a step ran out of memory by %s: steps go on by %s", self.plan, smaller)
            self._plans[key] = smaller
            set_random_state(state)

    def _by_plan(self, engine: Engine, tasks: Task) -> Gradient:
        """Take one step by an engine and the current plan."""
        if engine == "loop":
            with recomputing(self.plan.recompute):
                return self._loop(tasks)
        run_chunk = self._vmap if engine == "vmap" else partial(self._replay, engine)
        num_tasks, chunk = len(tasks.support.weight), self.plan.chunk
        if self._one_by_one(engine) or chunk is None or chunk >= num_tasks:
            return run_chunk(tasks)
        chunks = [tree_map(lambda leaf, i=i: leaf[i : i + chunk], tasks) for i in range(0, num_tasks, chunk)]
        return weighted_mean([(run_chunk(part), len(part.support.weight) / num_tasks) for part in chunks])

    def _loop(self, tasks: Task) -> Gradient:
        total, buffers = tasks.support.weight.new_zeros(()), []
        singles = unstack(tasks)
        with separate_grads(self._named) as grads, packed_weights() if is_sharded(self.learner) else nullcontext():
            for task in singles:
                with explain_missing_derivatives(self.learner, lambda task=task: self.learner(task)):  # type: ignore[misc]
                    with named("inner loop"):
                        loss, changed = task_loss(self.learner, task)
                    with named("backward"):
                        scaled(loss / len(singles), loss_scales().outer).backward()
                total += loss.detach() / len(singles)
                buffers.append(changed)
        return Gradient(total, unscaled(grads, loss_scales().outer), mean_over_tasks(stacked(buffers)))

    def _vmap(self, tasks: Task) -> Gradient:
        """Process a stack of tasks in one batch."""
        explained = explain_missing_derivatives(self.learner, lambda: self.learner(unstack(tasks)[0]))
        equal = have_equal_weights(tasks)
        with separate_grads(self._named) as grads, explained, assume_equal_weights(equal):
            with named("inner loop"):
                losses, buffers = torch.vmap(partial(task_loss, self.learner), randomness="different")(tasks)
            with named("backward"):
                scaled(losses.mean(), loss_scales().outer).backward()
        return Gradient(losses.detach().mean(), unscaled(grads, loss_scales().outer), mean_over_tasks(buffers))

    def _replay(self, engine: Literal["traced", "compiled"], tasks: Task) -> Gradient:
        """Replay a program; at replays that thin out, take the plain step too, and raise an error if they differ."""
        with named("recorded step"):
            return self._checked_replay(engine, tasks)

    def _checked_replay(self, engine: Literal["traced", "compiled"], tasks: Task) -> Gradient:
        entry = self._replayer.entry(engine, tasks, recompute=self.plan.recompute)
        replay = partial(self._replayer, entry, tasks)
        if not is_due(entry.replays + 1):
            entry.replays += 1
            return replay()
        state = random_state(tasks)
        found = recorded = replay()
        after = random_state(tasks)
        if engine == "compiled" and draws_random_numbers(entry.traced):  # a compiler draws other random numbers
            set_random_state(state)
            recorded = replay(eager=True)
        set_random_state(state)
        plain = self._loop if self._one_by_one(engine) else self._vmap
        expected = plain(tasks)
        if self.scale is not None and not (is_finite(recorded) and is_finite(expected)):
            set_random_state(after)
            return found  # the scale is too large: the next replay is compared instead
        entry.replays += 1
        bound = 1e-8 if expected.loss.dtype == torch.float64 else max(1e-3, 4 * self._rounding())
        distance = difference(recorded, expected)
        if distance > bound:
            set_random_state(state)
            with self._rounded_weights():  # how far a rounding of the weights goes, as between any two computations
                bound += (30 if self.precision == "float32" else 5) * difference(plain(tasks), expected)
        if distance > bound:
            set_random_state(state)
            raise RuntimeError(
                f"replay {entry.replays} differs from a plain step by {distance:.1g} of the gradient, so something in "
                "the model or learner changes from step to step that a recording does not see, such as a choice by "
                "Python's random numbers or an attribute of an object"
            )
        set_random_state(after)
        return found

    @contextmanager
    def _rounded_weights(self) -> Iterator[None]:
        """A context in which each weight is larger or smaller by one rounding of the precision."""
        weights = [parameter for parameter in self.learner.parameters() if parameter.is_floating_point()]
        before = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for number, weight in enumerate(weights):
                weight.mul_(1 + (-1) ** number * max(torch.finfo(weight.dtype).eps, self._rounding()))
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, before):
                    weight.copy_(value)

    def _rounding(self) -> float:
        """The relative size of one rounding in narrow types; 0 where there is none."""
        return 0.0 if self.precision == "float32" else torch.finfo(getattr(torch, self.precision)).eps

    def _make_plan(self, engine: Engine, tasks: Task) -> Plan:
        """The first plan that fits: all tasks at once, then fewer or with recomputed inner steps."""
        memory, chunk, recompute = self._limits
        batched = not self._one_by_one(engine)
        if (chunk if batched else recompute) is not None:
            return Plan(chunk, bool(recompute) and not batched)
        if memory is None and SMALL_STEP * memory_size(self.learner, tasks) < self._memory_limit(tasks):
            return Plan()
        try:
            return self._fitting_plan(engine, tasks)
        except MemoryError:
            raise
        except Exception as error:  # a step that runs may still not run on fake tensors
            log.info("the memory of a step is not predicted: %s", str(error).split("\n")[0])
            return Plan()

    def _memory_limit(self, tasks: Task, fraction: float = MEMORY_FRACTION) -> float:
        """Bytes that a step may use now."""
        memory = self._limits[0]
        return fraction * available_memory(tasks.support.weight.device) if memory is None else memory

    def _fitting_plan(self, engine: Engine, tasks: Task) -> Plan:
        num_tasks, batched = len(tasks.support.weight), not self._one_by_one(engine)

        def step(learner: Learner, tasks: Task) -> None:
            if batched:
                loss = torch.vmap(partial(task_loss, learner), randomness="different")(tasks)[0].mean()
            else:
                loss, _ = task_loss(learner, unstack(tasks)[0])
            loss.backward()

        def peak(count: int, *, recompute: bool = False) -> int:
            with recomputing(recompute):
                return predict_peak(self.learner, tree_map(lambda leaf: leaf[:count], tasks), step)

        if batched:
            peak_all, needed = peak(num_tasks), peak(1)
            limit = self._memory_limit(tasks, BATCH_FRACTION)  # after the prediction, which loads modules
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
            limit = self._memory_limit(tasks)
            if stored <= limit:
                return Plan()
            needed = parallel * peak(1, recompute=True)
            if needed <= limit:
                log.info("inner steps are recomputed: %.1f GiB instead of %.1f", needed / GIB, stored / GIB)
                return Plan(recompute=True)
            remedy = REMEDY
        raise MemoryError(
            f"the meta-gradient of one task needs about {needed / GIB:.1f} GiB, "
            f"but the limit is {limit / GIB:.1f} GiB: {remedy}"
        )

    def _measure(self, tasks: Task) -> Gradient:
        """Take this step by the engine with the fewest trials; after the last trial choose the fastest."""
        trials = self._trials
        engine = trials.next()
        started = time.perf_counter()
        try:
            gradient = self._step(engine, tasks)
        except Exception as error:  # batching and tracing may raise anything
            if engine == "loop":
                raise
            trials.drop(engine, _reason(error))
            if len(trials.seconds) == 1:
                self._use("loop", f"since {'; '.join(trials.failures)}")
            return self._step("loop", tasks)
        if gradient.loss.is_cuda:
            torch.cuda.synchronize(gradient.loss.device)
        trials.seconds[engine].append(time.perf_counter() - started)
        if choice := trials.choice():
            self._use(*choice)
        return gradient

    def _use(self, engine: Engine, reason: str) -> None:
        self.engine, self.choice = engine, f"{engine}, {reason}"
        log.info("the meta-gradient is computed by %s", self.choice)

    def state(self) -> dict[str, Any]:
        """What was chosen so far, as JSON: with it a resumed run takes the same steps."""
        plans = {key: [*plan] for key, plan in (self._restored | self._plans).items()}
        chosen = {"mode": self.mode, "engine": self.engine, "choice": self.choice, "plans": plans}
        return chosen | {"seconds": self._trials.seconds, "failures": self._trials.failures}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Keep what another process chose, by its `state`; that of another mode is ignored."""
        if state["mode"] != self.mode:
            return
        self.engine, self.choice = state["engine"], state["choice"]
        self._restored = {key: Plan(*plan) for key, plan in state["plans"].items()}
        self._plans = {}
        self._trials = Trials(dict(state["seconds"]), list(state["failures"]), self._trials.settled)

    def forget_learner(self) -> None:
        """Plan memory, and record programs, again: the learner's solver or the parameters to train have changed."""
        self._plans, self._restored = {}, {}
        self._replayer = Replayer(self.learner, self._replayer.backend, self._replayer.one_task)

    def settle(self, engine: Engine) -> None:
        """Let the measurement of "auto" end with the engine that an earlier process of the run chose by it."""
        self._trials.settled = engine

    def _as_before(self, key: str, plan: Plan) -> Plan:
        """The plan of the process that this one continues, unless it needs more memory than there is now."""
        before = self._restored.pop(key, plan)
        if before.fits_where(plan):
            return before
        log.warning("less memory is free than before the interruption: steps go on by %s instead of %s", plan, before)
        return plan


def _reason(error: Exception) -> str:
    """The first lines of an error."""
    return " ".join(str(error).strip().splitlines()[:2]) or type(error).__name__


def meta_gradient(learner: Learner, tasks: Task, mode: Mode = "loop") -> Tensor:
    """Add the gradient of one stack of tasks to the `.grad` of the learner's parameters; see `MetaGradient`.

    Buffers that modules have changed are set as after a step of `fit`.
    """
    gradient = MetaGradient(learner, mode)
    loss = gradient(tasks)
    gradient.update_buffers()
    return loss
