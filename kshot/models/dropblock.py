"""DropBlock: dropout for feature maps, in squares.

Shape legend: n examples, C channels, H height, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kshot.learner import Scheduled


class DropBlock(Scheduled):
    r"""Sets squares of feature maps to zero while training, and scales up what is left: (n, C, H, W) to the same.

    Seeds are drawn where a square of side $b$ fits, each with probability $\gamma$, and every seed drops its square:

    $$ \gamma = \frac{1 - p}{b^2} \cdot \frac{HW}{(H - b + 1)(W - b + 1)}, \qquad
       y = x \odot M \cdot \frac{CHW}{\sum M} $$

    So a share of about $1 - p$ is dropped, somewhat less where squares overlap. The share grows linearly from 0 over
    the first part of the training; the trainer tells how far that is (see `Scheduled`). In evaluation mode nothing is
    done.

    Args:
        keep_prob: $p$, the share that is kept in the end, above 0 and at most 1.
        block_size: $b$, in pixels; on a smaller map the side is the map's.
        until: the part of the training, from 0 to 1, over which the share grows.

    Raises:
        ValueError: numbers outside these bounds.

    Example:
        >>> dropped = DropBlock(keep_prob=0.5, block_size=2)(torch.ones(1, 8, 6, 6))
        >>> print(f"{dropped.mean():.3f}")
        1.000

    References:
        Ghiasi, Lin, Le: DropBlock, arXiv:1810.12890, algorithm 1 and section 3 (scheduled DropBlock).

    Deviations:
        What is left is scaled for each example by itself, so that no example depends on the others of its batch.
    """

    share: Tensor

    def __init__(self, keep_prob: float = 0.9, block_size: int = 5, *, until: float = 1.0) -> None:
        super().__init__()
        if not 0 < keep_prob <= 1:
            raise ValueError(f"keep_prob must be above 0 and at most 1, got {keep_prob}")
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1 pixel, got {block_size}")
        if not 0 <= until <= 1:
            raise ValueError(f"until must be a part of the training, from 0 to 1, got {until}")
        self.keep_prob, self.block_size, self.until = keep_prob, block_size, until
        # a tensor, so that compiled programs follow the schedule
        self.register_buffer("share", torch.tensor(1 - keep_prob), persistent=False)

    def set_progress(self, progress: float) -> None:
        self.share.fill_((1 - self.keep_prob) * (1 if progress >= self.until else progress / self.until))

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.keep_prob == 1:
            return input
        height, width = input.shape[-2:]
        high, wide = min(self.block_size, height), min(self.block_size, width)
        places = (height - high + 1, width - wide + 1)
        gamma = self.share * (height * width / (high * wide * places[0] * places[1]))
        drawn = torch.rand((*input.shape[:-2], *places), device=input.device)  # float32, for gamma may be very small
        seeds = F.pad((drawn < gamma).to(input.dtype), (wide - 1, wide - 1, high - 1, high - 1))
        kept = 1 - F.max_pool2d(seeds, (high, wide), stride=1)
        left = kept.sum((-3, -2, -1), keepdim=True).clamp_min(1)
        return input * kept * (kept[0].numel() / left)

    def extra_repr(self) -> str:
        return f"keep_prob={self.keep_prob}, block_size={self.block_size}, until={self.until}"
