"""Images in channels-last memory format: on a CPU, convolutions, norms and pooling are up to twice as fast.

The layout is changed only where no part of a module can see it: where all its layers are known, and run in a known
order. The same holds for a pooling that goes before an activation. Modules of users keep the layout and the order of
their operations.

Shape legend: n examples or output channels, C channels, H, W positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kshot.inner.kernels import in_transform
from kshot.types import Tree

_LAYOUT_FREE: frozenset[type] = frozenset(
    (
        *(nn.Sequential, nn.Identity, nn.Flatten, nn.Linear, nn.Dropout),
        *(nn.Conv2d, nn.BatchNorm2d, nn.BatchNorm1d),
        *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
        *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus),
    )
)


def ignores_layout(cls: type) -> bool:
    """Whether the values of modules of a class are the same in each memory layout of their input, submodules aside.

    True for some layers of PyTorch, and for classes that say so of themselves by `ignores_layout = True`.
    """
    return cls in _LAYOUT_FREE or cls.__dict__.get("ignores_layout", False)


def ignores_layout_throughout(module: nn.Module) -> bool:
    """Whether a module has convolutions and all its parts ignore the layout."""
    parts = list(module.modules())
    convolves = any(isinstance(part, nn.Conv2d) for part in parts)
    return convolves and all(ignores_layout(type(part)) and not _has_hooks(part) for part in parts)


def pool_before_activation(sequential: nn.Module, replicas: dict[str, Any]) -> dict[str, Any]:
    """The replicas of a sequential's layers, with a max-pooling moved before the non-decreasing activation it follows.

    The activation then has a quarter of the work. Values and derivatives are equal: positions that tie for the maximum
    have equal slopes. Layers with hooks stay where they are.
    """
    layers = list(sequential._modules.values())
    pairs = [i for i in range(len(layers) - 1) if _is_max_pooling(layers[i + 1]) and _is_non_decreasing(layers, i)]
    if not pairs or _has_hooks(sequential):
        return replicas
    keys = list(replicas)
    for i in pairs:
        keys[i], keys[i + 1] = keys[i + 1], keys[i]
    return {key: replicas[key] for key in keys}


def _is_non_decreasing(layers: Sequence[nn.Module | None], i: int) -> bool:
    """Whether layer i is a non-decreasing activation; in place, only of a tensor that no other layer can hold."""
    layer = layers[i]
    if type(layer) is not nn.ReLU and not (type(layer) is nn.LeakyReLU and layer.negative_slope >= 0):
        return False
    owned = not layer.inplace or (i > 0 and type(layers[i - 1]) in (nn.Conv2d, nn.BatchNorm2d))
    return owned and not _has_hooks(layer)


def _is_max_pooling(layer: nn.Module | None) -> bool:
    return type(layer) is nn.MaxPool2d and not layer.return_indices and not _has_hooks(layer)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


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


def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """`torch.nn.functional.dropout` with the mask of the contiguous layout: PyTorch draws in the order of memory."""
    if not training or input.is_contiguous():
        return F.dropout(input, p, training, inplace)
    mask = F.dropout(torch.ones_like(input, memory_format=torch.contiguous_format), p)
    return input.mul_(mask) if inplace else input * mask
