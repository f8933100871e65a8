"""ResNet-12, the deeper of the two standard networks of few-shot classification.

Shape legend: n examples, C channels, H height, W width.
"""

from __future__ import annotations

from torch import Tensor, nn

from kshot.annotations import FourPositiveInts, PositiveFraction, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.models.backbones import with_head, with_maps
from kshot.models.dropblock import DropBlock
from kshot.supplied import Channels, FeatureMaps, NumOutputs

LEAKY_SLOPE = 0.1


class ResidualBlock(nn.Module):
    """Three 3×3 convolutions and a 1×1 shortcut, with BatchNorm and max-pooling: (n, C, H, W) to (n, C', H/2, W/2).

    Args:
        channels_in: C.
        channels: C'.
        drop: the last layer: dropout or DropBlock.
    """

    def __init__(self, channels_in: int, channels: int, drop: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(3):
            layers += [
                nn.Conv2d(channels if number else channels_in, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.LeakyReLU(LEAKY_SLOPE),
            ]
        self.main = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.end = nn.Sequential(nn.LeakyReLU(LEAKY_SLOPE), nn.MaxPool2d(2), drop)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < 2:
            raise ValueError(
                f"a residual block halves its feature maps, got {x.shape[-2]}×{x.shape[-1]} pixels: "
                "ResNet-12 takes images of at least 16×16"
            )
        return self.end(self.main(x) + self.shortcut(x))


@check_arguments
def resnet12(
    channels_in: Channels,
    outputs: NumOutputs | None = None,
    *,
    widths: FourPositiveInts = (64, 160, 320, 640),
    keep_prob: PositiveFraction = 0.9,
    block_size: PositiveInt = 5,
    maps: FeatureMaps = False,
) -> nn.Sequential:
    """Four residual blocks and global average pooling: (n, channels_in, H, W) to (n, outputs), from 16×16 pixels.

    Args:
        channels_in: channels of the images: 1 for greyscale, 3 for colour.
        outputs: outputs of a linear head; None for no head, which gives features (n, widths[-1]).
        widths: channels of the four blocks.
        keep_prob: fraction kept in training, by dropout after the first two blocks and by `DropBlock` after the last
            two, where it falls to this value over the first third of the training; 1 drops nothing.
        block_size: side of the dropped squares in pixels; MetaOptNet uses 5 for images of 84×84, and 2 for 32×32.
        maps: return the feature maps (n, widths[-1], h, w) without pooling and without a head.

    Raises:
        ValueError: an argument is out of range, or `maps` is combined with outputs.

    Example:
        >>> resnet12(3, 5, widths=(8, 16, 32, 64))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])

    References:
        Oreshkin, Rodríguez, Lacoste: TADAM, arXiv:1805.10123; Lee et al.: MetaOptNet, arXiv:1904.03758, section 4.1.

    Deviations:
        MetaOptNet uses the last feature maps without pooling; most later work averages them, as here.
    """
    blocks: list[nn.Module] = []
    for number, channels in enumerate(widths):
        drop = nn.Dropout(1 - keep_prob) if number < 2 else DropBlock(keep_prob, block_size, until=1 / 3)
        blocks.append(ResidualBlock(widths[number - 1] if number else channels_in, channels, drop))
    for block in blocks:
        for part in block.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, LEAKY_SLOPE, mode="fan_out")
    if maps:
        return with_maps(blocks, outputs)
    return with_head(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1], outputs)
