"""Selection of the adapting parameters of a model, and meta-parameters per parameter, such as learning rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from kshot.annotations import PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.hyperparameters import refuse_tensor
from kshot.types import Params

Pattern = str | Sequence[str]
"""A shell pattern of parameter names such as "head.*", or a sequence of them; a pattern that starts with "!" excludes
names that earlier patterns include, so ("*", "!head.*") is all but the head. Tied weights go by any of their names.
Buffers match by their full name only."""


def adaptable_params(model: nn.Module, adaptable: Pattern = "*") -> Params:
    """The adapting parameters of `model`, by name: those that require a gradient and match the pattern.

    A buffer adapts if its full name is given; its initial value in each task is not meta-learned. Raises ValueError if
    no parameter matches.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
        >>> list(adaptable_params(model, ("*", "!0.*", "!*.bias")))
        ['1.weight']
    """
    patterns = [adaptable] if isinstance(adaptable, str) else list(adaptable)
    named: dict[int, tuple[Tensor, list[str]]] = {}  # each parameter with all of its names
    for name, parameter in model.named_parameters(remove_duplicate=False):
        named.setdefault(id(parameter), (parameter, []))[1].append(name)
    matching: Params = {
        names[0]: parameter
        for parameter, names in named.values()
        if parameter.requires_grad and _matches(names, patterns)
    }
    matching.update({name: buffer for name, buffer in model.named_buffers() if name in patterns})
    if not matching:
        names = ", ".join(name for name, _ in model.named_parameters()) or "none"
        raise ValueError(f"no trainable parameter of the model matches adaptable={adaptable!r}; it has: {names}")
    return matching


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether the last pattern that matches one of the names of a weight includes it."""
    included = False
    for pattern in patterns:
        if any(fnmatchcase(name, pattern.removeprefix("!")) for name in names):
            included = not pattern.startswith("!")
    return included


class PerParameter(nn.Module):
    """One meta-parameter per parameter of a model, indexed by its qualified name.

    Args:
        values: initial values by name; they are copied. Dots in names become slashes, since modules allow no dots.
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


Rate = PositiveFloat | Tensor | Callable[[str, int], Tensor]
"""A positive number, a tensor of one, or a function (name, step from 0) -> rate, such as a `LearnedRate`."""

Per = Literal["tensor", "element"]


class LearnedRate(nn.Module):
    r"""Meta-learned rates $\alpha_{ik}$ of tensor (or element) $i$ at step $k$.

    Args:
        params: the adapting parameters, by name; see `adaptable_params`.
        inner_lr: initial value of all rates, above 0. Learned rates are not constrained to stay above 0.
        per: "tensor" learns one rate per tensor, "element" one per element.
        steps: number of steps with their own rates; later steps use those of the last. None shares all rates.

    Example:
        >>> rate = LearnedRate({"w": torch.zeros(3)}, 0.1, per="element", steps=2)
        >>> rate("w", 5).shape
        torch.Size([3])

    References:
        Li et al.: Meta-SGD, arXiv:1707.09835 (per element); Antoniou et al.: How to train your MAML,
        arXiv:1810.09502, section 4 (LSLR: per tensor and step).
    """

    @check_arguments
    def __init__(
        self, params: Params, inner_lr: PositiveFloat, *, per: Per = "tensor", steps: PositiveInt | None = None
    ) -> None:
        super().__init__()
        refuse_tensor(inner_lr=inner_lr)
        self.steps = steps
        leading = () if steps is None else (steps,)
        shapes = {name: (*leading, *(value.shape if per == "element" else ())) for name, value in params.items()}
        real = {name: value.real if value.is_complex() else value for name, value in params.items()}
        self.rates = PerParameter({name: real[name].new_full(shape, inner_lr) for name, shape in shapes.items()})

    def forward(self, name: str, step: int) -> Tensor:
        """The rate of a parameter at a step: () or the parameter's shape."""
        rates = self.rates[name]
        return rates if self.steps is None else rates[min(step, self.steps - 1)]
