"""Inner learning rates: a number, or meta-parameters per tensor or element, and per step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from kshot.annotations import PositiveFloat, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.per_parameter import PerParameter
from kshot.types import Params

Rate = PositiveFloat | Callable[[str, int], Tensor]
"""A positive number, or a function (name of the parameter, step from 0) -> rate, such as a `LearnedRate`."""

Per = Literal["tensor", "element"]


class LearnedRate(nn.Module):
    r"""Meta-learned rates $\alpha_{ik}$ of tensor (or element) $i$ at step $k$.

    Args:
        params: the adapting parameters, by name; see `inner.per_parameter.adaptable_params`.
        inner_lr: initial value of all rates, above 0. Learned rates are not constrained to stay above 0.
        per: "tensor" learns one rate per tensor, "element" one per element.
        steps: number of steps with their own rates; later steps use those of the last. None shares all rates.

    Example:
        >>> import torch
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
        self.steps = steps
        leading = () if steps is None else (steps,)
        self.rates = PerParameter(
            {
                name: value.new_full((*leading, *(value.shape if per == "element" else ())), inner_lr)
                for name, value in params.items()
            }
        )

    def forward(self, name: str, step: int) -> Tensor:
        """The rate of a parameter at a step: () or the parameter's shape."""
        rates = self.rates[name]
        return rates if self.steps is None else rates[min(step, self.steps - 1)]


def rate_at(inner_lr: Rate, name: str, step: int) -> float | Tensor:
    """The rate of a parameter at a step."""
    return inner_lr(name, step) if callable(inner_lr) else inner_lr
