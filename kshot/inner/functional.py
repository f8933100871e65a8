"""A module as a pure function of its parameters, with BatchNorm under control.

A module stays as its author wrote it: parameters are substituted by `torch.func.functional_call`, and each call of
`torch.nn.functional.batch_norm` on the way is redirected to the statistics that the learner asks for. The k-th call
gets the k-th statistics, so a norm that a module uses twice is two norms, as it should be.

Shape legend: n examples, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.backends import cudnn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from kshot.inner.batch_norm import along_channels, batch_norm
from kshot.inner.explaining import explained, is_batched
from kshot.inner.kernels import kinds, settle, transformed, twice_differentiable
from kshot.inner.layout import LAYOUT_FREE, channels_last, convolves
from kshot.inner.recurrent import WRITTEN_OUT
from kshot.inner.redirected import REDIRECTED, needs_redirecting
from kshot.inner.task_norm import TaskNorm
from kshot.types import Batch, Params, Tree

BatchNorm = Literal["support", "query", "running", "tasknorm"]
"""Which statistics BatchNorm uses for a query: those of the task's support set (inductive), those of the query itself
(transductive), the module's own running ones (inductive; not updated by meta-training), or those of the support set
blended with those of each query by itself (inductive, see `inner.task_norm.TaskNorm`)."""

Statistics = dict[str, dict[str, Tensor]]
"""Mean and variance (C,) of each BatchNorm call of one forward, keyed by the number of the call; for "tasknorm" the
number of support examples too, as `{"support": {"count": ()}}`."""


class Function:
    r"""A module as a function of its parameters, pure: the module's weights and buffers stay bitwise as they are.

    Args:
        module: any module.
        batchnorm: which statistics BatchNorm uses for a query. For a support set it is the set's own, rows weighted,
            or the running ones.
        task_norm: for "tasknorm", the meta-parameters to use; new ones by default.

    Attributes:
        transductive: whether a query's prediction depends on the other queries.
        keeps_statistics: whether `query` needs statistics from `support`.
        task_norm: meta-parameters that the learner is to hold as its own, or None.
    """

    def __init__(self, module: nn.Module, batchnorm: BatchNorm = "support", task_norm: TaskNorm | None = None) -> None:
        if batchnorm not in get_args(BatchNorm):
            raise ValueError(f"batchnorm must be one of {', '.join(get_args(BatchNorm))}, got {batchnorm!r}")
        self.module, self.batchnorm = module, batchnorm
        norms = sum(isinstance(part, _BatchNorm) for part in module.modules())
        self.normed = norms > 0
        self.task_norm = TaskNorm(norms) if self.normed and batchnorm == "tasknorm" and task_norm is None else task_norm
        self.transductive = self.normed and batchnorm == "query"
        self.convolves = convolves(module)
        self.redirected = self.normed or self.convolves or needs_redirecting(module)
        self.kinds = kinds(module)
        self.shared = _shared(module)
        self.keeps_statistics = self.normed and batchnorm in ("support", "tasknorm")

    def of(self, name: str) -> Function:
        """A submodule as a function, under the same choice of statistics."""
        return Function(self.module.get_submodule(name), self.batchnorm, self.task_norm)

    def adapting(self, params: Params, batch: Batch) -> Tree:
        """Call on a support set, of which only what the module returns is needed."""
        choose = _running if self.batchnorm == "running" else _own if _even(batch.weight) else _of_batch(batch.weight)
        return self._call(params, batch.inputs, choose, count=batch.weight.sum())

    def support(self, params: Params, batch: Batch) -> tuple[Tree, Statistics]:
        """Call on a support set: what the module returns, and the BatchNorm statistics that queries will need."""
        if not self.keeps_statistics:
            return self.adapting(params, batch), {}
        used: Statistics = {}
        count = batch.weight.sum()
        output = self._call(params, batch.inputs, _of_batch(batch.weight), used, count)
        return output, used if self.task_norm is None else used | {"support": {"count": count}}

    def query(self, params: Params, statistics: Statistics, inputs: Tree) -> Tree:
        """Call on inputs (m, ...), under the statistics that `support` gave."""
        choose = {"query": _own, "running": _running}.get(self.batchnorm, _given(statistics))
        return self._call(params, inputs, choose, count=statistics.get("support", {}).get("count"))

    def _call(
        self,
        params: Params,
        inputs: Tree,
        choose: Choose,
        used: Statistics | None = None,
        count: Tensor | None = None,
    ) -> Tree:
        overrides: dict[str, Any] = {
            name: None if name.endswith("num_batches_tracked") else buffer.clone()
            for name, buffer in self.module.named_buffers()
        }
        overrides.update(params)
        if self.convolves:
            inputs = channels_last(inputs)
        if self.shared:
            overrides.update(self._lifted(overrides, inputs))
        args, kwargs = inputs if isinstance(inputs, tuple) else (inputs,), {}
        if isinstance(inputs, dict):
            args, kwargs = (), inputs
        written_out = WRITTEN_OUT if self.kinds["recurrent"] and is_batched(inputs) else {}
        blend = None if self.task_norm is None else partial(self.task_norm, count=count)
        redirected = _Redirect(choose, used, written_out, blend) if self.redirected else nullcontext()
        try:
            with redirected, twice_differentiable(**self.kinds), explained(self.module, inputs):
                return torch.func.functional_call(self.module, overrides, args, kwargs)
        finally:
            if self.kinds["recurrent"]:
                settle(self.module)

    def _lifted(self, overrides: dict[str, Any], inputs: Tree) -> dict[str, Any]:
        """Buffers, which the module may change in place, for each task its own: plus a zero of the inputs' tasks."""
        zero = torch.zeros_like(tree_leaves(inputs)[0].flatten()[:1].sum())
        return {name: overrides[name] + zero.to(overrides[name].dtype) for name in self.shared}


