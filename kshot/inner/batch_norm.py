"""BatchNorm with the statistics of the batch and an explicit second derivative; TaskNorm.

PyTorch composes the second derivative from about twenty passes over the activations; here it takes eight, three of
which are the kernel of the first derivative.

Shape legend: n examples, C channels, M values of a channel (n times the positions of an example).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function


def batch_norm(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    r"""Normalise by the statistics of the batch:

    $$ y = \gamma \hat z + \beta, \qquad \hat z = (z - \mu) / \sqrt{\sigma^2 + \epsilon} $$

    for the input $z$ (n, C, ...), the weight $\gamma$ (C,), ones if None, and the bias $\beta$ (C,), zeros if None.

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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*_NormBackward.apply(grad, *ctx.saved_tensors, ctx.eps), None)


class _NormBackward(Function):
    r"""The first derivative, for a gradient g of the output; the bar is the mean over the M values of a channel:

    $$ dz = \gamma s (g - \bar g - \hat z \, \overline{g \hat z}), \quad d\gamma = M \overline{g \hat z}, \quad
       d\beta = M \bar g, \qquad s = 1 / \sqrt{\sigma^2 + \epsilon} $$
    """

    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, z: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad = _in_layout_of(z, grad)
        d_z, d_weight, d_bias = _kernel(grad, z, weight, mean, scale, eps)
        ctx.save_for_backward(grad, z, weight, mean, scale, d_weight, d_bias)
        ctx.eps = eps
        ctx.set_materialize_grads(True)
        return d_z, d_weight, d_bias

    @staticmethod
    def backward(ctx: Any, v: Tensor, v_weight: Tensor, v_bias: Tensor) -> tuple[Tensor | None, ...]:
        r"""The second derivative, for gradients v, $v_\gamma$, $v_\beta$ of the three outputs.

        The map from g to dz is symmetric, so the kernel is its own transpose; with $a = \bar g$,
        $b = \overline{g \hat z}$, $c = \bar v$, $d = \overline{v \hat z}$ and $e = \overline{v g}$,

        $$ dg = \gamma s (v - c - \hat z d) + v_\gamma \hat z + v_\beta, \qquad
           d\gamma = s M (e - ac - bd), $$
        $$ dz = -\gamma s^2 \bigl(d g + b v + (e - ac - 3bd) \hat z - (ad + bc)\bigr)
           + v_\gamma s (g - a - \hat z b) $$
        """
        g, z, weight, mean, scale, sum_gz, sum_g = ctx.saved_tensors
        count, v = z.numel() // z.shape[1], _in_layout_of(z, v)
        if torch.is_grad_enabled():  # for a third derivative nothing may be a constant
            axes = (0, *range(2, z.ndim))
            var, mean = torch.var_mean(z, axes, correction=0)
            scale = torch.rsqrt(var + ctx.eps)
            normed = (z - along_channels(mean, z)) * along_channels(scale, z)
            sum_g, sum_gz, sum_v = g.sum(axes), (g * normed).sum(axes), v.sum(axes)
            sum_vz, sum_vg = (v * normed).sum(axes), (v * g).sum(axes)
            d_grad = along_channels(weight * scale, z) * (
                v - along_channels(sum_v / count, z) - normed * along_channels(sum_vz / count, z)
            )
        else:
            d_grad, sum_vz, sum_v = _kernel(v, z, weight, mean, scale, ctx.eps)
            zeros = torch.zeros_like(mean)
            _, sum_vg, _ = _kernel(v, g, weight, zeros, torch.ones_like(mean), ctx.eps, (False, True, False))
        a, b, c, d, e = (total / count for total in (sum_g, sum_gz, sum_v, sum_vz, sum_vg))
        # coefficients of g, v, z and 1, where \hat z = scale * z - scale * mean
        residual = e - a * c - b * d
        outer = -weight * scale.square()
        of_g = outer * d + v_weight * scale
        of_v = outer * b
        of_normed = outer * (residual - 2 * b * d) - v_weight * scale * b
        of_one = -outer * (a * d + b * c) - v_weight * scale * a
        d_z = torch.addcmul(along_channels(of_one - of_normed * scale * mean, z), g, along_channels(of_g, z))
        d_z = _add_scaled(_add_scaled(d_z, v, of_v), z, of_normed * scale)
        d_grad = _add_scaled(d_grad, z, v_weight * scale) + along_channels(v_bias - v_weight * scale * mean, z)
        return d_grad, d_z, scale * count * residual, None, None, None


def _in_layout_of(like: Tensor, tensor: Tensor) -> Tensor:
    """The same values in the memory layout of `like`: kernels on mixed layouts take several times as long."""
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _kernel(
    grad: Tensor, z: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float, outputs: tuple = (True,) * 3
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten.native_batch_norm_backward(grad, z, weight, None, None, mean, scale, True, eps, outputs)


def _add_scaled(total: Tensor, values: Tensor, factor: Tensor) -> Tensor:
    """total + values * factor, in place if it is not differentiated."""
    factor = along_channels(factor, values)
    if torch.is_grad_enabled():
        return torch.addcmul(total, values, factor)
    return total.addcmul_(values, factor)


def along_channels(vector: Tensor, like: Tensor) -> Tensor:
    """(C,) as (C, 1, ...), or (n, C) as (n, C, 1, ...), so that it broadcasts against (n, C, ...)."""
    return vector.reshape(*vector.shape, *[1] * (like.ndim - 2))


class TaskNorm(nn.Module):
    r"""TaskNorm-I: blends the moments $\mu, \sigma^2$ of a support set with those $\mu_i, \sigma_i^2$ of an example:

    $$ \mu' = \alpha \mu + (1 - \alpha) \mu_i, \qquad \sigma'^2 = \alpha (\sigma^2 + (\mu - \mu')^2)
       + (1 - \alpha) (\sigma_i^2 + (\mu_i - \mu')^2), \qquad \alpha = \mathrm{sigmoid}(a N + b) $$

    for N support examples, with learned a and b per norm. The weight of the support may grow with its size. A query is
    normalised by itself and the support alone, so this is inductive.

    Args:
        norms: number of BatchNorm layers of the module.

    Example:
        >>> norm, one = TaskNorm(1), torch.tensor([1.0])
        >>> image = torch.tensor([[[[1.0, 3.0]]]])
        >>> norm(0, image, mean=0 * one, var=one, count=torch.tensor(5.0))  # alpha is 1/2 at first
        (tensor([[1.]], grad_fn=...), tensor([[2.]], grad_fn=...))

    References:
        Bronskill, Gordon, Requeima, Nowozin, Turner: TaskNorm, ICML 2020, arXiv:2003.03284, section 4.
    """

    def __init__(self, norms: int) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.zeros(norms)), nn.Parameter(torch.zeros(norms))

    def forward(self, norm: int, input: Tensor, mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (n, C) by which layer number `norm` normalises its input (n, C, ...).

        Args:
            mean, var: those of the support, (C,).
            count: number of support examples, ().
        """
        alpha = torch.sigmoid(self.slope[norm] * count + self.offset[norm])
        axes = tuple(range(2, input.ndim))
        mean_i = input.mean(axes) if axes else input
        var_i = (input - along_channels(mean_i, input)).square().mean(axes) if axes else torch.zeros_like(input)
        blended = torch.lerp(mean_i, mean.expand_as(mean_i), alpha)
        return blended, torch.lerp(var_i + (mean_i - blended).square(), var + (mean - blended).square(), alpha)
