"""Keras's BatchNormalization as a BatchNorm of PyTorch, so that a learner chooses its statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kshot.context import holding
from kshot.integrations.keras.backend import keras

_norms: ContextVar[Mapping[int, Norm]] = ContextVar("norms", default=MappingProxyType({}))


class Norm(_BatchNorm):
    """The weights and running statistics of a `keras.layers.BatchNormalization`, under the names of PyTorch.

    Args:
        layer: the layer of Keras, built.
    """

    def __init__(self, layer: Any) -> None:
        nn.Module.__init__(self)
        self.eps, self.axis, self.momentum = layer.epsilon, layer.axis, 1 - layer.momentum
        self.affine, self.track_running_stats, self.num_features = layer.scale, True, layer.moving_mean.shape[0]
        self.output_dtype = getattr(torch, layer.compute_dtype)
        for name in ("weight", "bias"):
            self.register_parameter(name, None)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, None)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the running statistics, in whose place `inner.functional` puts those that a learner chooses."""
        wide = input.to(torch.promote_types(input.dtype, torch.float32)).movedim(self.axis, 1)
        normed = F.batch_norm(wide, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return normed.movedim(1, self.axis).to(self.output_dtype)


@contextmanager
def chosen_statistics(norms: Mapping[int, Norm]) -> Iterator[None]:
    """A context in which layers of Keras, by id, are computed by a `Norm`; for one thread."""
    with holding(_norms, norms):
        yield


def _delegate(call: Any) -> Any:
    @wraps(call)
    def delegated(self: Any, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        norm = _norms.get().get(id(self))
        if norm is None:
            return call(self, inputs, training=training, mask=mask)
        if mask is not None:
            raise ValueError(
                f"the Keras layer {self.name!r} ({type(self).__name__}) receives a mask, and the statistics that a "
                "learner chooses for it are of all positions: use LayerNormalization, or a network without masking"
            )
        return norm(inputs)

    return delegated


keras.layers.BatchNormalization.call = _delegate(keras.layers.BatchNormalization.call)
