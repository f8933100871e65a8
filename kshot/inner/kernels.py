"""Kernels that can be differentiated twice.

PyTorch's fused kernels for attention, its fast paths for transformers and cuDNN's recurrent networks have a first
derivative only, or none under `vmap`. While a module runs for kshot the plain kernels stand in for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.backends import cuda, cudnn, mha
from torch.nn.attention import SDPBackend, sdpa_kernel

_SWITCHES = (
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
    (cuda.math_sdp_enabled, cuda.enable_math_sdp),
)
"""(is it on?, turn it) for each kernel of `scaled_dot_product_attention`; the names say cuda, and hold everywhere."""


@contextmanager
def twice_differentiable(*, recurrent: bool = False, attention: bool = False) -> Iterator[None]:
    """A region in which `scaled_dot_product_attention` has a second derivative.

    Args:
        recurrent: also keep recurrent networks from cuDNN, which slows convolutions on a GPU; for modules that have
            such layers.
        attention: also keep `nn.MultiheadAttention` and `nn.TransformerEncoder` from their fast paths.

    Example:
        >>> q = torch.randn(1, 2, 4, requires_grad=True)
        >>> with twice_differentiable():
        ...     out = nn.functional.scaled_dot_product_attention(q, q, q)
        >>> (slope,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        >>> slope.sum().backward()
    """
    with ExitStack() as stack:
        if recurrent:
            stack.enter_context(cudnn.flags(enabled=False))
        if attention:
            stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
            mha.set_fastpath_enabled(False)
        if torch.compiler.is_compiling():  # knows this one, which takes longer than a small network
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield
            return
        before = [is_on() for is_on, _ in _SWITCHES]
        try:
            for (_, turn), on in zip(_SWITCHES, (False, False, False, True)):
                turn(on)
            yield
        finally:
            for (_, turn), on in zip(_SWITCHES, before):
                turn(on)


def kinds(module: nn.Module) -> dict[str, bool]:
    """Which arguments of `twice_differentiable` a module needs."""
    parts = list(module.modules())
    fast = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    return {
        "recurrent": any(isinstance(part, nn.RNNBase) for part in parts),
        "attention": any(isinstance(part, fast) for part in parts),
    }


def transformed() -> bool:
    """Whether a transform of `torch.func`, such as `vmap` or `grad`, is at work, or a compiler."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.compiler.is_compiling()


def settle(module: nn.Module) -> None:
    """Let recurrent layers forget the substituted weights of a functional call, which they would hold on to."""
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part._update_flat_weights()
