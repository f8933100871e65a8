"""One forward pass of a module with other weights: which operations are replaced while it runs.

Shape legend: n examples, C channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends import cudnn
from torch.overrides import TorchFunctionMode

from kshot.inner.batch_norm import along_channels, batch_norm
from kshot.inner.kernels import in_transform, twice_differentiable
from kshot.inner.layer_errors import is_batched
from kshot.inner.memory_format import channels_last, dropout
from kshot.inner.precision import without_autocast
from kshot.inner.replica import NAME, Kind, Replica
from kshot.inner.vmap_overrides import (
    DERIVATIVE_OVERRIDES,
    RECURRENT_OVERRIDES,
    VMAP_OVERRIDES,
)
from kshot.types import Tree

Statistics = dict[str, dict[str, Tensor]]
"""Mean and variance (C,) of each BatchNorm call of a forward pass, keyed by the name of the layer, with "#2" and so on
for its later calls; "tasknorm" adds the number of support examples as `{"support": {"count": ()}}`."""

Moments = tuple[Tensor, Tensor]

Choose = Callable[[str, Tensor, Tensor | None, Tensor | None], Moments]
"""(key of the call, input, running mean, running variance) -> (mean, variance) to normalise by."""

Blend = Callable[[str, Tensor, Tensor, Tensor], Moments]
"""(name of the layer, input, mean, variance) -> (mean, variance) to normalise by."""


class Call:
    """A forward pass of a replica.

    Args:
        replica: the replica to call.
        inputs: its inputs, as `run` receives them.
        choose: the statistics by which BatchNorm normalises.
        by_batch: whether those are the statistics of the batch, all rows weighted equally.
        blend: changes the chosen statistics, as `TaskNorm` does.

    Attributes:
        used: the chosen statistics of each BatchNorm call.
        normalized: whether BatchNorm has been called.
        ran_without_graph: whether an operation ran without a graph, as those of `torch.utils.checkpoint` can.
    """

    def __init__(self, replica: Replica, inputs: Tree, choose: Choose, by_batch: bool, blend: Blend | None) -> None:
        self.choose, self.by_batch, self.blend = choose, by_batch, blend
        self.used: Statistics = {}
        self.counts: Counter[str] = Counter()  # BatchNorm calls of each layer
        self.layers: list[str] = []  # names of the layers that run, the innermost last
        self.running = self.normalized = False  # whether a pass runs, and whether it has called BatchNorm
        self.ran_without_graph = False
        self.replaced = replica.replaced if replica.custom else {}
        kinds, custom, batched = replica.kinds, replica.custom, in_transform()
        recurrent = bool(kinds & Kind.RECURRENT)
        derivatives = batched or torch.is_grad_enabled()
        self.recurrent = recurrent
        self.plain_kernels = derivatives and (custom or recurrent or bool(kinds & Kind.ATTENTION))
        self.table: dict[Callable, Callable] = {}
        self.layout_free = replica.layout_free and not batched
        if derivatives and (custom or kinds & Kind.DERIVATIVE):
            self.table |= DERIVATIVE_OVERRIDES
        if self.layout_free:
            self.table[F.dropout] = dropout
        if batched and (custom or kinds & Kind.BATCHED_DERIVATIVE):
            self.table |= VMAP_OVERRIDES
        if recurrent and is_batched(inputs):
            self.table |= RECURRENT_OVERRIDES
        self.overrides = custom or bool(kinds & Kind.NORM) or bool(self.table)
        if self.overrides:
            replica.enter(self)

    def __call__(self, root: nn.Module, inputs: Tree) -> Tree:
        args, kwargs = inputs if isinstance(inputs, tuple) else (inputs,), {}
        if isinstance(inputs, dict):
            args, kwargs = (), inputs
        if self.layout_free:
            args, kwargs = channels_last((args, kwargs))
        with self._entered():
            output = root(*args, **kwargs)
        return output.contiguous() if self.layout_free and isinstance(output, Tensor) else output

    def run(self, replica: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run the forward of a replica, also when a backward pass repeats it (`torch.utils.checkpoint`)."""
        if not self.running:
            again = Repeated(self)
            with again._entered():
                return again.run(replica, forward, args, kwargs)
        self.layers.append(replica.__dict__[NAME])
        try:
            return forward(*args, **kwargs)
        finally:
            self.layers.pop()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        self.running = True
        try:
            with ExitStack() as stack:
                if self.plain_kernels:
                    stack.enter_context(twice_differentiable(recurrent=self.recurrent))
                if self.overrides:
                    stack.enter_context(_Overrides(self))
                yield
        finally:
            self.running = False

    def key(self) -> str:
        """The key of a BatchNorm call of the innermost layer: its name, and its number from the second on."""
        layer = self.layers[-1] or "model"
        self.counts[layer] += 1
        return layer if self.counts[layer] == 1 else f"{layer}#{self.counts[layer]}"

    def normalize(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As `torch.nn.functional.batch_norm`, by the chosen statistics; running statistics are not updated."""
        self.normalized = True
        given, wide = input.dtype, torch.float32 if weight is None else weight.dtype
        input = input.to(torch.promote_types(given, wide))  # torch.autocast rounds inputs, not parameters
        same_dtype = weight is None or weight.dtype == input.dtype
        if self.by_batch and self.blend is None and same_dtype and not is_batched(input):
            if in_transform():
                return torch.batch_norm(input, weight, bias, None, None, True, 0.0, eps, cudnn.enabled).to(given)
            return batch_norm(input, weight, bias, eps).to(given)
        key = self.key()
        with without_autocast(input.device):
            mean, var = self.choose(key, input, running_mean, running_var)
        self.used[key] = {"mean": mean, "var": var}
        if self.blend is not None:
            mean, var = self.blend(self.layers[-1], input, mean, var)
        scale = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        scale, shift = along_channels(scale, input), along_channels(shift, input)
        # with moments per example the input comes first, so that a compiler takes its layout for the sum
        normed = torch.addcmul(shift, input, scale) if self.blend is None else input * scale + shift
        return normed.to(given)  # parameters of another dtype than the input's do not change it, as in PyTorch

    def refuse_original(self, tensor: Tensor) -> None:
        """Raise an error for a tensor of the module that the replica has replaced."""
        raise RuntimeError(
            f"{self._innermost()} uses {self.replaced[id(tensor)]!r} of the module itself, not of the copy that has "
            "adapted: it reaches it through an object that kshot does not see into. Use it as an attribute of the layer"
        )

    def _innermost(self) -> str:
        return f"the layer {self.layers[-1]!r}" if self.layers and self.layers[-1] else "the model"


class Repeated(Call):
    """Part of a forward pass that a backward pass repeats; BatchNorm calls have the keys of the first time.

    Args:
        first: the call of the first time.
        layers: the names of the layers that ran when the part began.
    """

    def __init__(self, first: Call, layers: Sequence[str] = ()) -> None:
        self.__dict__.update(first.__dict__)
        self.used, self.layers, self.first_counts = {}, list(layers), first.counts

    def key(self) -> str:
        layer = self.layers[-1] or "model"
        if self.first_counts[layer] > 1:
            raise RuntimeError(
                f"the BatchNorm layer {layer!r} is called more than once in a forward pass that a backward pass "
                "repeats (torch.utils.checkpoint), so that its statistics cannot be assigned: use one layer per call"
            )
        return layer


class _Repetition:
    """What repeats a function that `torch.utils.checkpoint` ran, with the operations of the call replaced again.

    The forward of a replica sees to that itself; the function may also call operations on its own.
    """

    def __init__(self, call: Call, again: Callable) -> None:
        self.call, self.layers, self.again = call, tuple(call.layers), again

    def __call__(self, *args: Any) -> Any:
        with Repeated(self.call, self.layers)._entered():
            return self.again(*args)


def _repeat_with(call: Call) -> None:
    """Let the function that `torch.utils.checkpoint` is running, if any, be repeated as a part of a call."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None or not getattr(hooks[0], "__qualname__", "").startswith("_checkpoint_hook."):
        return
    cells = dict(zip(hooks[0].__code__.co_freevars, hooks[0].__closure__ or ()))
    frame: Any = cells["frame"].cell_contents if "frame" in cells else None
    if not hasattr(frame, "recompute_fn"):
        raise RuntimeError(
            f"{call._innermost()} repeats a function in the backward pass (torch.utils.checkpoint), which kshot does "
            "not know how to do with this version of PyTorch: switch checkpointing off"
        )
    if not isinstance(frame.recompute_fn, _Repetition):
        frame.recompute_fn = _Repetition(call, frame.recompute_fn)


class _Overrides(TorchFunctionMode):
    """Replaces operations of a forward pass by those of a call."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call, self.replaced, self.table = call, call.replaced, call.table

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling():
            _repeat_with(self.call)
            self.call.ran_without_graph |= not torch.is_grad_enabled()
        if self.replaced:
            for arg in args:
                if id(arg) in self.replaced or (type(arg) in (list, tuple) and self._finds_original(arg)):
                    self.call.refuse_original(next(a for a in _flat(args) if id(a) in self.replaced))
        if func is F.batch_norm:
            return self.call.normalize(*args, **kwargs)
        if func is torch.batch_norm:
            return self.call.normalize(*_as_functional(*args, **kwargs))
        return self.table.get(func, func)(*args, **kwargs)

    def _finds_original(self, args: Any) -> bool:
        return any(id(arg) in self.replaced for arg in args)


def _flat(args: Any) -> Iterator[Any]:
    for arg in args:
        if type(arg) in (list, tuple):
            yield from arg
        else:
            yield arg


def _as_functional(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> tuple:
    """The arguments of `torch.batch_norm` as those of `torch.nn.functional.batch_norm`."""
    return input, running_mean, running_var, weight, bias, training, momentum, eps
