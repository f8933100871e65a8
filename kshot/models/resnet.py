"""ResNet-12, the deeper of the two standard networks of few-shot classification.

Shape legend: n examples, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor, nn

from kshot.annotations import FourPositiveInts, PositiveFraction, PositiveInt
from kshot.models.backbones import with_head, with_maps
from kshot.models.dropblock import DropBlock

SLOPE = 0.1  # of the leaky ReLU


class ResidualBlock(nn.Module):
    """Three 3×3 convolutions with BatchNorm beside a 1×1 one, halved by max-pooling: (n, C, H, W) to (n, C', H/2, W/2).

    Args:
        channels_in: C.
        channels: C'.
        drop: what follows: dropout, DropBlock or nothing.
    """

    def __init__(self, channels_in: int, channels: int, drop: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(3):
            layers += [
                nn.Conv2d(channels if number else channels_in, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.LeakyReLU(SLOPE),
            ]
        self.main = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.end = nn.Sequential(nn.LeakyReLU(SLOPE), nn.MaxPool2d(2), drop)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < 2:
            raise ValueError(
                f"a residual block halves its maps, and got one of {x.shape[-2]}×{x.shape[-1]} pixels: "
                "ResNet-12 takes images of at least 16×16"
            )
        return self.end(self.main(x) + self.shortcut(x))


def resnet12(
    channels_in: int,
    outputs: int | None = None,
    *,
    widths: FourPositiveInts = (64, 160, 320, 640),
    keep_prob: PositiveFraction = 0.9,
    block_size: PositiveInt = 5,
    maps: bool = False,
) -> nn.Sequential:
    """Four residual blocks and global average pooling: (n, channels_in, H, W) to (n, outputs), from 16×16 pixels on.

    Args:
        channels_in: 1 for grey, 3 for colour.
        outputs: outputs of a linear head; None gives the features (n, widths[-1]) themselves.
        widths: channels of the four blocks.
        keep_prob: share that is kept while training, by dropout after the first two blocks and by `DropBlock` after the
            last two, there falling to this over the first third of the training; 1 drops nothing.
        block_size: side of the dropped squares, in pixels; MetaOptNet takes 5 for images of 84×84, and 2 for 32×32.
        maps: give the maps (n, widths[-1], h, w) unpooled, and no head.

    Raises:
        ValueError: another number of widths than four, or a width, share or side out of bounds; outputs of maps.

    Example:
        >>> resnet12(3, 5, widths=(8, 16, 32, 64))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])

    References:
        Oreshkin, Rodríguez, Lacoste: TADAM, arXiv:1805.10123; Lee et al.: MetaOptNet, arXiv:1904.03758, section 4.1.

    Deviations:
        MetaOptNet's own head takes the last maps unpooled; most later work averages them, as is done here.
    """
    if len(widths) != 4 or min(widths) < 1:
        raise ValueError(f"ResNet-12 has four blocks of at least 1 channel each, got widths {tuple(widths)}")
    blocks: list[nn.Module] = []
    for number, channels in enumerate(widths):
        drop = nn.Dropout(1 - keep_prob) if number < 2 else DropBlock(keep_prob, block_size, until=1 / 3)
        blocks.append(ResidualBlock(widths[number - 1] if number else channels_in, channels, drop))
    for block in blocks:
        for part in block.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, SLOPE, mode="fan_out")
    if maps:
        return with_maps(blocks, outputs)
    return with_head(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1], outputs)
