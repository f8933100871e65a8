"""Checks of arguments against the bounds in their annotations (see `kshot.annotations`)."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from functools import cache, wraps
from numbers import Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Len, Lt

from kshot.annotations import MOST, MOST_FLOAT, MOST_SEED

GENEROUS = (MOST, MOST_SEED, MOST_FLOAT)
"""Bounds that messages name only where they are not met."""

P = ParamSpec("P")
R = TypeVar("R")


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that arguments outside the bounds of their annotations raise ValueError.

    Bounds of numbers, lengths and elements of sequences, and options of a `Literal` are checked; types are not.

    Example:
        >>> @check_arguments
        ... def ridge(width: Annotated[int, Ge(1)] = 64) -> None: ...
        >>> ridge(width=0)
        Traceback (most recent call last):
        ValueError: width must be at least 1, got 0
    """
    signature = inspect.signature(function)
    hints = cache(lambda: get_type_hints(function, include_extras=True))

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:  # the call raises the usual error
            arguments = {}
        check_values(arguments, hints())
        return function(*args, **kwargs)

    return checked


def check_values(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raise ValueError if a named value is outside the bounds of its annotation."""
    for name, value in values.items():
        requirement = _unmet(value, hints.get(name))
        if requirement is not None:
            raise ValueError(f"{name} must be {requirement}, got {value!r}")


def _unmet(value: Any, hint: Any) -> str | None:
    """The requirement of an annotation that a value does not meet, or None."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        return None if value in options else f"one of {', '.join(map(str, options))}"
    if origin in (Union, UnionType):
        unmet = [_unmet(value, option) for option in options if _is_of_kind(value, option)]
        return None if not unmet or None in unmet else unmet[0]
    if origin is Annotated:
        return _unmet(value, options[0]) or _unmet_bounds(value, options[1:])
    if origin in (Sequence, list, tuple) and isinstance(value, Sequence):
        element = next(filter(None, (_unmet(item, options[0]) for item in value)), None)
        return element and f"{element} each"
    return None


_COMPARISONS = {
    Ge: (operator.ge, "at least"),
    Gt: (operator.gt, "above"),
    Le: (operator.le, "at most"),
    Lt: (operator.lt, "below"),
}


def _unmet_bounds(value: Any, bounds: Sequence[Any]) -> str | None:
    limits = [(*_COMPARISONS[type(bound)], *astuple(bound)) for bound in bounds if type(bound) in _COMPARISONS]
    if limits and isinstance(value, Real):
        is_met = all(compare(value, limit) for compare, _, limit in limits)
        named = [each for each in limits if each[2] not in GENEROUS or not each[0](value, each[2])]
        return None if is_met else " and ".join(f"{text} {limit}" for _, text, limit in named)
    for bound in bounds:
        if isinstance(bound, Len) and isinstance(value, Sequence):
            low, high = bound.min_length, bound.max_length
            if len(value) < low or (high is not None and len(value) > high):
                return f"{low} values" if low == high else f"at least {low} value{'s' * (low > 1)}"
    return None


def _is_of_kind(value: Any, hint: Any) -> bool:
    """Whether a value belongs to an option of a union: None, a number, a string or a sequence."""
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if base is NoneType or base in (int, float):
        return value is None if base is NoneType else isinstance(value, Real)
    if get_origin(base) is Literal or base is str:
        return isinstance(value, str)
    return get_origin(base) in (Sequence, list, tuple) and isinstance(value, Sequence) and not isinstance(value, str)
