"""Selection of the adapting parameters of a model, and meta-parameters per parameter."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from kshot.types import Params

Pattern = str | Sequence[str]
"""A shell pattern of parameter names such as "head.*", or a sequence of them; a pattern that starts with "!" excludes
names that earlier patterns include, so ("*", "!head.*") is all but the head. Buffers match by their full name only."""


def adaptable_params(model: nn.Module, adaptable: Pattern = "*") -> Params:
    """The adapting parameters of `model`, by name: those that require a gradient and match the pattern.

    A buffer adapts if its full name is given; its initial value in each task is not meta-learned.

    Raises:
        ValueError: no parameter matches.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
        >>> list(adaptable_params(model, ("*", "!0.*", "!*.bias")))
        ['1.weight']
    """
    patterns = [adaptable] if isinstance(adaptable, str) else list(adaptable)
    matching: Params = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and _matches(name, patterns)
    }
    matching.update({name: buffer for name, buffer in model.named_buffers() if name in patterns})
    if not matching:
        names = ", ".join(name for name, _ in model.named_parameters()) or "none"
        raise ValueError(f"no trainable parameter of the model matches adaptable={adaptable!r}; it has: {names}")
    return matching


def _matches(name: str, patterns: Sequence[str]) -> bool:
    included = False
    for pattern in patterns:
        if fnmatchcase(name, pattern.removeprefix("!")):
            included = not pattern.startswith("!")
    return included


class PerParameter(nn.Module):
    """One meta-parameter per parameter of a model, indexed by its qualified name.

    Args:
        values: initial values by name; they are copied. Dots in names become slashes, since modules allow no dots.

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
        parameter = self._parameters.get(name.replace(".", "/"))
        if parameter is None:
            names = ", ".join(key.replace("/", ".") for key in self._parameters)
            raise ValueError(f"the rule has no value for the parameter {name!r}; it was built for: {names}")
        return parameter
