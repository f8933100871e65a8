"""Kernels with a second derivative.

PyTorch's fused attention kernels, its fast paths for transformers and cuDNN's recurrent networks have only a first
derivative, or none under `vmap`. While kshot runs a module, the plain kernels replace them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch
from torch.backends import cuda, mha
from torch.nn.attention import SDPBackend, sdpa_kernel


class _Switch:
    """A setting of the process that is changed while any thread is inside of the context, and put back after the last.

    Args:
        read: () -> the value of the setting.
        write: sets it to a value.
        value: its value inside of the context.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> None:
        self.read, self.write, self.value = read, write, value
        self.lock, self.entered, self.before = Lock(), 0, None

    def __enter__(self) -> None:
        with self.lock:
            self.entered += 1
            if self.entered == 1:
                self.before = self.read()
                self.write(self.value)

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.entered -= 1
            if self.entered == 0:
                self.write(self.before)


_SDPA = (
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
    (cuda.math_sdp_enabled, cuda.enable_math_sdp),
)
"""(getter, setter) for each kernel of `scaled_dot_product_attention`; they apply to all devices, not only to CUDA."""


def _write_sdpa(values: tuple[bool, ...]) -> None:
    for (_, write), value in zip(_SDPA, values):
        write(value)


_ATTENTION = _Switch(lambda: tuple(read() for read, _ in _SDPA), _write_sdpa, (False, False, False, True))
_FAST_PATH = _Switch(mha.get_fastpath_enabled, mha.set_fastpath_enabled, False)
_RECURRENT = _Switch(torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled, False)


@contextmanager
def twice_differentiable(*, recurrent: bool = False) -> Iterator[None]:
    """A context in which attention has a second derivative; threads may be in it at the same time.

    Args:
        recurrent: also disable cuDNN, for modules with recurrent layers; this slows convolutions on a GPU.
    """
    with ExitStack() as stack:
        if recurrent:
            stack.enter_context(_RECURRENT)
        if torch.compiler.is_compiling():  # the compiler supports this context, which takes longer than a small network
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        else:
            stack.enter_context(_ATTENTION)
            stack.enter_context(_FAST_PATH)
        yield


def in_transform() -> bool:
    """Whether a transform of `torch.func`, such as `vmap` or `grad`, or a compiler is active."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.compiler.is_compiling()
