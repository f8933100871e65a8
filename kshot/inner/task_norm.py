"""TaskNorm: normalisation by the moments of a task's support set, blended with those of each example.

Shape legend: n examples, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.inner.batch_norm import along_channels


class TaskNorm(nn.Module):
    r"""TaskNorm-I: blends the moments $\mu, \sigma^2$ of a support set with those $\mu_i, \sigma_i^2$ of an example:

    $$ \mu' = \alpha \mu + (1 - \alpha) \mu_i, \qquad \sigma'^2 = \alpha (\sigma^2 + (\mu - \mu')^2)
       + (1 - \alpha) (\sigma_i^2 + (\mu_i - \mu')^2), \qquad \alpha = \mathrm{sigmoid}(a N + b) $$

    for N support examples, with learned a and b per norm. The weight of the support may grow with its size. A query is
    normalised by itself and the support alone, so this is inductive.

    Args:
        norms: number of norms of the module; calls are counted in order, modulo this number.

    Example:
        >>> norm, one = TaskNorm(1), torch.tensor([1.0])
        >>> image = torch.tensor([[[[1.0, 3.0]]]])
        >>> norm(0, image, mean=0 * one, var=one, count=torch.tensor(5.0))  # alpha is 1/2 at first
        (tensor([[1.]], grad_fn=...), tensor([[2.]], grad_fn=...))

    References:
        Bronskill, Gordon, Requeima, Nowozin, Turner: TaskNorm, ICML 2020, arXiv:2003.03284, section 4.
    """

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.zeros(norms)), nn.Parameter(torch.zeros(norms))

    def forward(self, call: int, input: Tensor, mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (n, C) to normalise input (n, C, ...), from those of the support (C,) and its size ()."""
        norm = call % len(self.slope)
        alpha = torch.sigmoid(self.slope[norm] * count + self.offset[norm])
        axes = tuple(range(2, input.ndim))
        mean_i = input.mean(axes) if axes else input
        var_i = (input - along_channels(mean_i, input)).square().mean(axes) if axes else torch.zeros_like(input)
        blended = torch.lerp(mean_i, mean.expand_as(mean_i), alpha)
        return blended, torch.lerp(var_i + (mean_i - blended).square(), var + (mean - blended).square(), alpha)
