"""Layers of models: DropBlock, and the last layer of a model that predicts normal distributions.

Shape legend: n examples, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.annotations import Fraction, OpenFraction, PositiveFraction, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.learner import Scheduled


class DropBlock(Scheduled):
    r"""Sets squares of feature maps (n, C, H, W) to zero in training mode, and scales up the rest.

    At each position where a square of side $b$ fits, the square is dropped with probability $\gamma$:

    $$ \gamma = \frac{1 - p}{b^2} \cdot \frac{HW}{(H - b + 1)(W - b + 1)}, \qquad
       y = x \odot M \cdot \frac{CHW}{\sum M} $$

    About a fraction $1 - p$ is dropped, less if squares overlap. The fraction grows linearly from 0 over the first part
    of the training (see `Scheduled`). In evaluation mode the input is returned.

    Args:
        keep_prob: $p$, the final fraction that is kept, above 0 and at most 1.
        block_size: $b$ in pixels; on a smaller map the side of the map.
        until: fraction of the training, from 0 to 1, over which the dropped fraction grows.

    Example:
        >>> dropped = DropBlock(keep_prob=0.5, block_size=2)(torch.ones(1, 8, 6, 6))
        >>> print(f"{dropped.mean():.3f}")
        1.000

    References:
        Ghiasi, Lin, Le: DropBlock, arXiv:1810.12890, algorithm 1 and section 3 (scheduled DropBlock); but each example
        is scaled separately, so that examples of a batch are independent.
    """

    ignores_layout = True

    drop_prob: Tensor

    @check_arguments
    def __init__(
        self, keep_prob: PositiveFraction = 0.9, block_size: PositiveInt = 5, *, until: Fraction = 1.0
    ) -> None:
        super().__init__()
        self.keep_prob, self.block_size, self.until = keep_prob, block_size, until
        # a tensor, so that compiled programs see its changes
        self.register_buffer("drop_prob", torch.tensor(1 - keep_prob), persistent=False)

    def set_progress(self, progress: float) -> None:
        self.drop_prob.fill_((1 - self.keep_prob) * (1 if progress >= self.until else progress / self.until))

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.keep_prob == 1:
            return input
        height, width = input.shape[-2:]
        rows, columns = min(self.block_size, height), min(self.block_size, width)
        positions = (height - rows + 1, width - columns + 1)
        gamma = self.drop_prob * (height * width / (rows * columns * positions[0] * positions[1]))
        uniform = torch.rand((*input.shape[:-2], *positions), device=input.device)  # float32, since gamma may be tiny
        corners = F.pad((uniform < gamma).to(input.dtype), (columns - 1, columns - 1, rows - 1, rows - 1))
        mask = 1 - F.max_pool2d(corners, (rows, columns), stride=1)
        num_kept = mask.sum((-3, -2, -1), keepdim=True).clamp_min(1)
        return input * mask * (mask[0].numel() / num_kept)

    def extra_repr(self) -> str:
        return f"keep_prob={self.keep_prob}, block_size={self.block_size}, until={self.until}"


class Spread(nn.Module):
    r"""Splits 2Y outputs into Y means and Y standard deviations, for `objectives.gaussian`.

    $$ \sigma = \sigma_{\min} + (1 - \sigma_{\min}) \, \mathrm{softplus}(s) $$

    Args:
        min_std: $\sigma_{\min}$ in the targets' unit, between 0 and 1; it bounds the likelihood of noise-free targets.

    Example:
        >>> {name: part.shape for name, part in Spread()(torch.zeros(5, 2)).items()}
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
        return {"mean": mean, "std": self.min_std + (1 - self.min_std) * F.softplus(raw_std)}
