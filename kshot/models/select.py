"""A model that returns one part of what another model returns."""

from __future__ import annotations

from typing import Any

from torch import nn

from kshot.objectives.outputs import select_part
from kshot.types import Tree


class Select(nn.Module):
    """One part of the output of a model, see `select`; the model is the attribute `model`."""

    def __init__(self, model: nn.Module, part: str | int) -> None:
        super().__init__()
        self.model, self.part = model, part

    def forward(self, *args: Any, **kwargs: Any) -> Tree:
        return select_part(self.model(*args, **kwargs), self.part)

    def extra_repr(self) -> str:
        return f"part={self.part!r}"


def select(model: nn.Module, part: str | int) -> Select:
    """A model that returns one part of the output of `model`, for models that return several.

    A learner scores the field "logits" of an output by itself (see `Objective.scored`); any other output of
    several parts needs this choice.

    Args:
        model: returns a tuple, a list, a mapping, a NamedTuple or a dataclass. It is not copied; the names of its
            parameters start with "model.", as in `adaptable="model.head.*"`.
        part: name of the part, or its position.

    Raises:
        ValueError: in a call, if the output has no such part.

    Example:
        >>> model = select(torch.nn.LSTM(1, 4, batch_first=True), 0)
        >>> model(torch.zeros(2, 3, 1)).shape
        torch.Size([2, 3, 4])
    """
    return Select(model, part)
