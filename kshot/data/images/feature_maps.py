"""Feature maps of a pretrained network: what its blocks make of an image, at a stride.

Shape legend: n images, S side in pixels, D channels, h = S / stride.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn


def blocks_of(network: nn.Module) -> list[str]:
    """The names of a network's layers in their order: the innermost modules with parts that are listed or in a row."""
    listed = {
        f"{path}.{name}".lstrip(".")
        for path, module in network.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for name, part in module.named_children()
        if any(True for _ in part.children())
    }
    outer = {".".join(path.split(".")[:end]) for path in listed for end in range(1, path.count(".") + 1)}
    return [path for path, _ in network.named_modules() if path in listed - outer]


class FeatureMaps(nn.Module):
    """The maps (n, D, h, h) of the last block of a network whose output has them, for prepared images (n, 3, S, S).

    Blocks are those of `blocks_of`, and the network itself. Tokens of a transformer, (n, h h or more, D), are a map
    too, without the first ones, which stand for no patch.

    Args:
        network: prepared images to anything.
        stride: pixels of the image for one of the map.

    Raises:
        ValueError: no block has maps of this stride; the message has the strides that there are.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Sequential(nn.AvgPool2d(2)), nn.Sequential(nn.AvgPool2d(2)), nn.Flatten())
        >>> FeatureMaps(network, 4)(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(self, network: nn.Module, stride: int) -> None:
        super().__init__()
        self.network, self.stride = network, stride

    def forward(self, images: Tensor) -> Tensor:
        side = images.shape[-1] // self.stride
        found: dict[int, Tensor] = {}

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(maps := _maps(output), Tensor):
                found[maps.shape[-1]] = maps

        modules = dict(self.network.named_modules())
        hooks = [modules[name].register_forward_hook(keep) for name in [*blocks_of(self.network), ""]]
        try:
            self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        if side not in found:
            strides = ", ".join(f"{images.shape[-1] / size:g}" for size in sorted(found, reverse=True)) or "none"
            raise ValueError(
                f"{type(self.network).__name__} has no feature maps of stride {self.stride} for images of "
                f"{images.shape[-1]} pixels; those that it has are of {strides}"
            )
        return found[side]


def _maps(output: Any) -> Tensor | None:
    """The output of a block as square maps (n, D, h, h); None if it has none."""
    output = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(output, Tensor):
        return None
    if output.ndim == 4:
        return output if output.shape[-1] == output.shape[-2] and output.shape[-1] > 1 else None
    if output.ndim != 3 or (side := math.isqrt(output.shape[1])) < 2:
        return None
    return output[:, -side * side :].mT.unflatten(2, (side, side))
