"""A small fully convolutional network for segmentation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from kshot.annotations import NonNegativeInt, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.supplied import Channels, NumOutputs


@check_arguments
def segmenter(
    channels_in: Channels,
    outputs: NumOutputs | None = None,
    *,
    channels: Sequence[PositiveInt] = (32, 64, 64),
    halvings: NonNegativeInt = 2,
) -> nn.Sequential:
    """Blocks of 3×3 convolution, BatchNorm and ReLU: images (n, C, H, W) to logits (n, outputs, h, w) of their pixels.

    The last layer is a 1×1 convolution; `objectives.segmentation` scales its logits to the size of the masks.

    Args:
        channels_in: C; also of feature maps, of which `channels=()` changes nothing.
        outputs: number of classes with the background; None for no last layer, which gives feature maps.
        channels: channels of each block.
        halvings: number of blocks, from the first, that halve height and width, by the stride of their convolution.

    Example:
        >>> import torch
        >>> segmenter(3, 2)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 2, 16, 16])

    References:
        Long, Shelhamer, Darrell: Fully Convolutional Networks for Semantic Segmentation, CVPR 2015, arXiv:1411.4038.
    """
    layers: list[nn.Module] = []
    for number, (width_in, width) in enumerate(pairwise([channels_in, *channels])):
        stride = 2 if number < halvings else 1
        convolution = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
    parts: OrderedDict[str, nn.Module] = OrderedDict(body=nn.Sequential(*layers))
    if outputs is not None:
        parts["head"] = nn.Conv2d([channels_in, *channels][-1], outputs, 1)
    return nn.Sequential(parts)
