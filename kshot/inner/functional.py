"""A module as a pure function of its parameters, with controlled BatchNorm statistics.

The module is not changed: `torch.func.functional_call` substitutes parameters, and each call of
`torch.nn.functional.batch_norm` is redirected to the statistics that the learner chooses. The k-th call uses the k-th
statistics, so a norm that a module calls twice counts as two norms.

Shape legend: n examples, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.backends import cudnn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kshot.argument_checks import check_arguments
from kshot.inner.batch_norm import TaskNorm, along_channels, batch_norm
from kshot.inner.kernels import in_transform, kernels_to_disable, reset_flat_weights, twice_differentiable
from kshot.inner.layer_errors import explain_batching_errors, is_batched
from kshot.inner.memory_format import LAYOUT_OVERRIDES, channels_last, has_convolutions
from kshot.inner.vmap_overrides import RECURRENT_OVERRIDES, VMAP_OVERRIDES, needs_overrides
from kshot.query_weight import given_query_weight
from kshot.types import Batch, Params, Tree

BatchNorm = Literal["support", "query", "running", "tasknorm"]
"""The statistics that BatchNorm uses for a query: those of the task's support set (inductive), those of the query
itself (transductive), the module's running statistics (inductive; not updated by meta-training), or those of the
support set blended with those of each query example (inductive, see `TaskNorm`)."""

Statistics = dict[str, dict[str, Tensor]]
"""Mean and variance (C,) of each BatchNorm call of one forward pass, keyed by the number of the call; "tasknorm" adds
the number of support examples as `{"support": {"count": ()}}`."""

Choose = Callable[[int, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]
"""(number of the call, input, running mean, running variance) -> (mean, variance) to normalise by."""


class Function:
    r"""A module as a pure function of its parameters: the module's weights and buffers stay bitwise as they are.

    Args:
        module: any module.
        batchnorm: the statistics that BatchNorm uses for a query. For a support set they are those of the set, with
            weighted rows, or the running ones.
        task_norm: meta-parameters for "tasknorm", which the learner has to register as its own; new ones by default.

    Attributes:
        transductive: whether a query's prediction depends on the other queries.
        keeps_statistics: whether `query` needs statistics from `support`.
    """

    @check_arguments
    def __init__(self, module: nn.Module, batchnorm: BatchNorm = "support", task_norm: TaskNorm | None = None) -> None:
        self.module, self.batchnorm = module, batchnorm
        num_norms = sum(isinstance(part, _BatchNorm) for part in module.modules())
        self.has_norms = num_norms > 0
        new_task_norm = self.has_norms and batchnorm == "tasknorm" and task_norm is None
        self.task_norm = TaskNorm(num_norms) if new_task_norm else task_norm
        self.transductive = self.has_norms and batchnorm == "query"
        self.convolves = has_convolutions(module)
        self.overrides_calls = self.has_norms or self.convolves or needs_overrides(module)
        self.kernels = kernels_to_disable(module)
        self.buffers = _buffer_names(module)
        self.keeps_statistics = self.has_norms and batchnorm in ("support", "tasknorm")

    def of(self, name: str) -> Function:
        """The submodule with a name as a function, with the same choice of statistics."""
        return Function(self.module.get_submodule(name), self.batchnorm, self.task_norm)

    def adapting(self, params: Params, batch: Batch) -> Tree:
        """Call on a support set; only the module's output is needed."""
        choose: Choose = _running
        if self.batchnorm != "running":
            choose = _of_batch if _has_equal_weights(batch.weight) else _of_weighted_batch(batch.weight)
        return self._call(params, batch.inputs, choose, count=batch.weight.sum())

    def support(self, params: Params, batch: Batch) -> tuple[Tree, Statistics]:
        """Call on a support set: the module's output, and the BatchNorm statistics that `query` needs."""
        if not self.keeps_statistics:
            return self.adapting(params, batch), {}
        used: Statistics = {}
        count = batch.weight.sum()
        output = self._call(params, batch.inputs, _of_weighted_batch(batch.weight), used, count)
        return output, used if self.task_norm is None else used | {"support": {"count": count}}

    def query(self, params: Params, statistics: Statistics, inputs: Tree) -> Tree:
        """Call on inputs (m, ...) with the statistics that `support` returned."""
        choose = _running if self.batchnorm == "running" else _from_support(statistics)
        if self.transductive:
            weight = given_query_weight(len(tree_leaves(inputs)[0]))
            choose = _of_batch if weight is None or _has_equal_weights(weight) else _of_weighted_batch(weight)
        return self._call(params, inputs, choose, count=statistics.get("support", {}).get("count"))

    def _call(
        self, params: Params, inputs: Tree, choose: Choose, used: Statistics | None = None, count: Tensor | None = None
    ) -> Tree:
        substitutes: dict[str, Any] = {
            name: None if name.endswith("num_batches_tracked") else buffer.clone()
            for name, buffer in self.module.named_buffers()
        }
        substitutes |= params
        if self.convolves:
            inputs = channels_last(inputs)
        if self.buffers:  # one copy per task, since a module may change them in place: plus a zero made of the inputs
            zero = torch.zeros_like(tree_leaves(inputs)[0].flatten()[:1].sum())
            substitutes.update({n: substitutes[n] + zero.to(substitutes[n].dtype) for n in self.buffers})
        args, kwargs = inputs if isinstance(inputs, tuple) else (inputs,), {}
        if isinstance(inputs, dict):
            args, kwargs = (), inputs
        recurrent = self.kernels["recurrent"]
        recurrent_overrides = RECURRENT_OVERRIDES if recurrent and is_batched(inputs) else {}
        blend = None if self.task_norm is None else partial(self.task_norm, count=count)
        overrides = _Overrides(choose, used, recurrent_overrides, blend) if self.overrides_calls else nullcontext()
        try:
            with overrides, twice_differentiable(**self.kernels), explain_batching_errors(self.module, inputs):
                return torch.func.functional_call(self.module, substitutes, args, kwargs)
        finally:
            if recurrent:
                reset_flat_weights(self.module)


