"""What belongs to each parameter of a model: which of them adapt, and meta-parameters that go with them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from kshot.types import Params

Pattern = str | Sequence[str]
"""Names of parameters as a shell pattern such as "head.*", or several; one that begins with "!" takes out again what
those before it let in, so ("*", "!head.*") is all but the head. A buffer adapts only where it is named in full."""


def adaptable_params(model: nn.Module, adaptable: Pattern = "*") -> Params:
    """The parameters of `model` that adapt, by name: those that require a gradient and match the pattern.

    A buffer adapts where its full name is given; it starts every task from its value, which is not meta-learned.

    Raises:
        ValueError: a pattern that matches nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
        >>> list(adaptable_params(model, ("*", "!0.*", "!*.bias")))
        ['1.weight']
    """
    patterns = [adaptable] if isinstance(adaptable, str) else list(adaptable)
    chosen: Params = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and _matches(name, patterns)
    }
    chosen.update({name: buffer for name, buffer in model.named_buffers() if name in patterns})
    if not chosen:
        names = ", ".join(name for name, _ in model.named_parameters()) or "none at all"
        raise ValueError(f"no trainable parameter of the model matches adaptable={adaptable!r}; it has: {names}")
    return chosen


def _matches(name: str, patterns: Sequence[str]) -> bool:
    inside = False
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            inside = not pattern.startswith("!")
    return inside


class PerParameter(nn.Module):
    """A meta-parameter for each parameter of a model, found by the qualified name of the latter.

    Args:
        values: initial values by name, copied. The dots of names are written as slashes, for modules hold no dots.

    Example:
        >>> import torch
        >>> PerParameter({"head.weight": torch.ones(2)})["head.weight"].shape
        torch.Size([2])
    """

    def __init__(self, values: Params) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(value.detach().clone()))

    def __getitem__(self, name: str) -> Tensor:
        found = self._parameters.get(name.replace(".", "/"))
        if found is None:
            made = ", ".join(key.replace("/", ".") for key in self._parameters)
            raise ValueError(f"the rule knows no parameter {name!r}; it was made for: {made}")
        return found
