"""A meta-gradient as a program: the tensor operations of one step, traced once and then replayed, or compiled.

A replay runs neither the Python code of the model and the learner nor autograd: all derivatives, including second ones,
are operations of the program. It is valid for tasks of the traced shapes and takes weights and buffers as arguments.
Python branches are fixed by the trace, so that a program belongs to the `python_state` of the learner.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from kshot.inner.functional import keeping_buffers
from kshot.inner.precision import Scales, autocast, rescaling, scaled, unscaled
from kshot.inner.replica import substituted
from kshot.inner.unrolling import unused_leaves
from kshot.learner import Learner
from kshot.types import Params, Task

Program = Callable[[Params, Params, Task], tuple[Params, Tensor, Params]]
"""(trained parameters, fixed ones and `SCALES`, task or stack of tasks) -> (gradients, loss, changed buffers of each
task); runs without autograd."""

SCALES = tuple(f"{name} scale" for name in Scales._fields)
"""Names of the scales of losses among the fixed parameters of a program."""

_FIXED_TYPES = frozenset((bool, int, float, str))
_aten = torch.ops.aten
_RESHAPES = {_aten.view.default, _aten._unsafe_view.default, _aten.expand.default}
_IDENTITIES = {_aten.detach.default, _aten.alias.default}


def trace_task(learner: Learner, example: tuple[Params, Params, Task]) -> GraphModule:
    """Trace the gradient of one task, by `backward`; parameters without a gradient are left out.

    Raises RuntimeError if the step converts tensors to numbers or branches on their values.
    """

    def gradient(trained: Params, fixed: Params, task: Task) -> tuple[Params, Tensor, Params]:
        leaves = {name: p.detach().requires_grad_() for name, p in trained.items()}
        with torch.enable_grad(), substituted(learner, leaves | fixed), rescaling(scales := _scales_among(fixed)):
            loss, buffers = task_loss(learner, task)
            scaled(loss, scales.outer).backward()
        grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        return unscaled(grads, scales.outer), loss.detach(), buffers

    return _trace(gradient, example)


def trace_stack(learner: Learner, example: tuple[Params, Params, Task]) -> GraphModule:
    """Trace the gradient of the mean loss over a stack of tasks, by `vmap`; otherwise as `trace_task`."""
    unused: set[str] = set()

    def scaled_loss(trained: Params, fixed: Params, tasks: Task) -> tuple[Tensor, tuple[Tensor, Params]]:
        with substituted(learner, trained | fixed), rescaling(scales := _scales_among(fixed)):
            losses, buffers = torch.vmap(partial(task_loss, learner), randomness="different")(tasks)
        loss = losses.mean()
        unused.update(unused_leaves(loss, trained))
        return scaled(loss, scales.outer), (loss, buffers)

    def gradient(trained: Params, fixed: Params, tasks: Task) -> tuple[Params, Tensor, Params]:
        grads, (loss, buffers) = torch.func.grad(scaled_loss, has_aux=True)(trained, fixed, tasks)
        used = {name: grad for name, grad in grads.items() if name not in unused}
        return unscaled(used, _scales_among(fixed).outer), loss, buffers

    return _trace(gradient, example)


def task_loss(learner: Learner, task: Task) -> tuple[Tensor, Params]:
    """The outer loss of one task, (), and the buffers that the learner's modules have changed, by name."""
    with keeping_buffers() as updates, autocast(task.support.weight.device):
        loss = learner(task)
        return loss, updates.of(learner)


def _scales_among(fixed: Params) -> Scales:
    return Scales(*(fixed.get(name) for name in SCALES))


def compile_program(program: GraphModule, backend: str) -> Program:
    """Compile a program at its first call; the cache of `torch.compile` serves later processes.

    Learners are traced before, since `torch.compile` of nested `functional_call`s silently returns the gradient of a
    learner that does not adapt.
    """
    return torch.compile(program, fullgraph=True, dynamic=False, backend=backend)


def draws_random_numbers(program: Program) -> bool:
    """Whether a traced program draws random numbers, as dropout does."""
    assert isinstance(program, GraphModule)
    return any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in program.graph.nodes)


def python_state(module: nn.Module) -> tuple:
    """The numbers, strings and flags that the parts of a module hold as attributes, which a trace would fix."""
    return tuple([v for part in module.modules() for v in vars(part).values() if type(v) in _FIXED_TYPES])


def _trace(function: Program, example: tuple[Params, Params, Task]) -> GraphModule:
    devices = [example[2].support.weight.device] if example[2].support.weight.is_cuda else []
    described = TracingContext(FakeTensorMode(allow_fallback_kernels=True))  # else each result gets a mode of its own
    with torch.random.fork_rng(devices), tracing(described):  # tracing runs the step: the random state must stay
        program = make_fx(function)(*example)
    for node in list(program.graph.nodes):  # operations that return their input take a tenth of the time
        same_shape = node.target in _RESHAPES and _shape_and_stride(node) == _shape_and_stride(node.args[0])
        if same_shape or node.target in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.recompile()
    return program


def _shape_and_stride(node: torch.fx.Node) -> tuple | None:
    value = node.meta.get("val")
    return None if value is None else (value.shape, value.stride())
