"""Small standard backbones. Each is a `body` that makes features and, where asked for, a linear `head`.

Shape legend: n examples, H height, W width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn


def mlp(inputs: int, outputs: int | None, hidden: Sequence[int] = (40, 40)) -> nn.Sequential:
    """A perceptron with ReLU: (n, inputs) to (n, outputs). The default is the sinusoid network of the MAML paper.

    Without `outputs` it gives the features (n, hidden[-1]) themselves.

    Example:
        >>> mlp(1, 1)(torch.zeros(3, 1)).shape
        torch.Size([3, 1])
    """
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise([inputs, *hidden]):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return with_head(nn.Sequential(*layers), [inputs, *hidden][-1], outputs)


def conv4(
    channels_in: int,
    outputs: int | None = None,
    *,
    channels: int = 64,
    size: int = 28,
    downsample: Literal["pool", "stride"] = "pool",
    maps: bool = False,
) -> nn.Sequential:
    """Four blocks of 3×3 convolution, BatchNorm, ReLU and halving: (n, channels_in, size, size) to (n, outputs).

    Args:
        channels_in: 1 for grey, 3 for colour.
        outputs: outputs of a linear head; None gives the features (n, features) themselves.
        channels: channels of each block.
        size: height and width of the images, in pixels.
        downsample: "pool" halves by max-pooling (rounding down), "stride" by the convolution's stride (rounding up),
            which costs about a quarter; the MAML paper's Omniglot network is the latter.
        maps: give the maps (n, channels, h, w) that the last block makes, and no head.

    Raises:
        ValueError: images too small to be halved four times; outputs of maps.

    Example:
        >>> conv4(1, 5)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])

    References:
        Vinyals et al., arXiv:1606.04080, section 4.1.1; Finn et al., arXiv:1703.03400, section 5.2.

    Deviations:
        Convolutions carry no bias: the BatchNorm that follows would subtract it.
    """
    if downsample not in ("pool", "stride"):
        raise ValueError(f"downsample must be 'pool' or 'stride', got {downsample!r}")
    layers: list[nn.Module] = []
    side = size
    for block in range(4):
        stride = 2 if downsample == "stride" else 1
        layers += [
            nn.Conv2d(channels if block else channels_in, channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        if downsample == "pool":
            layers.append(nn.MaxPool2d(2))
        side = side // 2 if downsample == "pool" else (side + 1) // 2
    if side < 1:
        raise ValueError(f"images of {size}×{size} pixels cannot be halved four times by pooling; use at least 16×16")
    if maps:
        return with_maps(layers, outputs)
    return with_head(nn.Sequential(*layers, nn.Flatten()), channels * side * side, outputs)


def with_head(body: nn.Module, features: int, outputs: int | None) -> nn.Sequential:
    """A `body` that gives (n, features), and a linear `head` to (n, outputs) unless that is None."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(body=body)
    if outputs is not None:
        parts["head"] = nn.Linear(features, outputs)
    return nn.Sequential(parts)


def with_maps(layers: Sequence[nn.Module], outputs: int | None) -> nn.Sequential:
    """A `body` that gives feature maps (n, channels, h, w)."""
    if outputs is not None:
        raise ValueError(f"feature maps have no head of {outputs} outputs: give outputs=None with maps=True")
    return nn.Sequential(OrderedDict(body=nn.Sequential(*layers)))
