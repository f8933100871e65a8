"""Modules that cannot be called with other weights, and what to do instead."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

_WRAPPERS = {
    "torch.nn.parallel": "pass the module inside, its attribute .module; a meta-training step runs on one device",
    "torch.distributed": "pass the module inside; a meta-training step runs on one device",
    "torch._dynamo": "pass the module inside, its attribute ._orig_mod, and compile the step by mode='compiled'",
    "torch.jit": "pass the nn.Module from which it was scripted or traced",
}
"""Package of a class of modules: what to pass instead."""


def check_supported(module: nn.Module) -> None:
    """Raise ValueError, which names the layer, if a module is known not to be a function of its parameters."""
    for name, part in module.named_modules():
        layer = f"the layer {name!r} ({type(part).__name__})" if name else f"the model ({type(part).__name__})"
        for package, remedy in _WRAPPERS.items():
            if any(base.__module__.startswith(package) for base in type(part).__mro__):
                raise ValueError(f"{layer} cannot be called with the weights of a task: {remedy}")
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            if part.max_norm is not None:
                raise ValueError(
                    f"{layer} has max_norm={part.max_norm}, by which each forward pass changes the weights in place: "
                    "leave it out, and normalise the rows in the forward of the model or by a parametrization"
                )
            if part.sparse and part.weight.requires_grad:
                raise ValueError(f"{layer} has sparse gradients, which have no second derivative: use sparse=False")
        for key, parameter in part.named_parameters(recurse=False):
            if is_lazy(parameter):
                raise ValueError(f"{layer} does not know its size yet: run the model on one batch first")
            if parameter._post_accumulate_grad_hooks:
                raise ValueError(
                    f"the parameter {key!r} of {layer} has a hook that runs after its gradient is accumulated, which "
                    "inner steps do not do: use register_hook, which sees each gradient"
                )
            if parameter.layout is not torch.strided or parameter.is_complex():
                raise ValueError(f"the parameter {key!r} of {layer} must be a dense tensor of real numbers")
