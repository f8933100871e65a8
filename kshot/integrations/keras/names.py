"""Names of the weights of a Keras model that are the same in every process."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from kshot.integrations.keras.backend import keras
from kshot.integrations.keras.refused import layers_of

_TORCH_NAMES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def weight_names(model: Any) -> list[tuple[Any, str]]:
    """The variables of a model with names such as "dense_1.kernel", unique, in the order of `model.variables`.

    Keras numbers layers without a name over the whole process; here they are numbered from 0 within the model, so that
    a checkpoint fits the same model elsewhere. The weights of BatchNormalization are named as in PyTorch.
    """
    automatic = {layer.name for layer in layers_of(model) if _is_automatic(layer)}
    norms = {
        id(getattr(layer, key)): new
        for layer in layers_of(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        for key, new in _TORCH_NAMES.items()
        if getattr(layer, key) is not None
    }
    numbers: dict[tuple[str, ...], dict[str, str]] = {}  # by parent and kind: new names of the layers
    named: dict[str, Any] = {}
    for variable in model.variables:
        *folders, leaf = variable.path.split("/")
        if folders and folders[0] == model.name:
            folders = folders[1:]
        parts: list[str] = []
        for folder in folders:
            if folder in automatic or folder.startswith("seed_generator"):
                base = re.sub(r"_\d+$", "", folder)
                known = numbers.setdefault((*parts, base), {})
                folder = known.setdefault(folder, f"{base}_{len(known)}" if known else base)
            parts.append(_attribute(folder))
        name = ".".join([*parts, norms.get(id(variable), _attribute(leaf))])
        while name in named:
            name += "_"
        named[name] = variable
    return [(variable, name) for name, variable in named.items()]


def _is_automatic(layer: Any) -> bool:
    snake = re.sub(r"\W+", "", type(layer).__name__)
    snake = re.sub("([a-z])([A-Z])", r"\1_\2", re.sub("(.)([A-Z][a-z]+)", r"\1_\2", snake)).lower()
    return re.fullmatch(rf"{re.escape(snake)}(_\d+)?", layer.name) is not None


def _attribute(name: str) -> str:
    """A name as an attribute of a module."""
    name = name.replace(".", "_")
    return f"{name}_" if hasattr(nn.Module, name) or name == "training" else name
