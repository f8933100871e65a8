"""Standard backbones: a `body` that computes features and an optional linear `head`.

Shape legend: n examples, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, normalize

from kshot.annotations import FourPositiveInts, PositiveFloat, PositiveFraction, PositiveInt
from kshot.argument_checks import check_arguments
from kshot.models.layers import DropBlock
from kshot.supplied import Channels, FeatureMaps, ImageSize, InputShape, NumOutputs


def mlp(
    inputs: int | InputShape, outputs: NumOutputs | None, hidden: Sequence[PositiveInt] = (40, 40)
) -> nn.Sequential:
    """A perceptron with ReLU: (n, inputs) to (n, outputs), or to the features (n, hidden[-1]) if `outputs` is None.

    Inputs with several axes are flattened. The default is the sinusoid network of the MAML paper.

    Example:
        >>> mlp(1, 1)(torch.zeros(3, 1)).shape
        torch.Size([3, 1])
    """
    shape = [inputs] if isinstance(inputs, int) else list(inputs)
    widths = [math.prod(shape), *hidden]
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    model = with_head(nn.Sequential(*layers), widths[-1], outputs)
    if len(shape) == 1:
        return model
    return nn.Sequential(OrderedDict(flat=nn.Flatten(), **dict(model.named_children())))


class FixedLength(nn.Module):
    r"""Scales features to a fixed length, $x \mapsto \ell \, x / \lVert x \rVert$: (n, D) to (n, D).

    Squared distances of the results are cosine distances: $\lVert x - y \rVert^2 = 2 \ell^2 (1 - \cos(x, y))$.
    """

    ignores_layout = True

    @check_arguments
    def __init__(self, length: PositiveFloat) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        return self.length * normalize(x, dim=1)

    def extra_repr(self) -> str:
        return f"{self.length}"


class AveragedOverViews(nn.Sequential):
    r"""Layers whose features are, in evaluation mode, the mean over an image and four warped copies of it:

    $$ \bar f(x) = \tfrac15 \bigl( f(x) + f(R_{+} x) + f(R_{-} x) + f(S_{+} x) + f(S_{-} x) \bigr) $$

    where $R_\pm$ rotates by `ROTATION` degrees in both directions, and $S_\pm$ changes the width by `STRETCH`.

    The cost is five forward passes. Each image is processed independently, so inductive learners stay inductive. In
    training mode this is a plain `Sequential`: images (n, C, H, W) to features (n, D).
    """

    ROTATION, STRETCH = 8.0, 0.1
    ignores_layout = True

    def forward(self, x: Tensor) -> Tensor:
        features = super().forward(x)
        if self.training:
            return features
        cos, sin = math.cos(math.radians(self.ROTATION)), math.sin(math.radians(self.ROTATION))
        aspect = x.shape[-2] / x.shape[-1]
        for a, b, c, d in (
            (cos, -sin * aspect, sin / aspect, cos),
            (cos, sin * aspect, -sin / aspect, cos),
            (1 + self.STRETCH, 0.0, 0.0, 1.0),
            (1 - self.STRETCH, 0.0, 0.0, 1.0),
        ):
            affine = x.new_tensor([[a, b, 0.0], [c, d, 0.0]]).expand(len(x), 2, 3)
            grid = affine_grid(affine, list(x.shape), align_corners=False)
            features = features + super().forward(grid_sample(x, grid, padding_mode="border", align_corners=False))
        return features / 5


class AveragedOverMirror(nn.Sequential):
    r"""Layers whose features are, in evaluation mode, the mean over an image and its mirror image.

    The cost is two forward passes. In training mode this is a plain `Sequential`: images (n, C, H, W) to features
    (n, D).
    """

    ignores_layout = True

    def forward(self, x: Tensor) -> Tensor:
        features = super().forward(x)
        return features if self.training else (features + super().forward(x.flip(-1))) / 2


@check_arguments
def conv4(
    channels_in: Channels,
    outputs: NumOutputs | None = None,
    *,
    channels: PositiveInt | FourPositiveInts = 64,
    size: ImageSize = 28,
    downsample: Literal["pool", "pool_first", "stride"] = "pool",
    length: PositiveFloat | None = None,
    views: Literal[1, 2, 5] = 1,
    maps: FeatureMaps = False,
) -> nn.Sequential:
    """Four blocks of 3×3 convolution, BatchNorm, ReLU and halving: (n, channels_in, size, size) to (n, outputs).

    Args:
        channels_in: channels of the images: 1 for greyscale, 3 for colour.
        outputs: outputs of a linear head; None for no head, which gives features (n, features).
        channels: channels of all blocks, or of each of the four.
        size: height and width of the images, in pixels.
        downsample: "pool" is max-pooling (rounding down); "stride" is the stride of the convolution (rounding up), at
            about a quarter of the cost, as in the Omniglot network of the MAML paper; "pool_first" pools before
            BatchNorm and ReLU, which then have a quarter of the work.
        length: length to which features are scaled (see `FixedLength`); None for no scaling.
        views: 2 averages the features, in evaluation mode, over the image and its mirror image, before they are scaled
            to `length`; 5 over the image and four warped copies, after that (see `AveragedOverViews`).
        maps: return the feature maps (n, channels, h, w) of the last block, without a head.

    Raises:
        ValueError: the images are too small to be halved four times, or `maps` comes with outputs, a length or views.

    Example:
        >>> conv4(1, 5)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])

    References:
        Vinyals et al., arXiv:1606.04080, section 4.1.1; Finn et al., arXiv:1703.03400, section 5.2; without a bias of
        convolutions, which BatchNorm would subtract.
    """
    widths = [channels] * 4 if isinstance(channels, int) else list(channels)
    layers: list[nn.Module] = []
    side = size
    stride = 2 if downsample == "stride" else 1
    for width_in, width in pairwise([channels_in, *widths]):
        layers.append(nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False))
        pool = [nn.MaxPool2d(2)]
        layers += pool if downsample == "pool_first" else []
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        layers += pool if downsample == "pool" else []
        side = (side + 1) // 2 if downsample == "stride" else side // 2
    if side < 1:
        raise ValueError(f"images of {size}×{size} pixels cannot be halved four times by pooling; use at least 16×16")
    if maps:
        if length is not None or views != 1:
            raise ValueError("length and views apply to features; omit them with maps=True")
        return with_maps(layers, outputs)
    end = [nn.Flatten()] if length is None else [nn.Flatten(), FixedLength(length)]
    if views == 2:
        body: nn.Module = nn.Sequential(AveragedOverMirror(*layers, nn.Flatten()), *end[1:])
    else:
        body = AveragedOverViews(*layers, *end) if views == 5 else nn.Sequential(*layers, *end)
    return with_head(body, widths[-1] * side * side, outputs)


def with_head(body: nn.Module, features: int, outputs: int | None) -> nn.Sequential:
    """A `body` with output (n, features), and a linear `head` to (n, outputs) unless `outputs` is None."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(body=body)
    if outputs is not None:
        parts["head"] = nn.Linear(features, outputs)
    return nn.Sequential(parts)


