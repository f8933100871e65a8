"""The floating-point types in which adaptation computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def widest_float(device: torch.device | str) -> torch.dtype:
    """The widest floating-point type of a device: float64, or float32 where it does not exist ("mps").

    Example:
        >>> widest_float("cpu"), widest_float("mps")
        (torch.float64, torch.float32)
    """
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def at_least_float32(values: Tensor) -> Tensor:
    """Values in their own type, or in float32 if that is wider, as for bfloat16, float16 and integers.

    Example:
        >>> [at_least_float32(torch.ones(1, dtype=each)).dtype for each in (torch.bfloat16, torch.float64)]
        [torch.float32, torch.float64]
    """
    return values.to(torch.promote_types(values.dtype, torch.float32))


def in_type_of(module: nn.Module, values: Tensor) -> Tensor:
    """Values in the type of a module's first parameter, so that its layers accept them."""
    parameter = next(module.parameters(), None)
    return values if parameter is None or not parameter.is_floating_point() else values.to(parameter.dtype)


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """A context in which `torch.autocast` does not round the operands of matrix products."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