_MONOTONE = {F.relu, torch.relu, F.leaky_relu}
"""Non-decreasing activations. Applied after a max-pooling instead of before it, they have a quarter of the work. The
derivatives are equal: positions that tie for the maximum have equal slopes."""


class _Overrides(TorchFunctionMode):
    """Replaces operations of a forward pass: `batch_norm` uses chosen statistics, and the tables of overrides apply.

    The chosen statistics are added to `used`; `blend` changes those of a call, as `TaskNorm` does.
    """

    def __init__(
        self,
        choose: Choose,
        used: Statistics | None,
        recurrent_overrides: dict[Callable, Callable],
        blend: Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.choose, self.used, self.blend, self.calls = choose, used, blend, 0
        self.last_activation: tuple[Any, Any, Any] = (None, None, None)  # output, input, function
        self.table = VMAP_OVERRIDES | recurrent_overrides if in_transform() else LAYOUT_OVERRIDES

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._normalize(*args, **kwargs)
        if func in _MONOTONE and len(args) > 0:
            output = func(*args, **kwargs)
            if output is not args[0]:
                self.last_activation = output, args[0], lambda pooled: func(pooled, *args[1:], **kwargs)
            return output
        if func is F.max_pool2d and args and args[0] is self.last_activation[0]:
            _, activation_input, activation = self.last_activation
            return activation(func(activation_input, *args[1:], **kwargs))
        return self.table.get(func, func)(*args, **kwargs)

    def _normalize(
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
        same_dtype = weight is None or weight.dtype == input.dtype
        if self.choose is _of_batch and self.blend is None and same_dtype and not is_batched(input):
            if in_transform():
                return torch.batch_norm(input, weight, bias, None, None, True, 0.0, eps, cudnn.enabled)
            return batch_norm(input, weight, bias, eps)
        mean, var = self.choose(self.calls, input, running_mean, running_var)
        if self.used is not None:
            self.used[str(self.calls)] = {"mean": mean, "var": var}
        if self.blend is not None:
            mean, var = self.blend(self.calls, input, mean, var)
        self.calls += 1
        scale = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        scale, shift = along_channels(scale, input), along_channels(shift, input)
        # with moments per example the input comes first, so that a compiler takes its layout for the sum
        normed = torch.addcmul(shift, input, scale) if self.blend is None else input * scale + shift
        return normed.to(input.dtype)  # parameters of another dtype than the input's do not change it, as in PyTorch


def _of_weighted_batch(weight: Tensor | None) -> Choose:
    r"""Choose the batch's statistics, with weighted rows; the bar is the mean over positions:

    $$ \mu_c = \frac{\sum_i w_i \bar x_{ic}}{\sum_i w_i}, \qquad
       \sigma^2_c = \frac{\sum_i w_i \overline{(x_{ic} - \mu_c)^2}}{\sum_i w_i} $$

    The variance is biased, as in BatchNorm's training mode.
    """

    def average(values: Tensor) -> Tensor:
        rows = values.flatten(2).mean(2) if values.ndim > 2 else values  # (n, C)
        if weight is None:
            return rows.mean(0)
        total = weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)  # zeros instead of NaN if all rows are padding
        return (weight / total).to(rows.dtype) @ rows

    def choose(call: int, input: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
        mean = average(input)
        return mean, average((input - along_channels(mean, input)).square())

    return choose


_of_batch = _of_weighted_batch(None)
"""Choose the batch's statistics, all rows weighted equally."""


def _from_support(statistics: Statistics) -> Choose:
    return lambda call, input, mean, var: (statistics[str(call)]["mean"], statistics[str(call)]["var"])


def _running(call: int, input: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
    if mean is None or var is None:
        raise ValueError(
            "this model's BatchNorm keeps no running statistics (track_running_stats=False): "
            "choose batchnorm='support' or 'query'"
        )
    return mean, var


_equal_weights: ContextVar[bool | None] = ContextVar("equal_weights", default=None)


@contextmanager
def assume_equal_weights(equal: bool) -> Iterator[None]:
    """A context that states whether all rows have equal weights, which a tracer cannot read from the tensors."""
    token = _equal_weights.set(equal)
    try:
        yield
    finally:
        _equal_weights.reset(token)


def _has_equal_weights(weight: Tensor) -> bool:
    """Whether all rows are known to have equal weights; values are unknown under `vmap` and while tracing."""
    if (known := _equal_weights.get()) is not None:
        return known
    if isinstance(weight, FakeTensor):  # memory is predicted for tasks without padding
        return True
    if is_batched(weight) or torch.compiler.is_compiling() or not len(weight):
        return False
    return bool((weight == weight[0]).all() and weight[0] > 0)


def _buffer_names(module: nn.Module) -> list[str]:
    """Names of the buffers, without those of BatchNorm."""
    return [
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        if not isinstance(part, _BatchNorm)
        for name, buffer in part.named_buffers(recurse=False)
        if not name.endswith("num_batches_tracked")
    ]
