"""Hyperparameters of update rules: a number is constant, a tensor is differentiated, a Parameter is learned too."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar, get_type_hints

from torch import Tensor, nn

from kshot.annotations import Fraction, FractionBelowOne, NonNegativeFloat, PositiveFloat
from kshot.argument_checks import check_values
from kshot.inner.kernels import in_transform

P = ParamSpec("P")
R = TypeVar("R")

Number = float | Tensor
"""A number, or a tensor of shape () by which the adapted parameters are differentiated; a Parameter is learned."""
Positive = PositiveFloat | Tensor
NonNegative = NonNegativeFloat | Tensor
UpToOne = Fraction | Tensor
"""From 0 to 1, both included."""
BelowOne = FractionBelowOne | Tensor
"""From 0 included to below 1."""


def check_hyperparameters(init: Callable[P, R]) -> Callable[P, R]:
    """Decorate a constructor as `check_arguments` does; the bounds also hold for the first values of tensors.

    Raises ValueError for a tensor that is not one real number of shape (). Learned values are not constrained later.
    """
    signature = inspect.signature(init)
    hints = cache(lambda: get_type_hints(init, include_extras=True))

    @wraps(init)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            arguments = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError:  # the call raises the usual error
            arguments = {}
        check_values({name: _first_value(name, value) for name, value in arguments.items()}, hints())
        return init(*args, **kwargs)

    return checked


def keep_hyperparameters(module: nn.Module, values: Mapping[str, Any]) -> None:
    """Set attributes of a module: Parameters are registered, other tensors move with it, numbers are kept."""
    for name, value in values.items():
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            module.register_buffer(name, value, persistent=False)
        else:
            setattr(module, name, value)


def refuse_tensor(**values: Any) -> None:
    """Raise ValueError for a tensor where only a number has a meaning that a derivative could respect."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            raise ValueError(
                f"{name} must be a number, got a tensor: no derivative goes through it. Pass float({name}); if "
                "it is the first value of a Parameter, learn that"
            )


def is_used(value: Number) -> bool:
    """Whether a term with this factor must be computed; a tensor's, always, because of its derivative."""
    return isinstance(value, Tensor) or value != 0


def sqrt(value: Number) -> Any:
    """The square root of a number above 0, differentiable for a tensor."""
    return value.sqrt() if isinstance(value, Tensor) else math.sqrt(value)


def _first_value(name: str, value: Any) -> Any:
    """The value with numbers for tensors, where they can be read."""
    if isinstance(value, tuple | list):
        return type(value)(_first_value(name, item) for item in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim or not value.is_floating_point():
        raise ValueError(
            f"{name} must be a number or a real tensor of shape (), got {value.dtype} {tuple(value.shape)}; only an "
            "inner_lr can differ between parameters, as a LearnedRate"
        )
    return value if in_transform() else float(value.detach())
