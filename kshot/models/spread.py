"""The last layer of a model that predicts a mean and how far the truth may be from it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import softplus


class Spread(nn.Module):
    r"""A mean and a standard deviation out of twice as many numbers, for `objectives.gaussian`.

    $$ \sigma = \sigma_{\min} + (1 - \sigma_{\min}) \, \mathrm{softplus}(s) $$

    Args:
        min_std: $\sigma_{\min}$, in the targets' unit; it bounds the likelihood where there is no noise.

    Raises:
        ValueError: a least deviation outside 0 … 1, or an odd number of inputs.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(1, 2), Spread())
        >>> {name: part.shape for name, part in model(torch.zeros(5, 1)).items()}
        {'mean': torch.Size([5, 1]), 'std': torch.Size([5, 1])}
    """

    def __init__(self, min_std: float = 0.01) -> None:
        super().__init__()
        if not 0 < min_std < 1:
            raise ValueError(f"min_std must be between 0 and 1, got {min_std}")
        self.min_std = min_std

    def forward(self, raw: Tensor) -> dict[str, Tensor]:
        """(n, 2 Y), the means first, to {"mean": (n, Y), "std": (n, Y)}."""
        if raw.shape[-1] % 2:
            raise ValueError(f"a mean and a spread take an even number of outputs, got {tuple(raw.shape)}")
        mean, spread = raw.chunk(2, -1)
        return {"mean": mean, "std": self.min_std + (1 - self.min_std) * softplus(spread)}
