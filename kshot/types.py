"""The central types: a batch of examples, and a task of a support and a query batch.

Both are NamedTuples and thus pytrees, which `vmap` and `tree_map` support. A *stack* of tasks is a `Task` whose leaves
have an additional leading axis.

Shape legend: n examples, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils._pytree import tree_leaves, tree_map

from kshot.conversion import to_tensors

Tree = Any
"""A tensor, or nested dicts, tuples and lists of tensors."""

Params = dict[str, Tensor]
"""Parameters by qualified name, as in `nn.Module.named_parameters`."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

T = TypeVar("T")


class UnequalShapes(ValueError):
    """Tasks of different shapes, which cannot be stacked."""


class Batch(NamedTuple):
    """Examples of one task.

    Attributes:
        inputs: tree of tensors, leaves (n, ...).
        targets: tree of tensors, leaves (n, ...). Class labels are one-hot (n, ways): the number of ways is a shape,
            not a value, so that every learner runs under `vmap` with any number of ways, and accepts soft labels.
        weight: (n,) float; rows of weight 0 are padding, so that tasks of different sizes can be stacked.
    """

    inputs: Tree
    targets: Tree
    weight: Tensor

    @classmethod
    def of(cls, inputs: Tree, targets: Tree, *, ways: int | None = None, weight: Any = None) -> Batch:
        """Make a batch, with checks.

        NumPy arrays, lists of numbers, and columns or tables of pandas and polars become tensors, see
        `conversion.to_tensors`: of `torch.get_default_dtype()` if they are float64, and without a change of shape, so
        that one number per example is `frame[["price"]]`, (n, 1), and not `frame["price"]`, (n,).

        Args:
            inputs, targets, weight: as above; if `ways` is given, targets are class ids (n,). Weights are 1 by default,
                on the device of the inputs.
            ways: number of classes of the task.

        Raises:
            ValueError: sizes differ, values are not finite, labels are outside `0 … ways-1`, weights are negative, or
                inputs are text, graphs or other objects that are no numbers.

        Example:
            >>> batch = Batch.of([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [0, 1, 1], ways=2)
            >>> batch.inputs.shape, batch.targets.shape
            (torch.Size([3, 2]), torch.Size([3, 2]))
        """
        device = next((leaf.device for leaf in tree_leaves((inputs, targets)) if isinstance(leaf, Tensor)), None)
        inputs, targets = (to_tensors(tree, name, device) for name, tree in (("inputs", inputs), ("targets", targets)))
        if ways is not None:
            targets = one_hot(targets, ways)
        leaves = tree_leaves((inputs, targets))
        sizes = {len(leaf) for leaf in leaves}
        if len(sizes) != 1:
            raise ValueError(
                f"inputs and targets must have the same number of examples on their first axis, got {sorted(sizes)}"
            )
        (count,) = sizes
        for name, tree in (("inputs", inputs), ("targets", targets)):
            for leaf in tree_leaves(tree):
                check_finite(leaf, name)
        return cls(inputs, targets, _weight(weight, count, leaves[0].device))

    def rows(self, index: slice | Tensor) -> Batch:
        """The examples of a slice, or of an index (k,), as a batch."""
        return Batch(*tree_map(lambda leaf: leaf[index], tuple(self)))


class Task(NamedTuple):
    """A `support` set to adapt to and a `query` set to evaluate on."""

    support: Batch
    query: Batch


def _weight(weight: Any, count: int, device: torch.device) -> Tensor:
    """Weights (count,) as floating-point numbers of at least 0, 1 by default."""
    if weight is None:
        return torch.ones(count, device=device)
    weight = to_tensors(weight, "weight", device)
    if not isinstance(weight, Tensor) or weight.shape != (count,):
        got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"weight must be ({count},), one number per example, got {got}")
    if not weight.is_floating_point():
        weight = weight.to(torch.get_default_dtype())
    check_finite(weight, "weight")
    if not weight.is_meta and (weight < 0).any():
        row = int((weight < 0).nonzero()[0])
        raise ValueError(f"weight: row {row} is {float(weight[row]):.3g}; weights are at least 0, and 0 marks padding")
    return weight


def one_hot(labels: Tensor, ways: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert class ids (n,), integers in `0 … ways-1`, to one-hot rows (n, ways).

    Example:
        >>> one_hot(torch.tensor([1, 0]), ways=2)
        tensor([[0., 1.],
                [1., 0.]])
    """
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"class ids must be integers of shape (n,), got {labels.dtype} {tuple(labels.shape)}")
    outside = (labels < 0) | (labels >= ways)
    if not labels.is_meta and outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(f"label {int(labels[row])} in row {row} is outside the {ways} classes 0 … {ways - 1}")
    return torch.nn.functional.one_hot(labels.long(), ways).to(dtype)


def check_finite(values: Tensor, name: str) -> None:
    """Raise ValueError, with the first affected row, if `values` contain NaN or infinity."""
    if values.is_floating_point() and not values.is_meta and not torch.isfinite(values).all():
        bad = (~torch.isfinite(values)).nonzero()
        raise ValueError(
            f"{name}: {len(bad)} values are NaN or infinite, the first in row {int(bad[0][0])}; remove or replace them"
        )


def has_values(tensor: Tensor) -> bool:
    """Whether values can be read at no cost: on a CPU, outside transforms, tracing and compilation."""
    plain = type(tensor) is Tensor and tensor.is_cpu  # a tensor of `FakeTensorMode` is of another type
    transformed = torch._C._functorch.peek_interpreter_stack() is not None or torch.compiler.is_compiling()
    return plain and not transformed and not is_in_torch_dispatch_mode()


def stack(tasks: Sequence[Task]) -> Task:
    """Stack tasks along a new leading axis T; raises `UnequalShapes`, a ValueError, if their shapes differ."""
    try:
        return tree_map(lambda *leaves: torch.stack(leaves), *tasks)
    except (RuntimeError, ValueError) as error:
        raise UnequalShapes(
            f"tasks must have equal shapes to be stacked; pad with rows of weight 0 ({error})"
        ) from error


def unstack(tasks: Task) -> list[Task]:
    """Split a stack of T tasks into T tasks, as views."""
    return [tree_map(lambda leaf, t=t: leaf[t], tasks) for t in range(len(tasks.support.weight))]


def to(tree: T, device: torch.device | str | None) -> T:
    """Move the tensors of a tree to `device`; None does not move them."""
    return tree if device is None else tree_map(lambda leaf: leaf.to(device, non_blocking=True), tree)
