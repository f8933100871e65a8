"""Images with their channels last in memory: on a CPU convolutions, norms and pooling run up to twice as fast so.

Shape legend: n examples or output channels, C channels, H, W positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kshot.inner.kernels import transformed
from kshot.types import Tree


def convolves(module: nn.Module) -> bool:
    """Whether a module has two-dimensional convolutions."""
    return any(isinstance(part, nn.Conv2d) for part in module.modules())


def channels_last(tree: Tree) -> Tree:
    """The same values, with the leaves (n, C, H, W) laid out (n, H, W, C), on a CPU and outside of transforms.

    A single channel, which PyTorch's own conversion leaves as it is, gets the strides as well: the layout of a
    convolution's input and weight is that of all that follows.
    """
    return tree if transformed() else tree_map(_laid_out, tree)


def _laid_out(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or leaf.ndim != 4 or not leaf.is_floating_point() or leaf.device.type != "cpu":
        return leaf
    if _is_laid_out(leaf):
        return leaf
    return leaf.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def _is_laid_out(tensor: Tensor) -> bool:
    if tensor.ndim != 4:
        return False
    _, channels, height, width = tensor.shape
    return tensor.stride() == (channels * height * width, 1, channels * width, channels)


def _view(tensor: Tensor, *shape: Any) -> Tensor:
    """As `Tensor.view`, where that holds for the usual layout only."""
    try:
        return tensor.view(*shape)
    except RuntimeError:
        return tensor.contiguous().view(*shape)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As `torch.nn.functional.dropout`, which draws in the order of memory: here in that of the usual layout."""
    if not training or input.is_contiguous():
        return F.dropout(input, p, training, inplace)
    kept = F.dropout(torch.ones_like(input, memory_format=torch.contiguous_format), p)
    return input.mul_(kept) if inplace else input * kept


def _stride(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    usual = torch.empty_like(tensor, device="meta", memory_format=torch.contiguous_format)
    return (usual if _is_laid_out(tensor) else tensor).stride(*args, **kwargs)


def _as_strided(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return (tensor.contiguous() if _is_laid_out(tensor) else tensor).as_strided(*args, **kwargs)


LAYOUT_FREE: dict[Callable, Callable] = {
    F.dropout: _dropout,
    torch.Tensor.view: _view,
    torch.Tensor.stride: _stride,
    torch.Tensor.as_strided: _as_strided,
    torch.as_strided: _as_strided,
}
"""What modules call that depends on how a tensor lies in memory, as it is for the usual layout."""
