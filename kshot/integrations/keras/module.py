"""A Keras model as a module of PyTorch whose weights are its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kshot.argument_checks import check_arguments
from kshot.inner.kernels import in_transform, twice_differentiable
from kshot.inner.replica import NAME
from kshot.integrations.keras.backend import keras
from kshot.integrations.keras.names import weight_names
from kshot.integrations.keras.norm import Norm, chosen_statistics
from kshot.integrations.keras.refused import assigned, check_model, image_order, layers_of
from kshot.types import Tree, tree_map

Order = Literal["first", "last"]


@check_arguments
def as_module(model: Any, *, channels: Order | None = None) -> KerasModule:
    """Make a module of a Keras model, with which learners meta-train and adapt its weights.

    Args:
        model: a `keras.Model` or a layer, built: sequential, functional or a subclass.
        channels: where the images that kshot passes have their channels, "first" for (n, C, H, W), as all sources of
            kshot have them, or "last". Inputs with 4 axes or more are converted to the `data_format` of the layers, and
            such outputs back. It must be given if the model has two- or three-dimensional convolutions or poolings.

    Returns:
        A module that takes what the model takes; a tuple of inputs is passed as a list, a dict as a dict. Its training
        mode is the argument `training` of the call.

    Raises:
        ValueError: the model cannot be a base model; the message names the layer and says why.

    Example:
        >>> from kshot.integrations.keras import as_module
        >>> import keras
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])
        >>> learner = kshot.maml(as_module(model), inner_lr=0.1)
        >>> list(learner.adaptable_params())
        ['head.kernel', 'head.bias']
    """
    check_model(model)
    order = image_order(model)
    if channels is None and order is not None:
        raise ValueError(
            f"the convolutions of the Keras model {model.name!r} have the channels {order}: say where the images have "
            "theirs, channels='first' for (n, C, H, W), as kshot's sources have them, or channels='last'"
        )
    converts = None if channels is None else (channels, order or keras.config.image_data_format()[len("channels_") :])
    return KerasModule(model, converts)


class Part(nn.Module):
    """Holds the weights of a layer of Keras. It cannot be called, and what would wait for a call is refused."""

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            "a layer within a Keras model cannot be called by kshot or have hooks: make a module of each half of the "
            "model by as_module, and put both into a torch.nn.Module"
        )

    register_forward_hook = register_forward_pre_hook = register_full_backward_hook = forward


class KerasModule(nn.Module):
    """A Keras model whose parameters and buffers are those of this module; see `as_module`.

    The trainable and the frozen weights of the model are parameters, and they are the tensors of the model: training
    this module trains the model. Other variables, such as running statistics and the states of seed generators, are
    buffers. A call reads all of them from this module, and never from the model.

    Args:
        model: the Keras model, checked.
        converts: the order of the axes of images given, and that of the model; None converts nothing.
    """

    def __init__(self, model: Any, converts: tuple[str, str] | None) -> None:
        super().__init__()
        self.converts, variables = converts, weight_names(model)
        layers = list(layers_of(model))
        norms = {id(layer.moving_mean): layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)}
        paths = {name.rpartition(".")[0]: norms[id(v)] for v, name in variables if id(v) in norms}
        self.structure = _Structure(model, variables, [(id(layer), path) for path, layer in paths.items()])
        self.recurrent = any(isinstance(layer, keras.layers.LSTM | keras.layers.GRU) for layer in layers)
        trainable = {id(variable) for layer in layers for variable in layer._trainable_variables}
        for variable, name in variables:
            path, _, key = name.rpartition(".")
            owner, value = self._part(path, paths), variable.value
            if id(variable) in trainable:
                owner.register_parameter(key, value)
            else:
                owner.register_buffer(key, value.detach())

    @property
    def keras_model(self) -> Any:
        """The Keras model."""
        return self.structure.model

    def forward(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Call the model; its inputs are one argument, several, or named ones."""
        inputs: Tree = kwargs or (args[0] if len(args) == 1 else list(args))
        tensors = dict(self.named_parameters(remove_duplicate=False)) | dict(self.named_buffers(remove_duplicate=False))
        scope = _Scope({id(variable): tensors[name] for variable, name in self.structure.variables})
        in_learner = NAME in self.__dict__  # this is a replica of the module, of which a learner chooses the statistics
        norms: dict[int, Any] = (
            {key: self.get_submodule(path) for key, path in self.structure.norms} if in_learner else {}
        )
        before = assigned(self.keras_model)
        device = next((str(tensor.device) for tensor in tensors.values()), "cpu")
        layout = _AnyLayout() if in_transform() else nullcontext()
        kernels = twice_differentiable(recurrent=True) if in_learner and self.recurrent else nullcontext()
        with scope, chosen_statistics(norms), keras.device(device), layout, kernels:
            output = self.keras_model(self._in_order(inputs, back=False), training=self.training)
        if (now := assigned(self.keras_model)) != before:
            layer, attribute = next(key for key in now if now[key] != before.get(key))
            raise RuntimeError(
                f"the call of the Keras layer {layer!r} sets its attribute {attribute!r}, which would go from task to "
                "task: keep it in a weight with trainable=False (add_weight), or return it"
            )
        if scope.losses:
            raise RuntimeError(
                f"the call of the Keras model {self.keras_model.name!r} adds losses (add_loss), which kshot would "
                "leave out: let the objective of the learner compute them from the outputs"
            )
        self._keep(tensors, scope, in_place=not in_learner)
        return self._in_order(output, back=True)

    def _keep(self, tensors: dict[str, Tensor], scope: _Scope, in_place: bool) -> None:
        """Keep what the call has assigned to variables."""
        for variable, name in self.structure.variables:
            value = scope.state_mapping[id(variable)]
            if value is tensors[name]:
                continue
            path, _, key = name.rpartition(".")
            owner = self.get_submodule(path)
            if key not in owner._buffers:
                raise RuntimeError(
                    f"the call of the Keras model assigns a value to its weight {variable.path!r}, so that it is not a "
                    "function of its weights: compute the changed weight from the weight instead"
                )
            if in_place:
                with torch.no_grad():
                    tensors[name].copy_(value)
            else:
                owner._buffers[key] = value

    def _in_order(self, tree: Tree, *, back: bool) -> Tree:
        """Images in the order of the model, or back in the order given."""
        if self.converts is None or self.converts[0] == self.converts[1]:
            return tree
        axes = (1, -1) if (self.converts[0] == "first") is not back else (-1, 1)
        return tree_map(lambda leaf: leaf.movedim(*axes) if leaf.ndim >= 4 else leaf, tree)

    def _part(self, path: str, norms: Mapping[str, Any]) -> nn.Module:
        """The part at a path, which is made if there is none; `norms` are the layers of those that are a `Norm`."""
        owner: nn.Module = self
        names = path.split(".") if path else []
        for number, name in enumerate(names):
            if name not in owner._modules:
                layer = norms.get(".".join(names[: number + 1]))
                owner.add_module(name, Part() if layer is None else Norm(layer))
            owner = owner.get_submodule(name)
        return owner

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KerasModule:
        for tensor in (*self.parameters(), *self.buffers()):
            if fn(tensor.new_zeros(())).dtype != tensor.dtype:
                raise TypeError(
                    f"the dtype of the Keras model {self.keras_model.name!r} cannot be changed, since its layers "
                    "compute in the dtype that they were built with: build it after keras.config.set_dtype_policy(…)"
                )
        super()._apply(fn, recurse)
        return self