def with_maps(layers: Sequence[nn.Module], outputs: int | None) -> nn.Sequential:
    """A `body` with feature maps (n, channels, h, w) as output."""
    if outputs is not None:
        raise ValueError(f"feature maps have no head: use outputs=None with maps=True, got outputs={outputs}")
    return nn.Sequential(OrderedDict(body=nn.Sequential(*layers)))


LEAKY_SLOPE = 0.1


class ResidualBlock(nn.Module):
    """Three 3×3 convolutions and a 1×1 shortcut, with BatchNorm and max-pooling: (n, C, H, W) to (n, C', H/2, W/2)."""

    ignores_layout = True

    def __init__(self, channels_in: int, channels: int, drop: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (channels_in, channels, channels):
            convolution = nn.Conv2d(width, channels, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(channels), nn.LeakyReLU(LEAKY_SLOPE)]
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
        channels_in, outputs: as in `conv4`; without a head the features are (n, widths[-1]).
        widths: channels of the four blocks.
        keep_prob: fraction kept in training, by dropout after the first two blocks and by `DropBlock` after the last
            two, where it falls to this value over the first third of the training; 1 drops nothing.
        block_size: side of the dropped squares in pixels; MetaOptNet uses 5 for images of 84×84, and 2 for 32×32.
        maps: return the feature maps (n, widths[-1], h, w) without pooling and without a head.

    Raises:
        ValueError: `maps` is combined with outputs, or in a call, the images are below 16×16.

    Example:
        >>> resnet12(3, 5, widths=(8, 16, 32, 64))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])

    References:
        Oreshkin, Rodríguez, Lacoste: TADAM, arXiv:1805.10123; Lee et al.: MetaOptNet, arXiv:1904.03758, section 4.1,
        which does not pool the last feature maps; most later work averages them, as here.
    """
    blocks: list[nn.Module] = []
    for number, channels in enumerate(widths):
        drop = nn.Dropout(1 - keep_prob) if number < 2 else DropBlock(keep_prob, block_size, until=1 / 3)
        blocks.append(ResidualBlock(widths[number - 1] if number else channels_in, channels, drop))
    for part in nn.Sequential(*blocks).modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, LEAKY_SLOPE, mode="fan_out")
    if maps:
        return with_maps(blocks, outputs)
    return with_head(nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1], outputs)
