"""Images in channels-last memory format: on a CPU, convolutions, norms and pooling are up to twice as fast.

Shape legend: n examples or output channels, C channels, H, W positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kshot.inner.kernels import in_transform
from kshot.types import Tree


def has_convolutions(module: nn.Module) -> bool:
    """Whether a module has two-dimensional convolutions."""
    return any(isinstance(part, nn.Conv2d) for part in module.modules())


def channels_last(tree: Tree) -> Tree:
    """The same values with leaves (n, C, H, W) stored as (n, H, W, C), on a CPU and outside of transforms.

    Unlike PyTorch's conversion this also sets the strides of a single channel: the layout of a convolution's input and
    weight determines that of its output.
    """

    def convert(leaf: Any) -> Any:
        is_image = isinstance(leaf, Tensor) and leaf.ndim == 4 and leaf.is_floating_point()
        if not is_image or leaf.device.type != "cpu" or _is_channels_last(leaf):
            return leaf
        return leaf.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)

    return tree if in_transform() else tree_map(convert, tree)


def _is_channels_last(tensor: Tensor) -> bool:
    if tensor.ndim != 4:
        return False
    _, channels, height, width = tensor.shape
    return tensor.stride() == (channels * height * width, 1, channels * width, channels)


def _view(tensor: Tensor, *shape: Any) -> Tensor:
    """`Tensor.view`, also of shapes that only the contiguous layout allows."""
    try:
        return tensor.view(*shape)
    except RuntimeError:
        return tensor.contiguous().view(*shape)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout` with the mask of the contiguous layout: PyTorch draws in the order of memory."""
    if not training or input.is_contiguous():
        return F.dropout(input, p, training, inplace)
    mask = F.dropout(torch.ones_like(input, memory_format=torch.contiguous_format), p)
    return input.mul_(mask) if inplace else input * mask


def _stride(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    contiguous = torch.empty_like(tensor, device="meta", memory_format=torch.contiguous_format)
    return (contiguous if _is_channels_last(tensor) else tensor).stride(*args, **kwargs)


def _as_strided(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return (tensor.contiguous() if _is_channels_last(tensor) else tensor).as_strided(*args, **kwargs)


LAYOUT_OVERRIDES: dict[Callable, Callable] = {
    F.dropout: _dropout,
    torch.Tensor.view: _view,
    torch.Tensor.stride: _stride,
    torch.Tensor.as_strided: _as_strided,
    torch.as_strided: _as_strided,
}
"""Replacements of operations whose result depends on the memory layout: they behave as on contiguous tensors."""