@dataclass(frozen=True)
class _Structure:
    """What copies of a module share: the Keras model, of which a call reads the layers and no weights.

    Attributes:
        model: the Keras model; the attribute of a module would be a submodule of it.
        variables: its variables with the names of their tensors in the module.
        norms: the id of each BatchNormalization with the name of its part.
    """

    model: Any
    variables: list[tuple[Any, str]]
    norms: list[tuple[int, str]]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Structure:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Keras model in a module cannot be pickled: save its state_dict() and make the module again, or use "
            "export_keras"
        )


_StatelessScope: Any = keras.StatelessScope


class _Scope(_StatelessScope):
    """The values of variables in a call, by the id of the variable, without conversion."""

    def __init__(self, values: dict[int, Tensor]) -> None:
        super().__init__(collect_losses=True, initialize_variables=False)
        self.state_mapping = values

    def get_current_value(self, variable: Any) -> Tensor:
        if (value := self.state_mapping.get(id(variable))) is None:
            raise RuntimeError(
                f"the Keras model uses the variable {variable.path!r}, which is not one of its own: make it by "
                "add_weight, or hold the layer or keras.random.SeedGenerator it belongs to as an attribute"
            )
        return value


class _AnyLayout(TorchFunctionMode):
    """Leaves out the memory formats that Keras asks for, which `vmap` does not know; values are the same."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return func(*args) if func in (Tensor.contiguous, Tensor.is_contiguous) else func(*args, **(kwargs or {}))
