"""A copy of a module's structure that holds other weights; the module itself is only read.

A replica has the classes and attributes of a module, but tables of parameters and buffers of its own. It keeps its
weights as long as a graph refers to it, so that recomputation in a backward pass (`torch.utils.checkpoint`) sees the
weights of the forward pass, and any number of threads can call replicas of one module at the same time.
"""

from __future__ import annotations

import inspect
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import CellType, FunctionType, MappingProxyType, MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm

from kshot.inner.memory_format import ignores_layout, pool_before_activation
from kshot.types import Params

NAME = "_kshot_name"
"""The attribute of a replica that holds the qualified name of its module."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOK_OPTIONS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
_REBOUND = "_kshot_rebound"
_TABLES = frozenset(
    ("_parameters", "_buffers", "_modules", "training", "forward", _REBOUND, NAME, *_HOOKS, *_HOOK_OPTIONS)
)
_ATOMS = frozenset((int, float, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size))
_CONTAINERS = frozenset((list, dict, set, OrderedDict, deque))
_LONGEST = 1_000
"""Longer containers are neither searched for modules and parameters nor copied."""


class Kind:
    """What matters of a class of modules for a call: flags of an int, since enumerations are slow."""

    CUSTOM = 1  # not one of PyTorch's
    NORM = 2  # BatchNorm
    PLAIN_NORM = 4  # BatchNorm that is PyTorch's own class, which changes its buffers in no other way
    RECURRENT = 8
    ATTENTION = 16
    DERIVATIVE = 32  # calls an operation whose derivatives are wrong
    BATCHED_DERIVATIVE = 64  # calls one whose derivatives are wrong, or that does not run, under `vmap`
    CONVOLUTION = 128
    LAYOUT_FREE = 256  # does not see the memory layout
    SEQUENTIAL = 512


_KINDS: dict[type, int] = {}
_OF_BASES: tuple[tuple[int, tuple[type, ...]], ...] = (
    (Kind.NORM, (_BatchNorm,)),
    (Kind.RECURRENT, (nn.RNNBase,)),
    (Kind.ATTENTION, (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)),
    (Kind.DERIVATIVE, (_WeightNorm, nn.GroupNorm, nn.RReLU)),
    (Kind.BATCHED_DERIVATIVE, (nn.LayerNorm, _InstanceNorm, nn.Embedding, nn.RNNCellBase, _SpectralNorm)),
    (Kind.CONVOLUTION, (nn.Conv2d,)),
)


def kind_of(cls: type) -> int:
    """The flags of a class of modules."""
    if cls not in _KINDS:
        kind = sum(flag for flag, bases in _OF_BASES if issubclass(cls, bases))
        if not all(base.__module__.startswith(("torch.nn", "typing", "builtins", "abc")) for base in cls.__mro__):
            kind |= Kind.CUSTOM
        if cls.__module__ == _BatchNorm.__module__:
            kind |= Kind.PLAIN_NORM
        if ignores_layout(cls):
            kind |= Kind.LAYOUT_FREE
        if cls is nn.Sequential:
            kind |= Kind.SEQUENTIAL
        _KINDS[cls] = kind
    return _KINDS[cls]


class Runner(Protocol):
    """Runs the forward of a replica."""

    def run(self, replica: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any: ...


class Replica:
    """Replicas of a module and of its submodules.

    Args:
        module: the module to replicate.
        values: parameters and buffers that replace the module's own, by name; tied weights go by their first name.
        buffer: (name, buffer) -> a copy that the replica may change.

    Attributes:
        root: the replica of `module`.
        parts: the replica of each module, in order of the names.
        replaced: names of the module's own tensors that the replica does not use, by `id`.
        kinds: the kinds of all parts.
        custom: whether a part is not one of PyTorch's, or has hooks: it may do anything.
        layout_free: whether there are convolutions and no part sees the memory layout of its inputs.

    Raises:
        ValueError: `values` has a name that is not that of a parameter or buffer.
    """

    def __init__(
        self, module: nn.Module, values: Mapping[str, Tensor], buffer: Callable[[str, Tensor], Tensor]
    ) -> None:
        self.values, self.buffer = values, buffer
        self.replaced: dict[int, str] = {}
        self.parts: list[nn.Module] = []
        self.custom = False
        self.kinds = 0
        self._weights: list[tuple[str, Tensor]] = []  # those that a custom part could change
        self._originals: list[nn.Module] = []
        self._tensors: dict[int, Any] = {}  # the replica's tensor for each of the module's own, by id
        self._replicas: dict[int, tuple[nn.Module, bool]] = {}  # by id of the module
        self._buffers: list[tuple[str, dict[str, Any], str, Any, int]] = []
        self._found = 0
        self.root, free = self._replicate(module, "")
        self.layout_free = free and bool(self.kinds & Kind.CONVOLUTION)
        if self._found < len(values):
            names = {name for named in (module.named_parameters, module.named_buffers) for name, _ in named()}
            unknown = sorted(set(values) - names)
            raise ValueError(f"the model has no parameter or buffer of the name {unknown[0]!r}")
        if self.custom:
            for original, (value, name) in _substitutes.get().items():  # closures hold the module's own tensors
                self.replaced[original] = name
                self._tensors[original] = self._tensors.get(id(value), value)
            self._rebind_attributes()
        self._versions = _versions([weight for _, weight in self._weights])

    def enter(self, runner: Runner) -> None:
        """Let `runner` run the forward of every part."""
        for part in self.parts:
            attributes = part.__dict__
            attributes["forward"] = _Forward(part, runner, attributes.get("forward"))

    def changed_weights(self) -> list[str]:
        """Names of the parameters that forward passes have changed in place."""
        versions = _versions([weight for _, weight in self._weights])
        if versions == self._versions:
            return []
        return [name for (name, _), now, then in zip(self._weights, versions, self._versions) if now != then]

    def changed_buffers(self) -> Params:
        """The buffers that forward passes have changed, by name."""
        return {
            name: table[key]
            for name, table, key, given, version in self._buffers
            if isinstance(table.get(key), Tensor) and (table[key] is not given or version_of(given) != version)
        }

    def assigned_attributes(self) -> list[tuple[nn.Module, str]]:
        """The attributes that forward passes have set, with the parts that hold them; tables are left out."""
        assigned = []
        for original, part in zip(self._originals, self.parts):
            if kind_of(type(part)) & Kind.CUSTOM:
                rebound = part.__dict__.get(_REBOUND, {})
                for key, value in part.__dict__.items():
                    given = rebound.get(key, (original.__dict__.get(key, _ABSENT), None))
                    if key not in _TABLES and (value is not given[0] or _contents(value) != given[1]):
                        assigned.append((part, key))
        return assigned

    def _replicate(self, module: nn.Module, prefix: str) -> tuple[nn.Module, bool]:
        """The replica of a module, and whether no part of it sees the memory layout."""
        if (known := self._replicas.get(id(module))) is not None:
            return known
        attributes, kind = module.__dict__.copy(), kind_of(type(module))
        replica = object.__new__(type(module))
        object.__setattr__(replica, "__dict__", attributes)
        self._replicas[id(module)] = replica, False
        self.parts.append(replica)
        self._originals.append(module)
        attributes[NAME] = prefix[:-1]
        attributes.pop("_compiled_call_impl", None)  # it is bound to the module
        hooked = bool(
            attributes["_forward_hooks"]
            or attributes["_forward_pre_hooks"]
            or attributes["_backward_hooks"]
            or attributes["_backward_pre_hooks"]
            or "forward" in attributes
        )
        self.kinds |= kind
        self.custom = self.custom or hooked or bool(kind & Kind.CUSTOM)
        if module._parameters:
            attributes["_parameters"] = {key: self._parameter(prefix + key, p) for key, p in module._parameters.items()}
        if module._buffers:
            self._copy_buffers(module, attributes, prefix, kind)
        free = not hooked and bool(kind & Kind.LAYOUT_FREE)
        if module._modules:
            replicas = attributes["_modules"] = dict.fromkeys(module._modules)
            for key, child in module._modules.items():
                if child is not None:
                    replicas[key], child_free = self._replicate(child, f"{prefix}{key}.")
                    free = free and child_free
            if kind & Kind.SEQUENTIAL:
                attributes["_modules"] = pool_before_activation(module, replicas)
        self._replicas[id(module)] = replica, free
        return replica, free

    def _parameter(self, name: str, original: Any) -> Any:
        if original is None:
            return None
        if id(original) not in self._tensors:
            value = self._value(name, original)
            if self.custom:  # PyTorch's own layers do not change their weights
                self._weights += [(name, value)] if value is original else [(name, value), (name, original)]
            if value is not original and value.requires_grad and original._backward_hooks:
                value = value.view_as(value)  # hooks of the module's parameter belong to the gradient by its substitute
                for hook in original._backward_hooks.values():
                    value.register_hook(hook)
            self._tensors[id(original)] = value
        return self._tensors[id(original)]

    def _copy_buffers(self, module: nn.Module, attributes: dict[str, Any], prefix: str, kind: int) -> None:
        table = attributes["_buffers"] = dict(module._buffers)
        norm = bool(kind & Kind.NORM)
        for key, original in module._buffers.items():
            if original is None:
                continue
            if norm and key == "num_batches_tracked":
                self._found += prefix + key in self.values
                table[key] = None  # not counted, and its None tells the layer so
                continue
            if id(original) not in self._tensors:
                value = self._value(prefix + key, original)
                if not kind & Kind.PLAIN_NORM:  # those are not changed
                    value = self.buffer(prefix + key, value)
                    self.replaced[id(original)] = prefix + key
                    self._buffers.append((prefix + key, table, key, value, version_of(value)))
                self._tensors[id(original)] = value
            table[key] = self._tensors[id(original)]

    def _value(self, name: str, original: Tensor) -> Tensor:
        value = self.values.get(name)
        if value is None:
            return original
        self._found += 1
        if value is not original:
            self.replaced[id(original)] = name
        return value

    def _rebind_attributes(self) -> None:
        """Let attributes and hooks refer to replicas where they refer to modules, in containers and closures too."""
        for part in self.parts:
            attributes = part.__dict__
            for name in _HOOKS:
                attributes[name] = OrderedDict((key, self._rebound(hook)) for key, hook in attributes[name].items())
            for name in _HOOK_OPTIONS:
                attributes[name] = OrderedDict(attributes[name])
            if "forward" in attributes:
                attributes["forward"] = self._rebound(attributes["forward"])
            if not kind_of(type(part)) & Kind.CUSTOM:
                continue
            rebound = {}  # the replica's own value of an attribute, and what it contains
            for key, value in attributes.items():
                if type(value) not in _ATOMS and key not in _TABLES:
                    replaced = self._rebound(value)
                    if replaced is value and type(value) in _CONTAINERS and len(value) <= _LONGEST:
                        replaced = value.copy()
                    rebound[key] = replaced, _contents(replaced)
            attributes.update((key, value) for key, (value, _) in rebound.items())
            attributes[_REBOUND] = rebound

    def _rebound(self, value: Any, depth: int = 0) -> Any:
        """The value with replicas in place of modules; itself if it refers to none."""
        kind = type(value)
        if isinstance(value, nn.Module):
            known = self._replicas.get(id(value))
            return value if known is None else known[0]
        if isinstance(value, Tensor):
            return self._tensors.get(id(value), value)
        if kind in _ATOMS or depth > 3:
            return value
        again = partial(self._rebound, depth=depth + 1)
        if kind in (list, tuple, dict, OrderedDict) and len(value) <= _LONGEST:
            items = list(value.values() if isinstance(value, dict) else value)
            new = [again(item) for item in items]
            if all(a is b for a, b in zip(items, new)):
                return value
            return kind(zip(value, new)) if isinstance(value, dict) else kind(new)
        if kind is MethodType:
            owner = again(value.__self__)
            return value if owner is value.__self__ else MethodType(value.__func__, owner)
        if kind is partial:
            parts = [value.func, value.args, value.keywords]
            new = [again(part) for part in parts]
            return value if all(a is b for a, b in zip(parts, new)) else partial(new[0], *new[1], **new[2])
        return _rebound_function(value, again) if kind is FunctionType else value


def _contents(value: Any) -> list[int] | None:
    """What identifies the contents of a container that can change; None for other values."""
    if type(value) not in _CONTAINERS or len(value) > _LONGEST:
        return None
    return [id(item) for pair in value.items() for item in pair] if isinstance(value, dict) else [*map(id, value)]


def _rebound_function(function: FunctionType, again: Callable[[Any], Any]) -> FunctionType:
    """The function with the contents of its closure and its defaults rebound; itself if none changes."""
    try:
        contents = tuple(cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:  # a cell is empty
        return function
    parts = [contents, function.__defaults__, function.__kwdefaults__]
    new = [again(part) for part in parts]
    if all(a is b for a, b in zip(parts, new)):
        return function
    closure = tuple(CellType(content) for content in new[0]) if function.__closure__ else None
    copied = FunctionType(function.__code__, function.__globals__, function.__name__, new[1], closure)
    copied.__kwdefaults__ = new[2]
    return copied


_substitutes: ContextVar[Mapping[int, tuple[Tensor, str]]] = ContextVar("substitutes", default=MappingProxyType({}))
"""In `substituted`: the substitute of each tensor of the module, by its id, and its name."""


@contextmanager
def substituted(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """A context in which a module itself has other parameters and buffers, by name; for one thread.

    Tied weights and modules that are registered twice go by their first name.
    """
    own = {id(tensor): name for named in (module.named_parameters(), module.named_buffers()) for name, tensor in named}
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = part._parameters, part._buffers
        for table in tables:
            for key, tensor in table.items():
                if tensor is not None and own[id(tensor)] in values:
                    replaced.append((table, key, tensor))
    named = [(tensor, own[id(tensor)]) for _, _, tensor in replaced]
    substitutes = {id(tensor): (values[name], name) for tensor, name in named if values[name] is not tensor}
    token = _substitutes.set({**_substitutes.get(), **substitutes})
    try:
        for table, key, tensor in replaced:
            table[key] = values[own[id(tensor)]]
        yield
    finally:
        _substitutes.reset(token)
        for table, key, tensor in replaced:
            table[key] = tensor


class _Forward:
    """The forward of a replica, run by a runner; refers to the replica weakly, so that no cycle keeps its graph."""

    __slots__ = ("given", "replica", "runner")

    def __init__(self, replica: nn.Module, runner: Runner, given: Callable | None) -> None:
        self.replica, self.runner, self.given = weakref.ref(replica), runner, given

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        replica = self.replica()
        assert replica is not None  # who calls it holds it
        return self.runner.run(replica, self._forward(replica), args, kwargs)

    def _forward(self, replica: nn.Module) -> Callable:
        return self.given or MethodType(type(replica).forward, replica)

    @property
    def __signature__(self) -> inspect.Signature:
        replica = self.replica()
        assert replica is not None
        return inspect.signature(self._forward(replica))


_ABSENT = object()


def _versions(tensors: list[Tensor]) -> list[int]:
    try:
        if torch._C._functorch.peek_interpreter_stack() is None:
            return [tensor._version for tensor in tensors]
    except RuntimeError:  # tensors of inference mode
        pass
    return [version_of(tensor) for tensor in tensors]


def version_of(tensor: Tensor) -> int:
    """A number that grows with each change in place; 0 for tensors of inference mode, which count none."""
    return sum(level._version for level in unwrapped(tensor) if not level.is_inference())


def unwrapped(tensor: Tensor) -> list[Tensor]:
    """A tensor, and those under each transform of `torch.func` that wraps it, the innermost last."""
    levels = [tensor]
    while torch._C._functorch.is_functorch_wrapped_tensor(levels[-1]):
        levels.append(torch._C._functorch.get_unwrapped(levels[-1]))
    return levels
