"""The last layer of a model that predicts normal distributions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import softplus

from kshot.annotations import OpenFraction
from kshot.argument_checks import check_arguments


class Spread(nn.Module):
    r"""Splits 2Y outputs into Y means and Y standard deviations, for `objectives.gaussian`.

    $$ \sigma = \sigma_{\min} + (1 - \sigma_{\min}) \, \mathrm{softplus}(s) $$

    Args:
        min_std: $\sigma_{\min}$ in the targets' unit, between 0 and 1; it bounds the likelihood of noise-free targets.

    Raises:
        ValueError: `min_std` is out of range, or in a call, the number of inputs is odd.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(1, 2), Spread())
        >>> {name: part.shape for name, part in model(torch.zeros(5, 1)).items()}
        {'mean': torch.Size([5, 1]), 'std': torch.Size([5, 1])}
    """

    @check_arguments
    def __init__(self, min_std: OpenFraction = 0.01) -> None:
        super().__init__()
        self.min_std = min_std

    def forward(self, raw: Tensor) -> dict[str, Tensor]:
        """(n, 2Y), the means first, to {"mean": (n, Y), "std": (n, Y)}."""
        if raw.shape[-1] % 2:
            raise ValueError(f"means and deviations need an even number of outputs, got {tuple(raw.shape)}")
        mean, raw_std = raw.chunk(2, -1)
        return {"mean": mean, "std": self.min_std + (1 - self.min_std) * softplus(raw_std)}
