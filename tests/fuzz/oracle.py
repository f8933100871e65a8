"""What a learner must compute, by plain PyTorch alone: training of a copy by `torch.optim`, and its derivatives.

The rules that the oracle fixes:

- Inner steps are calls of one copy of the module, so buffers and Python attributes that a call changes are carried to
  the next step and to the query.
- `batchnorm` decides the statistics of each BatchNorm, whatever mode the module is in: "running" is its evaluation
  mode, "query" its training mode, and "support" gives the k-th call of each BatchNorm in the query the statistics of
  its k-th call in a pass of the support set under the final weights. That pass changes no other state: it measures.
- Random numbers are drawn in the order of the calls: inner steps, the pass that measures if there is BatchNorm, query.
- The outer gradient is the derivative of the query loss by the initial parameters; state without gradient is constant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from fuzz.grammar import Case, Data, call, plain_randomness
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

Grads = dict[str, Tensor]
Moments = dict[str, list[tuple[Tensor, Tensor]]]
"""Mean and variance (C,) of each call of each BatchNorm, by name."""


def prediction(case: Case, task: int = 0) -> Tensor:
    """The prediction of the query after adaptation (m, outputs)."""
    with plain_kernels(), plain_randomness(case):
        return _adapted_prediction(case, case.data(task), {}).detach()


def loss(case: Case, task: int = 0, shift: Grads | None = None) -> float:
    """The outer loss, with `shift` added to the initial parameters."""
    data = case.data(task)
    with plain_kernels(), plain_randomness(case):
        return float(case.loss(_adapted_prediction(case, data, shift or {}), data[3]))


def rounding(case: Case) -> float:
    """How much a relative change of the initial parameters by 1e-13 changes the prediction."""
    with plain_kernels(), plain_randomness(case):
        shifted = _adapted_prediction(case, case.data(), _small_shift(case)).detach()
    return float((shifted - prediction(case)).abs().max())


def rounding_of_gradient(case: Case, num_tasks: int) -> float:
    """How much such a change changes the gradient of the first tasks, at most."""
    changes = []
    for task in range(num_tasks):
        plain, shifted = gradient(case, task), gradient(case, task, _small_shift(case))
        changes += [float((plain[name] - grad).abs().max()) for name, grad in shifted.items()]
    return max(changes)


def _small_shift(case: Case) -> Grads:
    generator = torch.Generator().manual_seed(0)
    return {
        name: 1e-13 * parameter.detach() * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for name, parameter in trainable(case.build()).items()
    }


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require a gradient, by their first name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def directional(case: Case, direction: Grads, step: float, claim: float, tolerance: float) -> tuple[float, float]:
    """The derivative of the outer loss along a direction by central differences, and an estimate of its error.

    If the differences of one step size are not within the tolerance of a claimed derivative, those of half the step
    size give both by Richardson's extrapolation.
    """

    def difference(step: float) -> float:
        ahead, behind = (
            loss(case, shift={name: sign * step * value for name, value in direction.items()}) for sign in (1, -1)
        )
        return (ahead - behind) / (2 * step)

    wide = difference(step)
    if abs(wide - claim) <= tolerance:
        return wide, 0.0
    narrow = difference(step / 2)
    return narrow + (narrow - wide) / 3, abs(narrow - wide)


def random_direction(case: Case, generator: torch.Generator) -> Grads:
    """A random direction of norm 1, without what PyTorch masks: by hooks, and padding rows of embeddings."""
    module = case.build()
    direction = {
        name: hooked(parameter, torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        for name, parameter in trainable(module).items()
    }
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            direction[f"{name}.weight"][part.padding_idx] = 0
    length = float(torch.stack([value.square().sum() for value in direction.values()]).sum().sqrt())
    return {name: value / max(length, 1e-9) for name, value in direction.items()}


def hooked(parameter: Tensor, grad: Tensor) -> Tensor:
    """A gradient after the hooks of its parameter."""
    for hook in (parameter._backward_hooks or {}).values():
        changed = hook(grad)
        grad = grad if changed is None else changed
    return grad


def _adapted_prediction(case: Case, data: Data, shift: Grads) -> Tensor:
    module = _trained(case, data, shift)
    if not _measures(case, module):
        return call(module, data[2])
    moments = _measured(module, data[0])
    if "stateful" in case.tags:  # the pass that measured has changed the state
        with plain_randomness(case):
            module = _trained(case, data, shift)
    with _using(module, moments):
        return call(module, data[2])


def _trained(case: Case, data: Data, shift: Grads) -> nn.Module:
    """A copy after the inner steps by `torch.optim`."""
    module = _copy(case)
    params = trainable(module)
    with torch.no_grad():
        for name, value in shift.items():
            params[name].add_(value)
    optimizer = case.rule.torch(_adapting(case, module))
    for _ in range(case.steps):
        module.zero_grad()
        case.loss(call(module, data[0]), data[1]).backward()
        optimizer.step()
    return module


def _copy(case: Case) -> nn.Module:
    module = case.build()
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.train(case.batchnorm != "running")
    return module


def _adapting(case: Case, module: nn.Module) -> list[nn.Parameter]:
    """The parameters of which any name matches the pattern, each once."""
    names = module.named_parameters(remove_duplicate=False)
    found = {id(p): p for name, p in names if p.requires_grad and fnmatchcase(name, case.adaptable)}
    return list(found.values())


# BatchNorm by the statistics of the support set.


def _measures(case: Case, module: nn.Module) -> bool:
    return case.batchnorm == "support" and any(isinstance(part, _BatchNorm) for part in module.modules())


def _measured(module: nn.Module, inputs: Any) -> Moments:
    """The moments of each call of each BatchNorm."""
    moments: Moments = defaultdict(list)
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):

            def measure(part: nn.Module, args: tuple, name: str = name) -> None:
                axes = [axis for axis in range(args[0].ndim) if axis != 1]
                var, mean = torch.var_mean(args[0], axes, correction=0)
                moments[name].append((mean, var))

            handles.append(part.register_forward_pre_hook(measure))
    call(module, inputs)
    for handle in handles:
        handle.remove()
    return moments


@contextmanager
def _using(module: nn.Module, moments: Moments) -> Iterator[None]:
    """A context in which the k-th call of each BatchNorm normalises by its k-th moments."""
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            remaining = iter(moments[name])

            def replace(part: nn.Module, args: tuple, output: Tensor, remaining: Iterator = remaining) -> Tensor:
                mean, var = next(remaining)
                shape = (1, -1, *[1] * (args[0].ndim - 2))
                normed = (args[0] - mean.view(shape)) / (var.view(shape) + part.eps).sqrt()
                return normed if part.weight is None else normed * part.weight.view(shape) + part.bias.view(shape)

            handles.append(part.register_forward_hook(replace, prepend=True))
    yield
    for handle in handles:
        handle.remove()


# The derivative by autograd, through written-out steps on plain tensors.


def gradient(case: Case, task: int = 0, shift: Grads | None = None) -> Grads:
    """The outer gradient by double backward, after the hooks of the parameters; zeros where there is none."""
    data = case.data(task)
    with plain_kernels(), plain_randomness(case), _without_checkpoints(), _RightDerivatives():
        params = trainable(case.build())
        initial = {
            name: (parameter.detach() + (0 if shift is None else shift[name])).requires_grad_()
            for name, parameter in params.items()
        }
        module = _unrolled(case, data, initial)
        if not _measures(case, module):
            output = call(module, data[2])
        else:
            moments = _measured(module, data[0])
            if "stateful" in case.tags:
                with plain_randomness(case):
                    module = _unrolled(case, data, initial)
            _renew_buffers(module)
            with _using(module, moments):
                output = call(module, data[2])
        loss = case.loss(output, data[3])
        grads = torch.autograd.grad(loss, list(initial.values()), allow_unused=True, materialize_grads=True)
        return {name: hooked(params[name], grad) for name, grad in zip(initial, grads)}


Places = dict[str, list[tuple[dict, str]]]
"""Where a module keeps each parameter: tables and keys."""


def _places(module: nn.Module, params: dict[str, nn.Parameter]) -> Places:
    names = {id(parameter): name for name, parameter in params.items()}
    places: Places = {name: [] for name in params}
    for part in module.modules():
        for key, parameter in part._parameters.items():
            if id(parameter) in names:
                places[names[id(parameter)]].append((part._parameters, key))
        flat = getattr(part, "_flat_weights", [])
        for index, weight in enumerate(flat):
            if id(weight) in names:
                places[names[id(weight)]].append((flat, index))
    return places


def _put(places: Places, values: Grads) -> None:
    for name, where in places.items():
        for table, key in where:
            table[key] = values[name]


def _renew_buffers(module: nn.Module) -> None:
    """Copy all buffers, shared ones once: the graph of an earlier step holds the former tensors."""
    copies: dict[int, Tensor] = {}
    for part in module.modules():
        for key, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[key] = copies.setdefault(id(buffer), buffer.clone())


def _unrolled(case: Case, data: Data, values: Grads) -> nn.Module:
    """A copy whose parameters are tensors: those after the inner steps, differentiable by the initial values."""
    module = _copy(case)
    params = trainable(module)
    places, adapting = _places(module, params), {id(parameter) for parameter in _adapting(case, module)}
    names = [name for name, parameter in params.items() if id(parameter) in adapting]
    update = _sgd(case) if case.rule.name == "sgd" else _adam(case)
    for _ in range(case.steps):
        _put(places, values)
        _renew_buffers(module)
        value = case.loss(call(module, data[0]), data[1])
        grads = torch.autograd.grad(value, [values[name] for name in names], create_graph=True, allow_unused=True)
        values = dict(values)
        for name, grad in zip(names, grads):
            if grad is not None:
                values[name] = update(name, values[name], hooked(params[name], grad))
    _put(places, values)
    _renew_buffers(module)
    return module


def _sgd(case: Case) -> Callable[[str, Tensor, Tensor], Tensor]:
    buffers: Grads = {}

    def update(name: str, value: Tensor, grad: Tensor) -> Tensor:
        grad = grad + case.rule.weight_decay * value
        buffers[name] = case.rule.momentum * buffers[name] + grad if name in buffers else grad
        return value - case.rule.lr * buffers[name]

    return update


def _adam(case: Case) -> Callable[[str, Tensor, Tensor], Tensor]:
    counts: dict[str, int] = defaultdict(int)
    means: dict[str, Any] = defaultdict(float)
    squares: dict[str, Any] = defaultdict(float)

    def update(name: str, value: Tensor, grad: Tensor) -> Tensor:
        counts[name] += 1
        grad = grad + case.rule.weight_decay * value
        means[name] = 0.9 * means[name] + 0.1 * grad
        squares[name] = 0.999 * squares[name] + 0.001 * grad * grad
        square = squares[name] / (1 - 0.999 ** counts[name])
        root = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
        return value - case.rule.lr * means[name] / (1 - 0.9 ** counts[name]) / (root + case.rule.eps)

    return update


@contextmanager
def plain_kernels() -> Iterator[None]:
    """A context without fused attention and fast paths, which have no second derivative."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """A context in which checkpointing calls its function once: the steps exchange the parameters of one module."""
    module = torch.utils.checkpoint
    before = module.checkpoint
    module.checkpoint = lambda function, *args, use_reentrant, **options: function(*args)
    try:
        yield
    finally:
        module.checkpoint = before


class _RightDerivatives(TorchFunctionMode):
    """Weight normalisation, whose kernel has a wrong second derivative in PyTorch (seen in 2.13), in another form."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch._weight_norm:
            direction, size, *dim = args
            return direction * (size / torch.norm_except_dim(direction, 2, *(dim or [0])))
        return func(*args, **(kwargs or {}))
