"""Layers that PyTorch does not have and models do: with buffers that learn, Python attributes, shared tensors.

Drawn modules use them by name. Shape legend: n examples; the layers keep the shape (n, ...) of their input.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Counter(nn.Module):
    """A buffer counts the calls in place, and the count scales the input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return x / (1 + 0.2 * self.count)


class AssignedCounter(Counter):
    """As `Counter`, but each call assigns a new tensor to the buffer, and only in training mode."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count = self.count + 1
        return x * (1 + 0.2 * self.count)


class LongCounter(nn.Module):
    """A buffer of integers counts the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1)
        return x / (1 + 0.1 * self.steps.to(x.dtype))


class MovingAverage(nn.Module):
    """Subtracts a moving average of its inputs, which has no gradient and changes in place."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("average", torch.full(shape, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.average.lerp_(x.mean(0), 0.3)
        return x - self.average


class AssignedAverage(MovingAverage):
    """As `MovingAverage`, but each call assigns a new tensor to the buffer."""

    def forward(self, x: Tensor) -> Tensor:
        self.average = 0.7 * self.average + 0.3 * x.detach().mean(0)
        return x - self.average


class Calls(nn.Module):
    """A Python number counts the calls, and the count scales the input."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.2 * self.calls)


class Alternating(nn.Module):
    """A Python flag changes at each call and chooses between two functions."""

    def __init__(self) -> None:
        super().__init__()
        self.flag = False

    def forward(self, x: Tensor) -> Tensor:
        self.flag = not self.flag
        return torch.tanh(x) if self.flag else torch.sigmoid(x)


class Remembering(nn.Module):
    """The first call stores a tensor and each call extends a list: Python attributes that later calls use."""

    def __init__(self) -> None:
        super().__init__()
        self.first: Tensor | None = None
        self.log: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.first is None:
            self.first = x.detach().mean()
        self.log.append(len(x))
        return x + 0.5 * self.first + 0.1 * len(self.log)


class Saving(nn.Module):
    """Stores its output, with its graph, as a Python attribute, as models do that return features later."""

    def __init__(self) -> None:
        super().__init__()
        self.features: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = torch.sin(x)
        return self.features


class Multiply(nn.Module):
    """Multiplies by a buffer; two of these may share one."""

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class CountingMultiply(Multiply):
    """As `Multiply`, and increases the buffer in place at each call."""

    def forward(self, x: Tensor) -> Tensor:
        self.factor.add_(0.1)
        return x * self.factor


class Symmetric(nn.Module):
    """Parametrization of a square matrix: symmetric."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).transpose(-1, -2)


class Gain(nn.Module):
    """Multiplies by a learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Twice(nn.Module):
    """Calls another module, which is registered elsewhere too, twice."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(torch.tanh(self.part(x)))


class Long(nn.Module):
    """Calls its first part only for long batches, which support sets are here and queries are not."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 5:
            x = self.first(x)
        return self.second(x)


def hooked(module: nn.Module, *, forward=None, pre=None, backward=None) -> nn.Module:
    """A module with hooks."""
    if forward is not None:
        module.register_forward_hook(forward)
    if pre is not None:
        module.register_forward_pre_hook(pre)
    if backward is not None:
        module.register_full_backward_hook(backward)
    return module


def masked(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of whose gradient every second element is masked by a hook."""
    mask = (torch.arange(parameter.numel()) % 2).view(parameter.shape).to(parameter)
    parameter.register_hook(lambda grad: grad * mask)
    return parameter
