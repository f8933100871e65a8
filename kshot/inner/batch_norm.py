"""BatchNorm on a batch's own statistics, with its second derivative written out.

PyTorch composes that second derivative of some twenty passes over the activations; here it takes eight, of which three
are the kernel of the first derivative again.

Shape legend: n examples, C channels, M = n times the positions of an example.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def batch_norm(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    r"""Normalise by the batch's own statistics:

    $$ y = \gamma \hat z + \beta, \qquad \hat z = (z - \mu) / \sqrt{\sigma^2 + \epsilon} $$

    Args:
        input: $z$, (n, C, ...).
        weight: $\gamma$, (C,); ones by default.
        bias: $\beta$, (C,); zeros by default.
        eps: $\epsilon$.

    Example:
        >>> z = torch.tensor([[1.0], [3.0]])
        >>> batch_norm(z, None, None, 0.0)
        tensor([[-1.],
                [ 1.]])

    References:
        Ioffe, Szegedy: Batch Normalization, arXiv:1502.03167.
    """
    weight = input.new_ones(input.shape[1]) if weight is None else weight
    bias = input.new_zeros(input.shape[1]) if bias is None else bias
    return _Norm.apply(input, weight, bias, eps)


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        output, mean, scale = torch.native_batch_norm(z, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(z, weight, mean, scale)
        ctx.eps = eps
        return output

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return (*_Slope.apply(slope, *ctx.saved_tensors, ctx.eps), None)


class _Slope(Function):
    r"""The first derivative, of a slope g at the output: with the bar averaging over the M values of a channel,

    $$ dz = \gamma s (g - \bar g - \hat z \, \overline{g \hat z}), \quad d\gamma = M \overline{g \hat z}, \quad
       d\beta = M \bar g, \qquad s = 1 / \sqrt{\sigma^2 + \epsilon} $$
    """

    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, z: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        slope = _laid_out_as(z, slope)
        found = _kernel(slope, z, weight, mean, scale, eps)
        ctx.save_for_backward(slope, z, weight, mean, scale, found[1], found[2])
        ctx.eps = eps
        ctx.set_materialize_grads(True)
        return found

    @staticmethod
    def backward(ctx: Any, v: Tensor, v_weight: Tensor, v_bias: Tensor) -> tuple[Tensor | None, ...]:
        r"""Of slopes v, $v_\gamma$, $v_\beta$ at the three. The map from g to dz is symmetric, so its own kernel
        transposes it; with $a = \bar g$, $b = \overline{g \hat z}$, $c = \bar v$, $d = \overline{v \hat z}$ and
        $e = \overline{v g}$,

        $$ dg = \gamma s (v - c - \hat z d) + v_\gamma \hat z + v_\beta, \qquad
           d\gamma = s M (e - ac - bd), $$
        $$ dz = -\gamma s^2 \bigl(d g + b v + (e - ac - 3bd) \hat z - (ad + bc)\bigr)
           + v_\gamma s (g - a - \hat z b) $$
        """
        g, z, weight, mean, scale, sum_gz, sum_g = ctx.saved_tensors
        count, v = z.numel() // z.shape[1], _laid_out_as(z, v)
        if torch.is_grad_enabled():  # somebody differentiates a third time: then nothing counts as given
            axes = (0, *range(2, z.ndim))
            var, mean = torch.var_mean(z, axes, correction=0)
            scale = torch.rsqrt(var + ctx.eps)
            normed = (z - along_channels(mean, z)) * along_channels(scale, z)
            sum_g, sum_gz, sum_v = g.sum(axes), (g * normed).sum(axes), v.sum(axes)
            sum_vz, sum_vg = (v * normed).sum(axes), (v * g).sum(axes)
            d_slope = along_channels(weight * scale, z) * (
                v - along_channels(sum_v / count, z) - normed * along_channels(sum_vz / count, z)
            )
        else:
            d_slope, sum_vz, sum_v = _kernel(v, z, weight, mean, scale, ctx.eps)
            zeros = torch.zeros_like(mean)
            _, sum_vg, _ = _kernel(v, g, weight, zeros, torch.ones_like(mean), ctx.eps, (False, True, False))
        a, b, c, d, e = (total / count for total in (sum_g, sum_gz, sum_v, sum_vz, sum_vg))
        # vectors by which g, v, z and 1 count; \hat z = scale * z - scale * mean
        away = e - a * c - b * d
        outer = -weight * scale.square()
        by_g = outer * d + v_weight * scale
        by_v = outer * b
        by_normed = outer * (away - 2 * b * d) - v_weight * scale * b
        by_one = -outer * (a * d + b * c) - v_weight * scale * a
        d_z = torch.addcmul(along_channels(by_one - by_normed * scale * mean, z), g, along_channels(by_g, z))
        d_z = _added(_added(d_z, v, by_v), z, by_normed * scale)
        d_slope = _added(d_slope, z, v_weight * scale) + along_channels(v_bias - v_weight * scale * mean, z)
        return d_slope, d_z, scale * count * away, None, None, None


def _laid_out_as(like: Tensor, tensor: Tensor) -> Tensor:
    """The same values in the memory layout of `like`: passes over mixed layouts take several times as long."""
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _kernel(
    slope: Tensor, z: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float, wanted: tuple = (True,) * 3
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.native_batch_norm_backward(slope, z, weight, None, None, mean, scale, True, eps, wanted)


def _added(total: Tensor, values: Tensor, factor: Tensor) -> Tensor:
    """total + values * factor, in the place of the total where nobody differentiates it."""
    factor = along_channels(factor, values)
    if torch.is_grad_enabled():
        return torch.addcmul(total, values, factor)
    return total.addcmul_(values, factor)


def along_channels(vector: Tensor, like: Tensor) -> Tensor:
    """(C,) as (C, 1, ...), or (n, C) as (n, C, 1, ...), so that it broadcasts against (n, C, ...)."""
    return vector.reshape(*vector.shape, *[1] * (like.ndim - 2))
