"""OnTooFew standard backbones. Each is a `body` that makes features and, where asked for, a linear `head`.

Shape legend: n examples, H height, W width.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, normalize

from kshot.annotations import FourPositiveInts, PositiveFloat, PositiveInt


def mlp(inputs: int, outputs: int | None, hidden: Sequence[PositiveInt] = (40, 40)) -> nn.Sequential:
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


class FixedLength(nn.Module):
    r"""Features scaled to one length, $x \mapsto \ell \, x / \lVert x \rVert$: (n, D) to (n, D).

    Squared distances between them are cosines: $\lVert x - y \rVert^2 = 2 \ell^2 (1 - \cos(x, y))$.

    Args:
        length: $\ell$.
    """

    def __init__(self, length: float) -> None:
        super().__init__()
        if not length > 0:
            raise ValueError(f"length must be above 0, got {length}")
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        return self.length * normalize(x, dim=1)

    def extra_repr(self) -> str:
        return f"{self.length}"


class Viewed(nn.Sequential):
    r"""Layers whose features are, in evaluation mode, the mean over an image and four copies of it:

    $$ \bar f(x) = \tfrac15 \bigl( f(x) + f(R_{+} x) + f(R_{-} x) + f(S_{+} x) + f(S_{-} x) \bigr) $$

    with $R_\pm$ turning by `TURN` degrees either way, and $S_\pm$ making the image wider or narrower by `STRETCH`.

    It is five times the work. Each image is looked at by itself, so what is inductive stays so. In training mode it is
    a plain `Sequential`: images (n, C, H, W) to features (n, D).
    """

    TURN, STRETCH = 8.0, 0.1

    def forward(self, x: Tensor) -> Tensor:
        features = super().forward(x)
        if self.training:
            return features
        cos, sin = math.cos(math.radians(self.TURN)), math.sin(math.radians(self.TURN))
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


def conv4(
    channels_in: int,
    outputs: int | None = None,
    *,
    channels: PositiveInt | FourPositiveInts = 64,
    size: int = 28,
    downsample: Literal["pool", "pool_first", "stride"] = "pool",
    length: PositiveFloat | None = None,
    views: Literal[1, 5] = 1,
    maps: bool = False,
) -> nn.Sequential:
    """Four blocks of 3×3 convolution, BatchNorm, ReLU and halving: (n, channels_in, size, size) to (n, outputs).

    Args:
        channels_in: 1 for grey, 3 for colour.
        outputs: outputs of a linear head; None gives the features (n, features) themselves.
        channels: channels of each block, or of the four blocks in turn.
        size: height and width of the images, in pixels.
        downsample: "pool" halves by max-pooling (rounding down), "stride" by the convolution's stride (rounding up),
            which costs about a quarter; the MAML paper's Omniglot network is the latter. "pool_first" pools before
            BatchNorm and ReLU, which then have a quarter of the work.
        length: that features are scaled to (see `FixedLength`); None leaves them as they are.
        views: 5 averages the features, in evaluation mode, over the image and four warped copies (see `Viewed`).
        maps: give the maps (n, channels, h, w) that the last block makes, and no head.

    Raises:
        ValueError: images too small to be halved four times, channels that are not four, a length that is not above 0;
            maps with outputs, a length or views.

    Example:
        >>> conv4(1, 5)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 5])

    References:
        Vinyals et al., arXiv:1606.04080, section 4.1.1; Finn et al., arXiv:1703.03400, section 5.2.

    Deviations:
        Convolutions carry no bias: the BatchNorm that follows would subtract it.
    """
    if downsample not in ("pool", "pool_first", "stride"):
        raise ValueError(f"downsample must be 'pool', 'pool_first' or 'stride', got {downsample!r}")
    if views not in (1, 5):
        raise ValueError(f"views must be 1 or 5, got {views!r}")
    widths = [channels] * 4 if isinstance(channels, int) else list(channels)
    if len(widths) != 4:
        raise ValueError(f"channels must be a number, or one for each of the four blocks, got {channels}")
    layers: list[nn.Module] = []
    side = size
    stride = 2 if downsample == "stride" else 1
    for width_in, width in pairwise([channels_in, *widths]):
        layers.append(nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False))
        rest: list[nn.Module] = [nn.BatchNorm2d(width), nn.ReLU()]
        if downsample == "pool":
            rest.append(nn.MaxPool2d(2))
        elif downsample == "pool_first":
            rest.insert(0, nn.MaxPool2d(2))
        layers += rest
        side = (side + 1) // 2 if downsample == "stride" else side // 2
    if side < 1:
        raise ValueError(f"images of {size}×{size} pixels cannot be halved four times by pooling; use at least 16×16")
    if maps:
        if length is not None or views != 1:
            raise ValueError("length and views are of features; leave them out with maps, or take features")
        return with_maps(layers, outputs)
    end = [nn.Flatten()] if length is None else [nn.Flatten(), FixedLength(length)]
    body = Viewed(*layers, *end) if views == 5 else nn.Sequential(*layers, *end)
    return with_head(body, widths[-1] * side * side, outputs)


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
