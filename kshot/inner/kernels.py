"""Kernels with a second derivative.

PyTorch's fused attention kernels, its fast paths for transformers and cuDNN's recurrent networks have only a first
derivative, or none under `vmap`. While kshot runs a module, the plain kernels replace them.
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
"""(getter, setter) for each kernel of `scaled_dot_product_attention`; they apply to all devices, not only to CUDA."""


@contextmanager
def twice_differentiable(*, recurrent: bool = False, attention: bool = False) -> Iterator[None]:
    """A context in which `scaled_dot_product_attention` has a second derivative.

    Args:
        recurrent: also disable cuDNN, for modules with recurrent layers; this slows convolutions on a GPU.
        attention: also disable the fast paths of `nn.MultiheadAttention` and `nn.TransformerEncoder`.
    """
    with ExitStack() as stack:
        if recurrent:
            stack.enter_context(cudnn.flags(enabled=False))
        if attention:
            stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
            mha.set_fastpath_enabled(False)
        if torch.compiler.is_compiling():  # the compiler supports this context, which takes longer than a small network
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield
            return
        enabled = [getter() for getter, _ in _SWITCHES]
        try:
            for (_, setter), value in zip(_SWITCHES, (False, False, False, True)):
                setter(value)
            yield
        finally:
            for (_, setter), value in zip(_SWITCHES, enabled):
                setter(value)


def kernels_to_disable(module: nn.Module) -> dict[str, bool]:
    """The arguments of `twice_differentiable` that a module needs."""
    parts = list(module.modules())
    with_fast_path = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    return {
        "recurrent": any(isinstance(part, nn.RNNBase) for part in parts),
        "attention": any(isinstance(part, with_fast_path) for part in parts),
    }


def in_transform() -> bool:
    """Whether a transform of `torch.func`, such as `vmap` or `grad`, or a compiler is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.compiler.is_compiling()


def reset_flat_weights(module: nn.Module) -> None:
    """Make recurrent layers drop their references to the weights that a functional call substituted."""
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part._update_flat_weights()
