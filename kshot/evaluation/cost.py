"""Cost of a learner: number of parameters, size of a task's state, and FLOPs of adapting and predicting."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from kshot.learner import Learner, evaluation_mode
from kshot.training.shards import num_parameters
from kshot.types import Task, to, tree_leaves


class Cost(NamedTuple):
    """Cost of a learner on one task, apart from time.

    Attributes:
        num_parameters: number of the learner's parameters, including the base model's.
        state_size, state_bytes: elements and bytes of a task's state, which is stored for each user, shop or device.
        adapt_flops, predict_flops: floating-point operations of adapting to the support set and predicting the queries.
    """

    num_parameters: int
    state_size: int
    state_bytes: int
    adapt_flops: int
    predict_flops: int


def cost(learner: Learner, task: Task) -> Cost:
    """Count a learner's parameters, the size of its state, and its FLOPs on one task.

    A multiplication and an addition are two operations. Matrix products, convolutions and attention are counted, as in
    PyTorch; elementwise operations and solutions of linear systems are not.

    Args:
        learner: learner, used in evaluation mode and left unchanged.
        task: task on any device; it is moved to the learner's.

    Example:
        >>> from kshot.learners.gradient.maml import maml
        >>> from kshot.objectives import mse
        >>> from kshot.types import Batch
        >>> batch = Batch.of(torch.ones(10, 3), torch.ones(10, 1))
        >>> cost(maml(torch.nn.Linear(3, 1), inner_lr=0.1, objective=mse), Task(batch, batch))
        Cost(num_parameters=4, state_size=4, state_bytes=16, adapt_flops=120, predict_flops=60)
    """
    device = next((parameter.device for parameter in learner.parameters()), None)
    task = to(task, device)
    with evaluation_mode(learner):
        with _Counting() as adapting:
            state = learner.adapt(task.support)
        with _Counting() as predicting:
            learner.predict(state, task.query.inputs)
    leaves = tree_leaves(state)
    return Cost(
        num_parameters=num_parameters(learner),
        state_size=sum(leaf.numel() for leaf in leaves),
        state_bytes=sum(leaf.numel() * leaf.element_size() for leaf in leaves),
        adapt_flops=adapting.flops,
        predict_flops=predicting.flops,
    )


class _Counting(TorchDispatchMode):
    """Counts FLOPs by PyTorch's own formulas.

    `FlopCounterMode` also counts per module, by hooks that do not work for modules called under `torch.func`.
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
