"""The part of a model's output that is scored: a tensor, or a named field of an output with several parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kshot.types import Tree, tree_map

SCORED_FIELD = "logits"
"""The field that the outputs of `transformers`, and of many other models, score."""


def fields_of(output: Any) -> Mapping[str, Any] | None:
    """The parts of an output by name: of a mapping, a NamedTuple or a dataclass; None if its parts have no names."""
    if isinstance(output, Mapping):  # among them the ModelOutput of transformers
        return output
    if hasattr(output, "_asdict"):
        return output._asdict()
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return None


def describe_output(output: Any) -> str:
    """An output in words, such as "a tuple of 2"."""
    kind, fields = type(output).__name__, fields_of(output)
    if fields is not None:
        return f"a {kind} of {', '.join(map(str, fields)) or 'no fields'}"
    return f"a {kind} of {len(output)}" if isinstance(output, list | tuple) else f"a {kind}"


def select_part(output: Any, part: str | int) -> Any:
    """The part of an output with a name, or with a position among its parts.

    Raises:
        ValueError: the output has no such part.
    """
    fields = fields_of(output)
    try:
        if isinstance(part, str):
            return (fields or {})[part]
        return (output if isinstance(output, list | tuple) else list((fields or {}).values()))[part]
    except (KeyError, IndexError):
        raise ValueError(f"the model returned {describe_output(output)}, which has no part {part!r}") from None


def the_tensor(output: Any, purpose: str) -> Tensor:
    """The output itself if it is a tensor.

    Raises:
        ValueError: the output has several parts; the message says how to select that for the `purpose`.
    """
    if isinstance(output, Tensor):
        return output
    fields = fields_of(output)
    part = 0 if fields is None else next((n for n, value in fields.items() if isinstance(value, Tensor)), SCORED_FIELD)
    raise ValueError(
        f"the model returned {describe_output(output)}: say which part {purpose}, for example by "
        f"kshot.models.select(model, {part!r})"
    )


def scored_part(output: Any, *, distribution: bool) -> Tree:
    """The part of an output that an objective scores, see `Objective.scored`."""
    fields = fields_of(output)
    names = ("mean", "std") if distribution else (SCORED_FIELD,)
    if fields is None or not all(isinstance(fields.get(name), Tensor) for name in names):
        if distribution and fields is not None:
            return output  # the loss names the fields that it needs
        return the_tensor(output, "is scored")
    if distribution:
        return {name: fields[name] for name in names} if type(output) is not dict else output
    return fields[SCORED_FIELD]


def in_float32(output: Tree) -> Tree:
    """Under `torch.autocast`, an output in at least float32, the type in which losses and heads are computed."""

    def wide(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype not in (torch.bfloat16, torch.float16):
            return leaf
        return leaf.float() if torch.is_autocast_enabled(leaf.device.type) else leaf

    return wide(output) if isinstance(output, Tensor) else tree_map(wide, output)
