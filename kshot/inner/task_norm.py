"""TaskNorm: the moments of a task's support set, blended with those of each example.

Shape legend: n examples, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot.inner.batch_norm import along_channels


class TaskNorm(nn.Module):
    r"""TaskNorm-I: blends the moments $\mu, \sigma^2$ of a support set with those of an example, $\mu_i, \sigma_i^2$:

    $$ \mu' = \alpha \mu + (1 - \alpha) \mu_i, \qquad \sigma'^2 = \alpha (\sigma^2 + (\mu - \mu')^2)
       + (1 - \alpha) (\sigma_i^2 + (\mu_i - \mu')^2), \qquad \alpha = \mathrm{sigmoid}(a N + b) $$

    for N support examples; a and b are learned for each norm. The larger the support, the more its moments may count. A
    query is normalised by itself and the support alone, so this is inductive.

    Args:
        norms: how many norms a module has; those that run are counted in their order, and begin anew after the last.

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
        """Mean and variance (n, C) of input (n, C, ...) at a norm, from those of the support (C,) and its size ()."""
        place = call % len(self.slope)
        alpha = torch.sigmoid(self.slope[place] * count + self.offset[place])
        places = tuple(range(2, input.ndim))
        own = input.mean(places) if places else input
        own_var = (input - along_channels(own, input)).square().mean(places) if places else torch.zeros_like(input)
        blended = torch.lerp(own, mean.expand_as(own), alpha)
        return blended, torch.lerp(own_var + (own - blended).square(), var + (mean - blended).square(), alpha)
