"""A meta-gradient as a program: the tensor operations of one step, recorded once and then replayed, or compiled.

A replay needs neither the Python of the model and the learner nor autograd: all derivatives, the second ones included,
are operations of the program. It holds for tasks of the recorded shapes, and follows the weights and buffers it is
given. What Python decided while it was recorded stays decided.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from kshot.learner import Learner
from kshot.types import Params, Task

Program = Callable[[Params, Params, Task], tuple[Params, Tensor]]
"""(what learns, what is fixed, task or stack of tasks) -> (gradients of what learns, loss); runs without autograd."""

_aten = torch.ops.aten
_SAME_SHAPE = {_aten.view.default, _aten._unsafe_view.default, _aten.expand.default}
_SAME = {_aten.detach.default, _aten.alias.default}


def of_one_task(learner: Learner, example: tuple[Params, Params, Task]) -> GraphModule:
    """The program of one task, recorded from `backward`; parameters that get no gradient are left out.

    Raises:
        RuntimeError: a step that turns tensors into numbers, or branches on their values.
    """

    def gradient(learning: Params, fixed: Params, task: Task) -> tuple[Params, Tensor]:
        leaves = {name: p.detach().requires_grad_() for name, p in learning.items()}
        with torch.enable_grad():
            loss = torch.func.functional_call(learner, leaves | fixed, (task,))
            loss.backward()
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}, loss.detach()

    return _recorded(gradient, example)


def of_a_stack(learner: Learner, example: tuple[Params, Params, Task]) -> GraphModule:
    """The program of the mean loss over a stack of tasks, recorded from one pass by `vmap`; raises as `of_one_task`."""

    def mean_loss(learning: Params, fixed: Params, tasks: Task) -> Tensor:
        def one(task: Task) -> Tensor:
            return torch.func.functional_call(learner, learning | fixed, (task,))

        return torch.vmap(one, randomness="different")(tasks).mean()

    return _recorded(torch.func.grad_and_value(mean_loss), example)


def compiled(program: GraphModule, backend: str) -> Program:
    """The same program, compiled at its first call; what was compiled stays in the cache between processes.

    It is recorded first since `torch.compile` on the Python of nested `functional_call`s gives, without a word, the
    gradient of a learner that does not adapt.
    """
    from kshot.data.cache import cache_folder

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    return torch.compile(program, fullgraph=True, dynamic=False, backend=backend)


def draws(program: Program) -> bool:
    """Whether a recorded program draws random numbers, as dropout does."""
    assert isinstance(program, GraphModule)
    return any(torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) for node in program.graph.nodes)


def _recorded(function: Program, example: tuple[Params, Params, Task]) -> GraphModule:
    devices = [example[2].support.weight.device] if example[2].support.weight.is_cuda else []
    with torch.random.fork_rng(devices):  # recording runs the step, and must not move its random numbers
        program = make_fx(function)(*example)
    _drop_idle(program)
    return program


def _drop_idle(program: GraphModule) -> None:
    """Take out what returns what it was given: autograd's detaching, views of the same shape. A tenth of the time."""
    for node in list(program.graph.nodes):
        if node.target in _SAME or (node.target in _SAME_SHAPE and _looks(node) == _looks(node.args[0])):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.recompile()


def _looks(node: torch.fx.Node) -> tuple | None:
    value = node.meta.get("val")
    return None if value is None else (value.shape, value.stride())
