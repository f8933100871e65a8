"""The floating-point types in which adaptation computes, and what scales gradients of narrow ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from kshot.context import holding
from kshot.types import Params

Precision = Literal["float32", "bfloat16", "float16"]
"""The type in which convolutions and matrix products of a training compute, by `torch.autocast`."""


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


class Scales(NamedTuple):
    r"""Powers of two, (), by which outer and inner losses are multiplied before they are differentiated; None for 1.

    An inner gradient is divided by its scale, and so is what an outer derivative sends back through it. Under an outer
    scale $s$ and an inner one $r$, the operands of second derivatives are therefore multiplied by $r$ and by $s / r$,
    which are both $\sqrt s$ if $r$ is.
    """

    outer: Tensor | None = None
    inner: Tensor | None = None


_precision: ContextVar[Precision] = ContextVar("precision", default="float32")
_scales: ContextVar[Scales | None] = ContextVar("scales", default=None)


@contextmanager
def mixing(precision: Precision, scales: Scales) -> Iterator[None]:
    """A context in which the losses of tasks are computed in a precision, see `autocast`, and scaled."""
    with holding(_precision, precision), rescaling(scales), _naming(precision):
        yield


def rescaling(scales: Scales) -> AbstractContextManager[None]:
    """A context in which losses have other scales, such as those that a tracer follows."""
    return holding(_scales, scales)


def loss_scales() -> Scales:
    """The present scales of losses."""
    return _scales.get() or Scales()


@contextmanager
def autocast(device: torch.device) -> Iterator[None]:
    """A context of `torch.autocast` to the precision of `mixing`; none for float32.

    It keeps no rounded copies of weights, since those of each inner step would stay until the task ends.
    """
    if (precision := _precision.get()) == "float32":
        yield
        return
    with torch.autocast(device.type, getattr(torch, precision), cache_enabled=False), _Convolutions():
        yield


class _Convolutions(TorchFunctionMode):
    """Rounds the operands of convolutions, which `torch.autocast` leaves in float32 under `vmap` (PyTorch 2.13)."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _CONVOLUTIONS:
            args, kwargs = tree_map_only(Tensor, _rounded, (args, dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


_CONVOLUTIONS = {
    *(torch.conv1d, torch.conv2d, torch.conv3d),
    *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
}


def _rounded(operand: Tensor) -> Tensor:
    """An operand as `torch.autocast` rounds it."""
    kind = operand.device.type
    cast = torch.is_autocast_enabled(kind) and operand.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return operand.to(torch.get_autocast_dtype(kind)) if cast else operand


def scaled(loss: Tensor, scale: Tensor | None) -> Tensor:
    """A loss times its scale."""
    return loss if scale is None else loss * scale


def unscaled(grads: Params, scale: Tensor | None) -> Params:
    """The gradients of a loss from those of the scaled one."""
    return grads if scale is None else {name: grad / scale for name, grad in grads.items()}


def check_master_weights(parameters: Mapping[str, Tensor], precision: Precision) -> None:
    """Raise ValueError unless the parameters to train are float32, for a precision narrower than that."""
    for name, parameter in parameters.items():
        if precision != "float32" and parameter.requires_grad and parameter.dtype != torch.float32:
            raise ValueError(
                f"precision={precision!r} keeps weights in float32 and computes with them in {precision}, but the "
                f"parameter {name!r} is {str(parameter.dtype).removeprefix('torch.')}: convert it by .float(), or take "
                "precision='float32', which leaves all types as they are"
            )


@contextmanager
def _naming(precision: Precision) -> Iterator[None]:
    """A context in which an error of an operation that does not exist in a precision says so."""
    try:
        yield
    except RuntimeError as error:
        if precision == "float32" or not re.search(r"\b(Half|BFloat16)\b", str(error)):
            raise
        raise RuntimeError(
            f"an operation of the learner does not run with precision={precision!r} on this device "
            f"({str(error).splitlines()[0]}): take another precision"
        ) from error
