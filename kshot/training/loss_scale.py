"""The scale of losses in float16, which follows the gradients of a training."""

from __future__ import annotations

import torch

from kshot.annotations import PositiveInt
from kshot.argument_checks import check_arguments
from kshot.inner.precision import Scales


class LossScale:
    """A power of two, by which a loss is multiplied before it is differentiated, and its gradient divided after.

    In float16, small numbers lose digits and end as 0, and large ones as infinity; a scale moves all of them without a
    rounding error. The rule is that of `torch.amp.GradScaler`: the scale is halved where a gradient is not finite, and
    doubled after a number of steps where it was. That class scales one loss and calls its optimizer; here inner losses
    are scaled too, recorded programs take the scales as arguments, and a step is taken again instead of left out.

    Args:
        exponent: of the first scale.
        interval: finite steps after which the scale is doubled.

    Attributes:
        finite: finite steps since the last change.

    Example:
        >>> scale = LossScale(3)
        >>> scale.halve(), scale.value
        (True, 4.0)
    """

    @check_arguments
    def __init__(self, exponent: int = 16, *, interval: PositiveInt = 2000) -> None:
        self.exponent, self.interval, self.finite = exponent, interval, 0

    @property
    def value(self) -> float:
        """The scale of outer losses."""
        return 2.0**self.exponent

    def scales(self, device: torch.device) -> Scales:
        """The scales of outer losses and of inner ones, which is the root of the other, rounded to a power of two."""
        values = torch.tensor([self.value, 2.0 ** (self.exponent // 2)], device=device)
        return Scales(*values.unbind())

    def halve(self) -> bool:
        """Halve the scale, after a gradient that is not finite; False at 1, the smallest, which stays."""
        if self.exponent <= 0:
            return False
        self.exponent, self.finite = self.exponent - 1, 0
        return True

    def count(self) -> None:
        """Count a finite step; after the `interval`, double the scale."""
        self.finite += 1
        if self.finite == self.interval:
            self.exponent, self.finite = self.exponent + 1, 0

    def state(self) -> dict[str, int]:
        """What `restore` needs, as JSON."""
        return {"exponent": self.exponent, "finite": self.finite}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from a `state`."""
        self.exponent, self.finite = state["exponent"], state["finite"]
