"""Keras models that are refused, since a learner would train something else than what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kshot.integrations.keras.backend import keras

_SPATIAL = re.compile(r"\w+[23]D(Transpose)?")


def check_model(model: Any) -> None:
    """Raise ValueError, which names the layer, if a Keras model cannot be a base model."""
    if not isinstance(model, keras.Layer):
        raise ValueError(f"as_module takes a Keras model or layer, got {type(model).__name__}")
    if not model.built:
        raise ValueError(
            f"the Keras model {model.name!r} has no weights yet: give it an Input, or call it on one batch first"
        )
    if isinstance(model, keras.layers.BatchNormalization):
        raise ValueError("as_module takes a BatchNormalization as a layer of a model only: put it into Sequential([…])")
    for layer in layers_of(model):
        named = f"the Keras layer {layer.name!r} ({type(layer).__name__})"
        if getattr(layer.dtype_policy, "quantization_mode", None) is not None:
            raise ValueError(f"{named} is quantized, and its weights have no derivatives: quantize after the export")
        if layer.compute_dtype == "float64" and keras.backend.result_type("float64", "float64") != "float64":
            raise ValueError(
                f"{named} has the dtype float64, and on the torch backend Keras computes its products of matrices in "
                "float32: build it in float32"
            )
        if getattr(layer, "stateful", False) is True:
            raise ValueError(f"{named} is stateful, so that a prediction depends on the calls before: stateful=False")
        if getattr(layer, "activity_regularizer", None) is not None:
            raise ValueError(f"{named} has an activity_regularizer, {_LEFT_OUT}")
        if isinstance(layer, keras.layers.TorchModuleWrapper):
            raise ValueError(
                f"{named} holds a module of PyTorch, whose weights Keras does not pass to it: let a torch.nn.Module "
                "hold both that module and as_module(the rest)"
            )
        if isinstance(layer, keras.layers.BatchNormalization) and (getattr(layer, "renorm", False) or layer.axis == 0):
            raise ValueError(f"{named} has renorm=True or axis=0, whose statistics a learner cannot choose")
    for variable in model.variables:
        for kind in ("regularizer", "constraint"):
            if getattr(variable, kind, None) is not None:
                raise ValueError(f"the weight {variable.path!r} of the Keras model has a {kind}, {_LEFT_OUT}")


_LEFT_OUT = "which Keras applies in `fit`, and kshot would leave out: build the model without it"


def image_order(model: Any) -> str | None:
    """Where the convolutions and poolings of a model expect the channels, "first" or "last"; None without any.

    Raises ValueError if they disagree.
    """
    spatial = [each for each in layers_of(model) if any(_SPATIAL.fullmatch(b.__name__) for b in type(each).__mro__)]
    orders = {str(layer.data_format) for layer in spatial if getattr(layer, "data_format", None) is not None}
    if len(orders) > 1:
        raise ValueError(f"layers of the Keras model {model.name!r} disagree on data_format: {sorted(orders)}")
    return orders.pop().removeprefix("channels_") if orders else None


def layers_of(model: Any) -> Iterator[Any]:
    """A model and all layers within it."""
    return iter(model._flatten_layers())


def assigned(model: Any) -> dict[tuple[str, str], Any]:
    """The attributes of the layers of a model that are not Keras's own, by layer and name, in a form to compare."""
    return {
        (layer.name, key): (id(value), len(value) if isinstance(value, list | dict | set) else None)
        for layer in layers_of(model)
        if not type(layer).__module__.startswith("keras.")
        for key, value in vars(layer).items()
        if key not in _KERAS_ATTRIBUTES
    }


_KERAS_ATTRIBUTES = set(vars(keras.Layer())) | {"_torch_params"}
