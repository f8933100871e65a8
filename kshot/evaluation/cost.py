"""What a learner costs: its size, that of a task's state, and the arithmetic of adapting and predicting."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kshot.learner import Learner
from kshot.types import Task, to, tree_leaves


class Cost(NamedTuple):
    """The cost of a learner on one task, which no clock measures.

    Attributes:
        parameters: numbers in the learner's parameters, base model and all.
        state_numbers: numbers in the state of one task: what is kept for each user, shop or device.
        state_bytes: the same in bytes.
        adapt_flops: floating-point operations of adapting to the support set.
        predict_flops: those of predicting the query set.
    """

    parameters: int
    state_numbers: int
    state_bytes: int
    adapt_flops: int
    predict_flops: int


def cost(learner: Learner, task: Task) -> Cost:
    """Count a learner's sizes, and its arithmetic on one task.

    A multiplication and an addition are two operations. Counted are matrix products, convolutions and attention, as
    PyTorch does; what is done element by element, and solving systems of equations, is not.

    Args:
        learner: used in evaluation mode, and left as it was.
        task: on any device; it is moved to the learner's.

    Example:
        >>> from kshot.learners.gradient.maml import maml
        >>> from kshot.objectives import mse
        >>> from kshot.types import Batch
        >>> batch = Batch.of(torch.ones(10, 3), torch.ones(10, 1))
        >>> cost(maml(torch.nn.Linear(3, 1), inner_lr=0.1, objective=mse), Task(batch, batch))
        Cost(parameters=4, state_numbers=4, state_bytes=16, adapt_flops=120, predict_flops=60)
    """
    device = next((parameter.device for parameter in learner.parameters()), None)
    task = to(task, device)
    was_training = learner.training
    learner.eval()
    try:
        with torch.no_grad():
            with _Counting() as adapting:
                state = learner.adapt(task.support)
            with _Counting() as predicting:
                learner.predict(state, task.query.inputs)
    finally:
        learner.train(was_training)
    leaves = tree_leaves(state)
    return Cost(
        parameters=sum(parameter.numel() for parameter in learner.parameters()),
        state_numbers=sum(leaf.numel() for leaf in leaves),
        state_bytes=sum(leaf.numel() * leaf.element_size() for leaf in leaves),
        adapt_flops=adapting.flops,
        predict_flops=predicting.flops,
    )


class _Counting(TorchDispatchMode):
    """Adds up the operations of what runs inside, by PyTorch's own formulas.

    `FlopCounterMode` does the same for each module apart, by hooks that a module called under `torch.func` breaks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result
