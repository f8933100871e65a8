"""Replacements of operations whose derivatives are silently wrong under `vmap`.

In PyTorch (observed in 2.13) the second derivative of layer and instance normalisation by their scale is wrong when
tasks run under `vmap`, and the padding row of an embedding gets a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.layer_norm`."""
    normed = _normalized(input, tuple(range(-len(normalized_shape), 0)), eps)
    return _scaled(normed, weight, bias).to(input.dtype)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """As `torch.nn.functional.instance_norm`, but without an update of the running statistics."""
    shape = (-1, *[1] * (input.ndim - 2))
    if use_input_stats or running_mean is None or running_var is None:
        normed = _normalized(input, tuple(range(2, input.ndim)), eps)
    else:
        normed = (input - running_mean.view(shape)) * torch.rsqrt(running_var.view(shape) + eps)
    affine = (None if vector is None else vector.view(shape) for vector in (weight, bias))
    return _scaled(normed, *affine).to(input.dtype)


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """As `torch.nn.functional.embedding`."""
    rows = F.embedding(input, weight, None, *args, **kwargs)
    if padding_idx is None:
        return rows
    return torch.where((input == padding_idx % len(weight))[..., None], rows.detach(), rows)


VMAP_OVERRIDES: dict[Callable, Callable] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: lambda input, shape, weight=None, bias=None, eps=1e-5, *_: layer_norm(
        input, shape, weight, bias, eps
    ),
    F.instance_norm: instance_norm,
    F.embedding: embedding,
}


def needs_overrides(module: nn.Module) -> bool:
    """Whether a module may call a replaced operation: it has such a layer, or a layer not defined by PyTorch."""
    affected = (nn.LayerNorm, nn.modules.instancenorm._InstanceNorm, nn.Embedding)
    return any(
        isinstance(part, affected) or not type(part).__module__.startswith("torch.nn") for part in module.modules()
    )


def _normalized(input: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    centred = wide - wide.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)


def _scaled(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias
