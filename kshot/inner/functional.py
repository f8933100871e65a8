"""A module as a pure function of its parameters, with controlled BatchNorm statistics and buffers.

The module is not changed: each call runs a `Replica` of it. The statistics of BatchNorm are those that the learner
chooses, keyed by the layer and the number of its call, so that a layer that is called twice has two, and a layer that
is skipped has none.

Buffers. A module may learn through its buffers in a forward pass, as spectral normalisation and moving averages do.
Within a task they go from pass to pass as in ordinary training: support passes and inner steps, then the query, and
`Learner.adapt` puts them into the state, not into the module. In meta-training, a step of all engines ends by setting
each floating-point buffer to the mean over the tasks, and any other to that of the first task.

Shape legend: n examples, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_leaves, tree_map

from kshot.argument_checks import check_arguments
from kshot.context import holding
from kshot.inner.batch_norm import TaskNorm, along_channels
from kshot.inner.call import Blend, Call, Choose, Moments, Statistics
from kshot.inner.kernels import in_transform
from kshot.inner.layer_errors import described, explain_batching_errors, is_batched
from kshot.inner.memory_format import channels_last, ignores_layout_throughout
from kshot.inner.random_state import random_state
from kshot.inner.replica import Replica
from kshot.inner.supported import changed_in_place, check_no_state, check_repetition, check_supported, check_weights
from kshot.query_weight import given_query_weight
from kshot.types import Batch, Params, Tree

BatchNorm = Literal["support", "query", "running", "tasknorm"]
"""The statistics that BatchNorm uses for a query: those of the task's support set (inductive), those of the query
itself (transductive), the module's running statistics (inductive; not updated by meta-training), or those of the
support set blended with those of each query example (inductive, see `TaskNorm`)."""


MAX_CHECKS = 8
"""Shapes of inputs for which the first call is checked; the check takes about as long as the call."""


class Function:
    r"""A module as a pure function of its parameters and buffers; the module itself stays as it is.

    Attributes that a forward sets on its layers, such as features that it stores, are dropped. A forward that depends
    on those of an earlier call, such as a counter, has a state that is not a buffer, and is refused.

    Args:
        module: any module; if it cannot be called with other weights, ValueError says why.
        batchnorm: the statistics that BatchNorm uses for a query. For a support set they are those of the set, with
            weighted rows, or the running ones.
        task_norm: meta-parameters for "tasknorm", which the learner has to register as its own; new ones by default.

    Attributes:
        transductive: whether a query's prediction depends on the other queries.
    """

    @check_arguments
    def __init__(self, module: nn.Module, batchnorm: BatchNorm = "support", task_norm: TaskNorm | None = None) -> None:
        check_supported(module)
        self.module, self.batchnorm = module, batchnorm
        norms = [name for name, part in module.named_modules() if isinstance(part, _BatchNorm)]
        has_norms = len(norms) > 0
        self.norms: dict[str, int] = {name: number for number, name in enumerate(norms)}
        new_task_norm = has_norms and batchnorm == "tasknorm" and task_norm is None
        self.task_norm = TaskNorm(len(norms)) if new_task_norm else task_norm
        self.transductive = has_norms and batchnorm == "query"
        self._normalizes: bool | None = has_norms or None  # unknown of a forward that may call it as a function
        self._copies_inputs = False  # since a forward changes them
        self._checked: set[tuple] = set()  # shapes of inputs with which a call has been checked
        self._parts: dict[str, Function] = {}

    @property
    def keeps_statistics(self) -> bool:
        """Whether `query` needs statistics from `support`."""
        return self._normalizes is not False and self.batchnorm in ("support", "tasknorm")

    def of(self, name: str) -> Function:
        """The submodule with a name as a function, with the same choice of statistics."""
        if name not in self._parts:
            self._parts[name] = Function(self.module.get_submodule(name), self.batchnorm, self.task_norm)
        return self._parts[name]

    def lay_out(self, params: Params) -> Params:
        """The same parameters in the memory layout in which inner steps are fastest."""
        return channels_last(params) if ignores_layout_throughout(self.module) else params

    def adapting(self, params: Params, buffers: Params, batch: Batch) -> tuple[Tree, Params]:
        """Call in an inner step on a support set: the module's output, and the buffers that have changed so far.

        Args:
            params: parameters that replace the module's own, by name.
            buffers: the buffers that earlier steps have changed.
            batch: leaves (n, ...).
        """
        choose: Choose = _running
        if self.batchnorm != "running":
            choose = _of_batch if _has_equal_weights(batch.weight) else _of_weighted_batch(batch.weight)
        output, changed, _ = self._call(params | buffers, batch.inputs, choose, count=batch.weight.sum(), inner=True)
        return output, buffers | changed if changed else buffers

    def support(self, params: Params, batch: Batch) -> tuple[Tree, Statistics]:
        """Call on a support set: the module's output, and the BatchNorm statistics that `query` needs."""
        output, changed, statistics = self._support(params, batch)
        _keep(self.module, changed)
        return output, statistics

    def statistics(self, params: Params, batch: Batch) -> Statistics:
        """The BatchNorm statistics of a support set that `query` needs; changes of buffers are dropped."""
        return self._support(params, batch)[2]

    def _support(self, params: Params, batch: Batch) -> tuple[Tree, Params, Statistics]:
        choose = _running if self.batchnorm == "running" else _of_weighted_batch(batch.weight)
        if not self.keeps_statistics and choose is not _running and _has_equal_weights(batch.weight):
            choose = _of_batch
        count = batch.weight.sum()
        output, changed, used = self._call(params, batch.inputs, choose, count=count)
        if not used or not self.keeps_statistics:
            return output, changed, {}
        return output, changed, used if self.task_norm is None else used | {"support": {"count": count}}

    def query(self, params: Params, statistics: Statistics, inputs: Tree) -> Tree:
        """Call on inputs (m, ...) with the statistics that `support` returned; `params` may hold buffers too."""
        choose = _running if self.batchnorm == "running" else _from_support(statistics)
        if self.transductive:
            weight = given_query_weight(len(tree_leaves(inputs)[0]))
            choose = _of_batch if weight is None or _has_equal_weights(weight) else _of_weighted_batch(weight)
        elif self.batchnorm == "query":
            choose = self._refuse_function
        count = statistics.get("support", {}).get("count")
        output, changed, _ = self._call(params, inputs, choose, count=count)
        _keep(self.module, changed)
        return output

    def _call(
        self, params: Params, inputs: Tree, choose: Choose, count: Tensor | None = None, inner: bool = False
    ) -> tuple[Tree, Params, Statistics]:
        """The output, the buffers that have changed, and the BatchNorm statistics used; `inner` for inner steps."""
        if parametrize._cache_enabled:
            raise RuntimeError(
                "torch.nn.utils.parametrize.cached() would give a learner parametrized weights of another task: "
                "call it outside of that context"
            )
        batched, kept = in_transform(), _updates.get()

        def own_copy(name: str, buffer: Tensor) -> Tensor:
            if kept is not None and name not in params:
                buffer = kept.value_of(buffer)
            return buffer + _zero_of(inputs).to(buffer.dtype) if batched else buffer.clone()

        leaves = [inputs] if isinstance(inputs, Tensor) else tree_leaves(inputs)
        shapes = tuple([leaf.shape for leaf in leaves if isinstance(leaf, Tensor)])
        first = not torch.compiler.is_compiling() and _get_current_dispatch_mode() is None  # not of symbolic shapes
        first = first and shapes not in self._checked and len(self._checked) < MAX_CHECKS
        values = {n: p.detach().clone() for n, p in self.module.named_parameters()} if first else {}
        blend = None if self.task_norm is None else self._blend(self.task_norm, count)

        def prepare() -> tuple[Replica, Call]:
            replica = Replica(self.module, params, own_copy)
            return replica, Call(replica, inputs, choose, choose is _of_batch, blend)

        if first or self._copies_inputs:
            given, inputs = inputs, tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
        before = random_state(inputs) if first else None
        replica, call = prepare()
        with explain_batching_errors(self.module, inputs):
            output = call(replica.root, inputs)
        if inner and call.ran_without_graph and not batched:
            check_repetition(self.module, output, (params, inputs))
        self._normalizes = bool(self._normalizes) or call.normalized
        check_weights(self.module, replica.changed_weights(), values)
        if before is not None:
            self._copies_inputs |= changed_in_place(inputs)
            if assigned := replica.assigned_attributes():
                check_no_state(assigned, output, prepare, given, before)
            self._checked.add(shapes)
        return output, replica.changed_buffers(), call.used

    def _refuse_function(self, key: str, input: Tensor, mean: Tensor | None, var: Tensor | None) -> Moments:
        raise ValueError(
            "batchnorm='query' needs BatchNorm layers, by which a learner knows that it is transductive; "
            f"{described('' if key == 'model' else key, self.module)} calls torch.nn.functional.batch_norm itself: use "
            "a layer, or another batchnorm"
        )

    def _blend(self, task_norm: TaskNorm, count: Tensor | None) -> Blend:
        def blend(layer: str, input: Tensor, mean: Tensor, var: Tensor) -> Moments:
            if layer not in self.norms:
                raise ValueError(
                    f"batchnorm='tasknorm' has parameters for each nn.BatchNorm layer, but {layer!r} calls "
                    "torch.nn.functional.batch_norm itself: use a layer, or another batchnorm"
                )
            return task_norm(self.norms[layer], input, mean, var, count=count)

        return blend


class BufferUpdates:
    """The buffers that forward passes have changed within one task of a training step; see `keeping_buffers`."""

    def __init__(self) -> None:
        self.level = _level()
        self.values: dict[int, tuple[Tensor, Tensor]] = {}  # by id of the module's buffer: the buffer, its value

    def value_of(self, buffer: Tensor) -> Tensor:
        """The last value of a module's buffer."""
        return self.values[id(buffer)][1] if id(buffer) in self.values else buffer

    def of(self, module: nn.Module) -> Params:
        """The last values of the buffers of a module that have changed, by name, detached."""
        if not self.values:
            return {}
        return {n: self.values[id(b)][1].detach() for n, b in module.named_buffers() if id(b) in self.values}


_updates: ContextVar[BufferUpdates | None] = ContextVar("updates", default=None)


@contextmanager
def keeping_buffers() -> Iterator[BufferUpdates]:
    """A context, for one task, in which support and query passes start from the buffers of earlier ones, and keep
    theirs."""
    updates = BufferUpdates()
    with holding(_updates, updates):
        yield updates


def _keep(module: nn.Module, changed: Mapping[str, Tensor]) -> None:
    updates = _updates.get()
    if updates is None or not changed or updates.level != _level():
        return
    for name, buffer in module.named_buffers():
        if name in changed:
            updates.values[id(buffer)] = buffer, changed[name]