Choose = Callable[[int, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]
"""(number of the call, input, running mean, running variance) -> (mean, variance) to normalise by."""


_RISING = {F.relu, torch.relu, F.leaky_relu}
"""Activations that never fall, so that they may as well follow a max-pooling, which leaves them a quarter of the work.
The derivatives are the same: where several positions tie for the largest value, their slopes are equal."""


class _Redirect(TorchFunctionMode):
    """Redirects `batch_norm` to chosen statistics, noting in `used` which they were, and what `vmap` gets wrong."""

    def __init__(
        self,
        choose: Choose,
        used: Statistics | None,
        written_out: dict[Callable, Callable],
        blend: Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.choose, self.used, self.blend, self.calls = choose, used, blend, 0
        self.risen: tuple[Any, Any, Any] = (None, None, None)  # the last activation: output, input, function
        self.table = REDIRECTED | written_out if transformed() else LAYOUT_FREE

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._normalize(*args, **kwargs)
        if func in _RISING and len(args) > 0:
            output = func(*args, **kwargs)
            if output is not args[0]:
                self.risen = output, args[0], lambda pooled: func(pooled, *args[1:], **kwargs)
            return output
        if func is F.max_pool2d and args and args[0] is self.risen[0]:
            _, before, rise = self.risen
            return rise(func(before, *args[1:], **kwargs))
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
        plain = weight is None or weight.dtype == input.dtype
        if self.choose is _own and self.blend is None and plain and not is_batched(input):
            if transformed():
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
        # of moments for each example the input comes first, so that a compiler finds its layout in the sum
        normed = torch.addcmul(shift, input, scale) if self.blend is None else input * scale + shift
        return normed.to(input.dtype)  # parameters of another precision than the input's stay inside, as in PyTorch


def _of_batch(weight: Tensor | None) -> Choose:
    r"""The batch's own statistics, with rows weighted and the bar averaging over positions:

    $$ \mu_c = \frac{\sum_i w_i \bar x_{ic}}{\sum_i w_i}, \qquad
       \sigma^2_c = \frac{\sum_i w_i \overline{(x_{ic} - \mu_c)^2}}{\sum_i w_i} $$

    The variance is the biased one, as in the training forward of BatchNorm.
    """

    def average(values: Tensor) -> Tensor:
        rows = values.flatten(2).mean(2) if values.ndim > 2 else values  # (n, C)
        if weight is None:
            return rows.mean(0)
        total = weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)  # padding alone: zeros, and no NaN
        return (weight / total).to(rows.dtype) @ rows

    def choose(call: int, input: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
        mean = average(input)
        return mean, average((input - along_channels(mean, input)).square())

    return choose


_own = _of_batch(None)
"""The batch's own statistics, all rows alike."""


_alike: ContextVar[bool | None] = ContextVar("alike", default=None)


@contextmanager
def rows_alike(alike: bool) -> Iterator[None]:
    """A region in which it is known whether all rows count alike; a tracer cannot look at the values of weights."""
    before = _alike.set(alike)
    try:
        yield
    finally:
        _alike.reset(before)


def _even(weight: Tensor) -> bool:
    """Whether all rows are known to count alike; under `vmap`, and while tracing, no value is known."""
    if (known := _alike.get()) is not None:
        return known
    if isinstance(weight, FakeTensor):  # memory is planned for tasks without padding
        return True
    if is_batched(weight) or torch.compiler.is_compiling() or not len(weight):
        return False
    return bool((weight == weight[0]).all() and weight[0] > 0)


def _given(statistics: Statistics) -> Choose:
    return lambda call, input, mean, var: (statistics[str(call)]["mean"], statistics[str(call)]["var"])


def _running(call: int, input: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor]:
    if mean is None or var is None:
        raise ValueError(
            "this model's BatchNorm keeps no running statistics (track_running_stats=False): "
            "choose batchnorm='support' or 'query'"
        )
    return mean, var


def _shared(module: nn.Module) -> list[str]:
    """Names of the buffers, but for BatchNorm's."""
    return [
        f"{place}.{name}" if place else name
        for place, part in module.named_modules()
        if not isinstance(part, _BatchNorm)
        for name, buffer in part.named_buffers(recurse=False)
        if not name.endswith("num_batches_tracked")
    ]