def _level() -> int:
    """The number of transforms of `torch.func` that are active."""
    interpreter = torch._C._functorch.peek_interpreter_stack()
    return 0 if interpreter is None else interpreter.level()


def _zero_of(inputs: Tree) -> Tensor:
    """A zero made of the inputs: under `vmap`, a tensor plus this zero is one per task."""
    return torch.zeros_like(tree_leaves(inputs)[0].flatten()[:1].sum())


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

    def choose(key: str, input: Tensor, mean: Tensor | None, var: Tensor | None) -> Moments:
        mean = average(input)
        return mean, average((input - along_channels(mean, input)).square())

    return choose


_of_batch = _of_weighted_batch(None)
"""Choose the batch's statistics, all rows weighted equally."""


def _from_support(statistics: Statistics) -> Choose:
    def choose(key: str, input: Tensor, mean: Tensor | None, var: Tensor | None) -> Moments:
        if key not in statistics:
            raise ValueError(
                f"BatchNorm call {key!r} ran for the query but not for the support set, whose statistics it needs: "
                "a model that skips layers takes batchnorm='running' or 'query'"
            )
        return statistics[key]["mean"], statistics[key]["var"]

    return choose


def _running(key: str, input: Tensor, mean: Tensor | None, var: Tensor | None) -> Moments:
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
    with holding(_equal_weights, equal):
        yield


def _has_equal_weights(weight: Tensor) -> bool:
    """Whether all rows are known to have equal weights; values are unknown under `vmap` and while tracing."""
    if (known := _equal_weights.get()) is not None:
        return known
    if isinstance(weight, FakeTensor):  # memory is predicted for tasks without padding
        return True
    if is_batched(weight) or torch.compiler.is_compiling() or not len(weight):
        return False
    return bool((weight == weight[0]).all() and weight[0] > 0)
